# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Hub ids that cannot be loaded: one line that says why, in every script that takes one, from a real server."""

import re
import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor
from hf_segformer.checkpoints.files import read_checkpoint
from hf_segformer.data import load_hub
from hf_segformer.data.hub import _class_file
from hf_segformer.hub_errors import load_model, load_processor

pytest_plugins = ["hub_fixtures"]
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def hub(hub, monkeypatch, tmp_path, tiny_config):
    """A Hub that holds a model, one of another user, one without weights and one without anything."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "published"
    SegformerForSemanticSegmentation(tiny_config()).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, left_out in {
        "user/model": (),
        "stranger/secret": (),
        "user/encoder": ("preprocessor_config.json",),
        "user/card": ("config.json", "model.safetensors", "preprocessor_config.json"),
    }.items():
        hub.create(name, private=name == "stranger/secret")
        hub.commit(name, {path: content for path, content in files.items() if path not in left_out})
        objects = {file.sha256: file.content for commit in hub.log(name) for file in commit.files.values()}
        hub.repositories[name].objects |= objects
    return hub


def offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def unreachable(hub, monkeypatch):
    hub.__exit__()


def gated(hub, monkeypatch):
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this repository is restricted"}
    for route in ("resolve", "info"):
        hub.inject(route, times=1000, status=403, headers=headers)


def bad_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")


def failing(hub, monkeypatch):
    for route in ("resolve", "info"):
        hub.inject(route, times=1000, status=503)


CASES = {
    "absent": ("user/absent", None, "the Hub shows no such|doesn't exist on the Hub or cannot be accessed"),
    "private": ("stranger/secret", None, "the Hub shows no such .* private|cannot be accessed"),
    "malformed": ("user/a/b", None, "no folder here, and no Hub id|which does not exist"),
    "offline": ("user/model", offline, "HF_HUB_OFFLINE is set"),
    "unreachable": ("user/model", unreachable, "no connection to http.*neither a folder here nor in the cache"),
    "gated": ("user/model", gated, "is gated: ask for access|is a gated dataset .* ask for access"),
    "token": ("user/model", bad_token, "does not accept the access token"),
    "failing": ("user/model", failing, "the Hub failed: try again.* 503"),
}
LOADERS = {
    "model": load_model,
    "processor": lambda source: load_processor(source, default=SegformerImageProcessor()),
    "checkpoint": read_checkpoint,
    "data": load_hub,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", LOADERS)
def test_every_loader_says_why_in_one_line(hub, waits, monkeypatch, kind, case):
    source, happen, words = CASES[case]
    if happen is not None:
        happen(hub, monkeypatch)
    with pytest.raises(ValueError, match=words) as caught:
        LOADERS[kind](source)
    message = str(caught.value)
    assert source in message and "\n" not in message


@pytest.fixture
def run_script(monkeypatch, capsys, tmp_path):
    """Function that runs a script here as a program; returns its one line of error; checks the exit code."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    for name in ("images/a.png", "images/b.png", "annotations/a.png", "annotations/b.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "data" / name)
    (tmp_path / "data" / "classes.json").write_text('{"names": ["a", "b"]}')

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPOSITORY / name), run_name="__main__")
        printed = capsys.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 2
        assert printed.startswith("error: ") and "\n" not in printed
        return printed

    return run


SMALL = ("--max_steps", "1", "--output_dir", "out", "--num_workers", "0")
DATA = ("--dataset", "folder", "--data_root", "data")
COMMANDS = {
    "train --model": ("examples/train.py", "--model", "SOURCE", *DATA, *SMALL),
    "train --encoder": ("examples/train.py", "--encoder", "SOURCE", *DATA, *SMALL),
    "train --dataset": ("examples/train.py", "--dataset", "SOURCE", *SMALL),
    "evaluate --model": ("examples/evaluate.py", "--model", "SOURCE", *DATA),
    "predict --model": ("examples/predict.py", "image.png", "--model", "SOURCE", "--output_dir", "out"),
    "convert": ("conversion/convert.py", "SOURCE", "out"),
}


