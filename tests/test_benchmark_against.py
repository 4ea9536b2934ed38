# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark's `--against`, run for real on a small network and copies of the package that are slow or wrong."""

import json
import math
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from hf_segformer.benchmark import against
from hf_segformer.benchmark import comparison as benchmark
from lively_models import lively_model

SMALL = ["--size", "64x96", "--threads", "1"]
JOBS = ["forward float32", "forward bfloat16", "training step", "pipeline"]


@pytest.fixture(autouse=True)
def own_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(tiny_config, randomize, tmp_path):
    lively_model(tiny_config(id2label={index: f"class {index}" for index in range(7)}), randomize).save_pretrained(
        tmp_path / "tiny"
    )
    return str(tmp_path / "tiny")


def copy_package(folder: Path, change: str = "pass") -> Path:
    """A copy whose forward pass does something else before."""
    shutil.copytree(against.ROOT / "hf_segformer", folder / "hf_segformer")
    with (folder / "hf_segformer" / "__init__.py").open("a") as file:
        file.write(
            "import functools, time\n"
            "_forward = SegformerForSemanticSegmentation.forward\n"
            "@functools.wraps(_forward)\n"
            "def _changed(self, pixel_values, *args, **kwargs):\n"
            f"    {change}\n"
            "    return _forward(self, pixel_values, *args, **kwargs)\n"
            "SegformerForSemanticSegmentation.forward = _changed\n"
        )
    return folder


def measure(reference: object, model: str, folder: Path, *flags: object) -> tuple[str, list[dict]]:
    """Last paragraph and raw figures of a run."""
    benchmark.main([*SMALL, "--model", model, "--against", str(reference), "--output_dir", str(folder), *flags])
    text = (folder / "benchmark.md").read_text()
    return text.strip().splitlines()[-1], json.loads((folder / "benchmark.json").read_text())["against"]


@pytest.mark.long
def test_what_became_slower(model, tmp_path, monkeypatch):
    reference = against.ROOT
    monkeypatch.setattr(against, "ROOT", copy_package(tmp_path / "slow", "time.sleep(0.15)"))
    verdict, records = measure(reference, model, tmp_path / "report", "--pairs", "9")
    assert [record["what"] for record in records] == [f"tiny {job}" for job in JOBS]
    for record in records:
        assert set(record["seconds"]) == {"this package", str(reference)} and record["difference"] == 0
        assert all(len(seconds) == 9 for seconds in record["seconds"].values())
        assert min(record["seconds"]["this package"]) > 0.15
        ends, quartiles = record["interval"], record["quartiles"]
        assert ends[0] <= quartiles[0] <= record["median"] <= quartiles[1] <= ends[1] and ends[0] > 1.03
    assert verdict == (
        f"More than 3 % slower than {reference}: {', '.join(f'tiny {job}' for job in JOBS)}. "
        "Not to be told in 9 rounds: nothing. Other outputs: none."
    )


@pytest.mark.long
def test_what_gives_something_else(model, tmp_path, monkeypatch):
    events, ask = [], against.Side._ask

    def watched(side, message):
        events.append(("asked", side.name))
        ask(side, message)
        events.append(("done", side.name))

    monkeypatch.setattr(against.Side, "_ask", watched)
    reference = copy_package(tmp_path / "other", "time.sleep(0.1); pixel_values = pixel_values.flip(3)")
    verdict, records = measure(reference, model, tmp_path / "report", "--pairs", "6")
    assert all(record["median"] < 1 for record in records)
    differences = {record["what"].removeprefix("tiny "): record["difference"] for record in records}
    assert list(differences) == JOBS and all(0.01 < value < 10 for value in differences.values())
    assert verdict.endswith(f"Other outputs: {', '.join(f'tiny {job}' for job in JOBS)}.")
    # Each was told to run only after the other had answered, in turn first and second.
    names = [name for _, name in events[::2]]
    assert [("asked", name) for name in names] == events[::2] and [("done", name) for name in names] == events[1::2]
    first, second = "this package", str(reference)
    assert names[:2] == [first, second] and names[-12:] == [first, second, second, first] * 3


