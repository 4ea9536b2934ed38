# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line: what it lists, how each command ends, and what `data` shows."""

import errno
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hf_segformer
from hf_segformer import cli
from hf_segformer.cli import COMMANDS, EXTRA
from hf_segformer.commands import convert
from hf_segformer.data.scenes import CLASS_NAMES
from hf_segformer.evaluation.protocols import PROTOCOLS
from scene_folder import write_scene_folder

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments, **options):
    options = {"capture_output": True, "text": True, "check": True, "cwd": ROOT} | options
    return subprocess.run([sys.executable, *map(str, arguments)], **options)


# ---- what it lists


def test_the_list_of_commands_comes_without_the_heavy_imports():
    done = python("-X", "importtime", "-m", "hf_segformer")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hf_segformer.cli" in imported  # the check itself
    assert not imported & {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}
    assert done.stdout == cli.usage() + "\n"
    for name in ("train", "evaluate", "predict", "convert", "push", "data", "benchmark"):
        assert f"segformer {name} " in done.stdout


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["--debug"]])
def test_help(words, capsys):
    assert cli.main(words) == 0
    assert capsys.readouterr().out == cli.usage() + "\n"


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf_segformer {hf_segformer.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_uses_flags_that_it_has(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: segformer {name}" in shown
    assert set(re.findall(r"--\w+", COMMANDS[name].example)) <= set(re.findall(r"--\w+", shown))
    assert not re.search(r"\w\.py\b|scripts?\b|\.\.\.\)", shown)  # a flag says its values itself
    if "--protocol" in shown:
        assert all(protocol in " ".join(shown.split()) for protocol in PROTOCOLS)
    for flag in re.findall(r"--no_(\w+),", shown):
        assert f"Turn --{flag} off." in " ".join(shown.split())


def test_a_program_of_that_name_still_registers(tmp_path):
    """Only Python's own script puts the imports off."""
    script = tmp_path / "segformer"
    script.write_text(
        "import hf_segformer, transformers\nprint(type(transformers.AutoConfig.for_model('segformer')).__module__)\n"
    )
    assert (
        python(script, env=os.environ | {"PYTHONPATH": str(ROOT)}).stdout == "hf_segformer.configuration_segformer\n"
    )


def test_names_that_were_put_off_are_there_when_asked_for():
    script = "import sys; sys.argv, sys.orig_argv = ['-m'], ['python', '-m', 'hf_segformer']; import hf_segformer\n"
    script += "assert 'transformers' not in sys.modules\nfrom hf_segformer import SegformerConfig\n"
    script += "from transformers import AutoConfig\nassert type(AutoConfig.for_model('segformer')) is SegformerConfig"
    python("-c", script)


# ---- what a user can cause


def one_line(words, capsys, code=2):
    """The error line of a command line that ends with it."""
    assert cli.main([str(word) for word in words]) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian"], "train"),
        (["evalute", "--model", "x"], "evaluate"),
        (["pred"], "predict"),
        (["--verson"], "--version"),
        (["train", "--max_stpes", "3"], "--max_steps"),
        (["train", "--no_sync_batchnorm"], "--no_sync_batch_norm"),
        (["evaluate", "--modle", "x"], "--model"),  # not: --model is required
        (["predict", "--ouput_dir=x"], "--output_dir"),
        (["convert", "--datset", "ade20k", "a", "b"], "--dataset"),
        (["push", "a", "b", "--licence", "mit"], "--license"),
        (["data", "--data_rot", "x"], "--data_root"),
    ],
)
def test_the_closest_command_or_flag_is_named(words, meant, capsys):
    assert f"did you mean {meant}?" in one_line(words, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["xyzzy"], "unknown command xyzzy (commands: train, "),
        (["train", "--xyzzy"], "unknown flag --xyzzy (segformer train --help shows all flags)"),
        (["train", "camvid"], "too many arguments: camvid"),
        (["train", "--max_steps", "many"], "invalid int value: 'many' (segformer train --help"),
        (["evaluate"], "arguments are required: --model"),
        (["convert", "absent.pth", "out"], "absent.pth"),
        (["push", "absent", "user/new", "--license", "mit"], "absent"),
        (["predict", "absent.png", "--model", "m", "--output_dir", "o"], "no such file or folder: absent.png"),
        (["data", "absent"], "absent: no such file or folder"),
        (["data", "a", "--data_root", "b"], "data_root must be left out with IN 'a', got 'b'"),
        (["train", "--dataset", "folder", "--data_root", "absent"], "data_root absent: no such file or folder"),
    ],
)
def test_errors_are_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words[0] == "train":
        cli.main(["train", "--recipe", "list"])  # nothing is printed on the way that is printed once only
        monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
        capsys.readouterr()
    assert said in one_line(words, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cuda:63", "gpu", "meta:x"])
def test_a_device_that_is_not_there(device, capsys, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = ["predict", tmp_path, "--model", "m", "--output_dir", tmp_path / "out", "--device", device]
    assert f"device {device!r} cannot be used here: " in one_line(words, capsys)


@pytest.mark.parametrize("module", ["accelerate", "cv2", "datasets"])
def test_a_missing_extra(module, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    said = f'train needs {EXTRA[module]}, which is not installed: pip install "hf_segformer[train]"'
    assert said in one_line(["train"], capsys)


def test_the_extra_is_what_the_project_says():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert {re.match(r"[\w-]+", line)[0] for line in extra} == set(EXTRA.values())
    assert {module for command in COMMANDS.values() for module in command.needs} <= EXTRA.keys()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("bad\n  data"), 2, "bad data"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2, "[Errno 2] No such file: 'x'"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "Permission denied"),
        (
            ModuleNotFoundError("no", name="matplotlib.figure"),
            2,
            "matplotlib, which is not installed: pip install",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (FloatingPointError("training diverged"), 1, "training diverged"),
    ],
)
@pytest.mark.parametrize("debug", [None, 0, 1, 3])
def test_how_a_command_ends(error, code, said, debug, capsys, monkeypatch):
    words = ["convert", "a", "b"]
    if debug is not None:
        words.insert(debug, "--debug")

    def fail(arguments, prog):
        assert arguments == ["a", "b"]
        raise error

    monkeypatch.setattr(convert, "main", fail)
    assert cli.main(words) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and said in lines[-1]
    assert ("Traceback (most recent call last):" in lines) == (debug is not None) == (len(lines) > 1)


def test_a_push_that_the_hub_refuses(capsys, monkeypatch):
    from hf_segformer.hub.push import PushError

    def fail(arguments, prog):
        raise PushError("no connection")

    monkeypatch.setattr(convert, "main", fail)
    assert one_line(["convert"], capsys) == "error: no connection\n"


@pytest.mark.parametrize(
    "error",
    [TypeError("x"), KeyError("x"), RuntimeError("x"), AssertionError(), ModuleNotFoundError("x", name="tpyo")],
)
def test_a_mistake_in_the_program_keeps_its_traceback(error, monkeypatch):
    def fail(arguments, prog):
        raise error

    monkeypatch.setattr(convert, "main", fail)
    with pytest.raises(type(error)):
        cli.main(["convert"])


@pytest.mark.parametrize(("name", "said"), [("train", "--resume goes on"), ("predict", "goes on where"), ("push", "")])
def test_interrupted(name, said, capsys, monkeypatch):
    import importlib

    def interrupt(arguments, prog):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"hf_segformer.commands.{name}"), "main", interrupt)
    assert cli.main([name]) == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted") and said in error and error.count("\n") == 1