@pytest.mark.parametrize("case", ["absent", "unreachable"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_script_ends_with_one_line(hub, waits, monkeypatch, run_script, command, case):
    source, happen, words = CASES[case]
    if happen is not None:
        happen(hub, monkeypatch)
    name, *arguments = COMMANDS[command]
    printed = run_script(name, *[source if argument == "SOURCE" else argument for argument in arguments])
    assert source in printed and re.search(words, printed)


def test_malformed_ids_and_folders_are_no_traceback_when_pushing(hub, run_script, tmp_path):
    push = ("conversion/push_to_hub.py", tmp_path / "published")
    assert "Repo id must" in run_script(*push, "user/a/b", "--license", "mit")
    assert "is none" in run_script(push[0], "absent", "user/new", "--license", "mit")


# ---- what a repository lacks


def test_only_a_missing_processor_is_replaced(hub, waits, monkeypatch):
    default = SegformerImageProcessor(size={"height": 32, "width": 32})
    assert load_processor("user/encoder", default) is default
    assert load_processor("user/model", default).size["height"] == 64
    with pytest.raises(ValueError, match=r"user/encoder has no image processor \(preprocessor_config\.json"):
        load_processor("user/encoder")
    offline(hub, monkeypatch)  # the cache remembers both
    assert load_processor("user/encoder", default) is default
    assert load_processor("user/model", default).size["height"] == 64


def test_processor_of_a_folder(tmp_path, monkeypatch):
    default = SegformerImageProcessor()
    assert load_processor(tmp_path, default) is default
    (tmp_path / "preprocessor_config.json").write_text("{no JSON")
    with pytest.raises(ValueError, match=r"not a valid JSON"):
        load_processor(tmp_path, default)


def test_repositories_that_lack_a_file(hub):
    with pytest.raises(ValueError, match=r"Unrecognized model in user/card"):
        load_model("user/card")
    with pytest.raises(ValueError, match="'user/card' on the Hub has no weights"):
        read_checkpoint("user/card")
    with pytest.raises(ValueError, match="has no such revision"):
        read_checkpoint("user/model", revision="absent")
    with pytest.raises(ValueError, match=r"user/card: .*data"):
        load_hub("user/card")


def test_download_that_breaks_off(hub, waits):
    hub.inject("download", times=1000, cut_after=0)
    with pytest.raises(ValueError, match="user/model: no connection"):
        load_model("user/model")


def test_class_names_are_not_guessed_when_their_file_cannot_be_fetched(hub, waits, tmp_path):
    hub.inject("resolve", times=1000, status=503)
    with pytest.raises(ValueError, match="the Hub failed"):
        _class_file("user/model", None)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(64)])
def test_damaged_weights(hub, tmp_path, content):
    (tmp_path / "published" / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="published: its weights are damaged or incomplete"):
        load_model(tmp_path / "published")


# ---- pickles in folders


@pytest.mark.parametrize(
    "options,words",
    [({}, "refers to eval"), ({"pickle_protocol": 4}, "damaged or holds more than weights")],
)
def test_pickle_of_weights_is_refused_without_advice_to_trust_it(hub, tmp_path, options, words):
    folder, touched = tmp_path / "published", tmp_path / "touched"
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(2), "x": Poison(touched)}, folder / "pytorch_model.bin", **options)
    for load in (load_model, SegformerForSemanticSegmentation.from_pretrained):
        with pytest.raises(ValueError, match=f"published (is )?{words} and was not read: .*safetensors") as caught:
            load(folder)
        assert "weights_only" not in str(caught.value) and caught.value.__suppress_context__
    assert not touched.exists()


class Poison:
    def __init__(self, touched):
        self.touched = touched

    def __reduce__(self):
        return eval, (f"open({str(self.touched)!r}, 'w')",)