@pytest.mark.long
def test_a_revision(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = copy_package(tmp_path / "checkout", "a = 1")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    path = root / "hf_segformer" / "__init__.py"
    committed = path.read_text()
    path.write_text(committed.replace("a = 1", "a = 2"))
    monkeypatch.setattr(against, "ROOT", root)
    with ExitStack() as stack:
        sides = against.start("HEAD", 1, stack)
        texts = [(side.root / "hf_segformer" / "__init__.py").read_text() for side in sides]
        assert texts == [path.read_text(), committed] and texts[0] != texts[1]
        with pytest.raises(RuntimeError, match="this package stopped: KeyError: 'no such job'"):
            sides[0].prepare("no such job", {})
        with pytest.raises(RuntimeError, match="this package stopped: KeyError: 'no such job'"):
            sides[0].run()
    assert not any(side.root.parent.exists() for side in sides)
    assert [side._process.returncode for side in sides] == [1, 0]
    git_state = subprocess.run([*git, "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(git_state.splitlines()) == 1

    subprocess.run([*git, "rm", "-rqf", "hf_segformer"], check=True)
    subprocess.run([*git, "commit", "-qm", "nothing", "--allow-empty"], check=True)
    for reference, message in {
        "HEAD": "against must be a git revision that holds the package hf_segformer, got 'HEAD': .*pathspec",
        "v9.9": r"against must be a folder or a git revision of .*checkout, got 'v9\.9'$",
        "--help": "against must be a folder or a git revision of .*checkout, got '--help'",
        "HEAD:nothing": "against must be a folder or a git revision of .*checkout, got 'HEAD:nothing'",
    }.items():
        with pytest.raises(ValueError, match=message):
            benchmark.main([f"--against={reference}", "--output_dir", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_no_such_package(tmp_path, monkeypatch):
    (tmp_path / "empty" / "hf_segformer").mkdir(parents=True)
    report = ["--output_dir", str(tmp_path / "report")]
    with pytest.raises(ValueError, match=r"against must be a folder that holds the package .*, but .*empty does not"):
        benchmark.main(["--against", str(tmp_path / "empty"), *report])
    monkeypatch.setattr(against, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if shutil.which("git"):
        with pytest.raises(ValueError, match="got 'main': fatal: not a git repository"):
            benchmark.main(["--against", "main", *report])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="got 'main'; for a revision git must be installed"):
        benchmark.main(["--against", "main", *report])
    assert not (tmp_path / "report").exists()


def test_a_package_that_cannot_be_imported(tmp_path):
    broken = tmp_path / "broken" / "hf_segformer"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import no_such_package")
    with pytest.raises(ValueError, match=r"hf_segformer of .*broken cannot be imported: .*'no_such_package'"):
        benchmark.main(["--against", str(broken.parent), "--output_dir", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_times_as_long():
    ours, theirs = [2, 9, 8, 30, 5, 12, 7, 40, 3], [1, 3, 2, 5, 1, 2, 1, 5, 1]
    spread = against.times_as_long(ours, theirs)  # 2 3 3 4 5 6 6 7 8 in order
    assert spread == {"median": 5, "quartiles": (3, 6), "interval": (3, 7)}
    assert against.times_as_long([1, 2, 3, 4, 5, 6], [1] * 6)["interval"] == (1, 6)


@pytest.mark.parametrize("count", [6, 9, 15, 21, 40])
def test_the_interval_holds_the_median(count):
    """As often as it says: the median of 0.5 of uniform numbers, in 20000 draws."""
    generator = torch.Generator().manual_seed(count)
    draws = torch.rand(20000, count, generator=generator).sort().values
    low, high = against.times_as_long(range(1, count + 1), [1] * count)["interval"]  # ranks
    for narrower, bound in ((0, 1.0), (1, 0.95)):
        ends = draws[:, int(low) - 1 + narrower], draws[:, int(high) - 1 - narrower]
        share = ((ends[0] < 0.5) & (ends[1] > 0.5)).double().mean().item()
        assert (0.945 if not narrower else 0) < share < bound + 0.005


def test_difference():
    theirs = {"loss": torch.tensor(2.0), "gradients": torch.tensor([0.01, -0.04, 0.0])}
    assert against.difference(theirs, theirs) == 0
    ours = {"loss": torch.tensor(2.0), "gradients": torch.tensor([0.01, -0.04, 0.02])}
    assert against.difference(ours, theirs) == pytest.approx(0.5)
    assert math.isnan(against.difference(theirs | {"loss": torch.tensor(math.nan)}, theirs))
    labels = torch.arange(8).reshape(2, 4)
    assert against.difference({"label map": labels.clamp(max=5)}, {"label map": labels}) == 0.25
    assert against.difference({"label map": labels[:1]}, {"label map": labels}) == math.inf


@pytest.mark.parametrize("difference", [0.0, math.nan, math.inf, 1e-9])
@pytest.mark.parametrize(
    ("interval", "slower", "unclear"),
    [((0.9, 1.029), 0, 0), ((0.9, 1.05), 0, 1), ((1.01, 1.05), 0, 1), ((1.031, 1.05), 1, 0)],
)
def test_verdict(interval, slower, unclear, difference):
    args = benchmark.BenchmarkArguments(against="main", pairs=7)
    text = benchmark.verdict([{"what": "B0 pipeline", "interval": interval, "difference": difference}], args)
    first, second, third = ("B0 pipeline" if flag else "nothing" for flag in (slower, unclear, difference != 0))
    third = "none" if third == "nothing" else third
    assert text == (
        f"More than 3 % slower than main: {first}. Not to be told in 7 rounds: {second}. Other outputs: {third}."
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pairs", "5"], "pairs must be at least 6 with against, got 5"),
        (["--memory"], "memory must be left out with against, got True"),
        (["--dtype", "bfloat16"], "dtype must be left out with against, got bfloat16"),
        (["--competitors", "none"], r"competitors must be left out with against, got \['none'\]"),
        (["--scaling_sizes", "64"], r"scaling_sizes must be left out with against, got \[64\]"),
    ],
)
def test_wrong_arguments(flags, message):
    with pytest.raises(ValueError, match=message):
        benchmark.main(["--against", "no such revision", *flags])