# ---- data


@pytest.fixture
def folder(tmp_path):
    return write_scene_folder(tmp_path / "pictures", 4, 3)


def rows_of(printed):
    """The lines of the classes: name, then share and pictures of each split."""
    rows = (re.match(r"^ *\d* +(\S+)((?: +[\d.]+)+)$", line) for line in printed.splitlines())
    return {row[1]: [float(number) for number in row[2].split()] for row in rows if row}


def test_data_counts_what_the_files_hold(folder, tmp_path, capsys):
    label = np.asarray(Image.open(folder / "val" / "annotations" / "2.png")).copy()
    label[:30] = 255
    Image.fromarray(label).save(folder / "val" / "annotations" / "2.png")
    picture = Image.open(folder / "train" / "images" / "0.png")
    for kind in ("images", "annotations"):
        path = folder / "train" / kind / "0.png"
        Image.open(path).crop((0, 0, 50, 40)).save(path)
    assert picture.size == (96, 72)
    assert cli.main(["data", str(folder), "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^train +4  50x40, 96x72$", printed, re.MULTILINE)
    assert re.search(r"^validation +3  96x72$", printed, re.MULTILINE)
    rows = rows_of(printed)
    for column, split in ((0, "train"), (2, "val")):
        labels = [np.asarray(Image.open(path)) for path in (folder / split / "annotations").iterdir()]
        pixels = np.concatenate([label.ravel() for label in labels])
        for index, name in [*enumerate(CLASS_NAMES), (255, "(ignored)")]:
            assert rows[name][column] == pytest.approx(100 * (pixels == index).mean(), abs=0.006)
            assert rows[name][column + 1] == sum((label == index).any() for label in labels)
    assert len(list((tmp_path / "out").iterdir())) == 6
    for path in (tmp_path / "out").iterdir():
        assert path.name in printed
        assert len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_data_takes_the_flags_of_train(folder, tmp_path, capsys):
    (tmp_path / "gone").mkdir()
    (folder / "val").rename(tmp_path / "gone" / "val")
    words = ["--dataset", "folder", "--data_root", folder / "train", "--mask_format", "ids"]
    (folder / "classes.json").rename(folder / "train" / "classes.json")
    assert cli.main(["data", *map(str, words), "--output_dir", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 4  # one of each, where there are fewer than six


def test_data_names_a_bad_sample(folder, capsys, tmp_path):
    path = folder / "train" / "annotations" / "1.png"
    label = np.asarray(Image.open(path)).copy()
    label[3, 4] = 77
    Image.fromarray(label).save(path)
    for check in ("all", "none"):
        said = one_line(["data", folder, "--check", check, "--output_dir", tmp_path / "out"], capsys)
        assert "1.png" in said and "77" in said
    assert not (tmp_path / "out").exists()
