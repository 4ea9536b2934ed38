# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run says on its way: on a terminal, into a file or a pipe, and in its log."""

import io
import re
import sys

import pytest
import torch
from conftest import TINY
from transformers.utils import logging

from example_scripts import kept_process
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.cli import COMMANDS
from hf_segformer.training import Progress
from hf_segformer.training.progress_line import ProgressLine, bars_on_terminals, scores_line
from scene_folder import write_scene_folder

LINE = r"step (\d+)/6, \d\d:\d\d left, \d+\.\d images/s, loss \d(?:\.\d+)?,"
LINE += r"( mIoU \d+\.\d\d, best \d+\.\d\d at \d,)? lr \d\.\d\de-\d\d"


class Terminal(io.StringIO):
    """A stream that is one."""

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Flags of a run of six steps, logged every second one."""
    root = tmp_path_factory.mktemp("watched")
    write_scene_folder(root / "pictures", 4, 2)
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=11)).save_pretrained(root / "start")
    flags = ["--dataset", "folder", "--data_root", root / "pictures", "--model", root / "start", "--max_steps", 6]
    flags += ["--crop_size", 32, "--batch_size", 2, "--num_workers", 0, "--num_threads", 1, "--log_every", 2]
    return [str(word) for word in [*flags, "--eval_every", 3, "--save_every", 4]]


def train(words, monkeypatch, *more):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    with kept_process():
        COMMANDS["train"].main([*words, *map(str, more)], "segformer train")


def test_plain_lines_where_there_is_no_terminal(words, tmp_path, monkeypatch, capfd, recwarn):
    train(words, monkeypatch, "--output_dir", tmp_path)
    assert not [str(warning.message) for warning in recwarn if "log_with" in str(warning.message)]
    printed, errors = capfd.readouterr()
    assert "\r" not in printed + errors, "bars of ours, of transformers or of an evaluation"
    lines = [match for line in printed.splitlines() if (match := re.fullmatch(LINE, line))]
    assert [match[1] for match in lines] == ["2", "4", "6"]
    assert [bool(match[2]) for match in lines] == [False, True, True]  # the first evaluation is that of step 3
    log = (tmp_path / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in log)
    texts = [line[20:] for line in log]
    assert texts[0].startswith("started: segformer train --dataset folder") and texts[0].endswith(str(tmp_path))
    assert f"torch {torch.__version__}" in texts[1] and "CPU" in texts[1]
    assert [text for text in texts if re.fullmatch(LINE, text)] == [match[0] for match in lines]
    assert re.fullmatch(r"step 3: mIoU \d+\.\d\d", texts[3])
    assert texts[-1].startswith("finished after step 6: mIoU ")


def test_one_line_on_a_terminal(words, tmp_path, monkeypatch, capsys):
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        train(words, monkeypatch, "--output_dir", tmp_path)
    assert not re.search(r"^step 2/6", capsys.readouterr().out, re.MULTILINE)
    drawn = re.split(r"[\r\n]", terminal.getvalue())
    steps = [text for text in drawn if "/6, " in text]
    wanted = r"100%\|.*\| 6/6, \d\d:\d\d left, \d+\.\d images/s, loss \d\.\d+, mIoU \d+\.\d\d, best \d+\.\d\d at \d"
    assert re.fullmatch(wanted, steps[-1].strip())
    assert any(text.startswith("evaluating") for text in drawn)
    assert re.search(LINE, (tmp_path / "train.log").read_text())


def test_the_log_of_a_run_that_was_stopped(words, tmp_path, monkeypatch, capsys):
    from hf_segformer.training.run import Run

    take_step = Run.take_step

    def stops(run, batches):
        if run.progress.step == 5:
            raise ValueError("of\nsome reason")
        return take_step(run, batches)

    def fails(run):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="some reason"):
        patch.setattr(Run, "take_step", stops)
        train(words, monkeypatch, "--output_dir", tmp_path)
    first = (tmp_path / "train.log").read_text()
    assert first.splitlines()[-1].endswith("stopped after step 5 by ValueError: of some reason")
    train(words, monkeypatch, "--output_dir", tmp_path, "--resume")
    finished = (tmp_path / "train.log").read_text()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk"):
        patch.setattr(Run, "evaluate_exported", fails)
        train(words, monkeypatch, "--output_dir", tmp_path, "--resume")
    spoilt = (tmp_path / "train.log").read_text()
    assert spoilt.startswith(finished) and spoilt.endswith(" stopped after step 6 by OSError: disk full\n")
    whole = finished
    assert whole.startswith(first)
    texts = [line[20:] for line in whole[len(first) :].splitlines()]
    assert texts[0].startswith("resumed at step 4: segformer train")
    (last,) = (text for text in texts if text.startswith("step 6/6"))
    assert "best" in last and "at 3" in last, "the evaluation before the stop counts"


def test_a_run_that_left_only_its_log_can_be_started_again(words, tmp_path, monkeypatch):
    from hf_segformer.training.run import Run

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError):
        patch.setattr(Run, "take_step", lambda run, batches: (_ for _ in ()).throw(FloatingPointError("diverged")))
        train(words, monkeypatch, "--output_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.log"]
    train(words, monkeypatch, "--output_dir", tmp_path, "--max_steps", 1)
    texts = [line[20:] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert [text.partition(" ")[0].rstrip(":") for text in texts if re.match("st(art|opp)ed|finished", text)] == [
        *("started", "stopped", "started", "finished")
    ]
    with pytest.raises(ValueError, match="output_dir must be new or empty"):
        train(words, monkeypatch, "--output_dir", tmp_path, "--max_steps", 1)


def test_a_run_that_cannot_start_leaves_no_log(words, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="missing"):
        train(words, monkeypatch, "--output_dir", tmp_path / "out", "--data_root", tmp_path / "missing")
    assert not list(tmp_path.iterdir())


# ---- the parts


def shown(progress, log_file, capsys, max_steps=40, steps=1):
    with ProgressLine(progress, max_steps, log_file) as line:
        progress.step += steps
        line.show(1.5, 6e-5, 12.34)
    return capsys.readouterr().out


def test_other_processes_say_nothing(tmp_path, capfd):
    with ProgressLine(Progress(), 4, None) as line:
        line.update()
        line.show(1.5, 6e-5, 12.34)
        line.announce("step 1: mIoU 3")
        line.log_passed_over([{"reason": "bad"}])
    assert capfd.readouterr() == ("", "")


def test_time_left_is_that_of_this_part_of_the_run(tmp_path, capsys, monkeypatch):
    clock = iter([100.0, 130.0])
    monkeypatch.setattr("hf_segformer.training.progress_line.time.monotonic", lambda: next(clock))
    line = shown(Progress(step=1000), tmp_path / "log", capsys, max_steps=2000, steps=10)  # 3 s a step
    assert line.startswith("step 1010/2000, 49:30 left, 12.3 images/s, loss 1.5, lr 6.00e-05")


def test_days_left_and_no_step_yet(monkeypatch):
    clock = iter([0.0, 60.0])
    progress = Progress()
    monkeypatch.setattr("hf_segformer.training.progress_line.time.monotonic", lambda: next(clock))
    line = ProgressLine(progress, 1601, None)
    assert line.time_left() == "?"
    progress.step = 1
    assert line.time_left() == "26:40:00"


@pytest.mark.parametrize(
    ("history", "line"),
    [
        ([], []),
        ([{"step": 1, "loss": 2.0}], []),
        ([{"step": 1, "mean_iou": 0.25}], ["mIoU 25.00", "best 25.00 at 1"]),
        ([{"step": 1, "mean_iou": 0.5}, {"step": 2, "mean_iou": 0.25}], ["mIoU 25.00", "best 50.00 at 1"]),
        ([{"step": 1, "mean_iou": 0.5}, {"step": 2, "mean_iou": 0.5}], ["mIoU 50.00", "best 50.00 at 1"]),
        ([{"step": 1, "mean_iou": 0.5, "mean_iou_ema": 0.625}], ["mIoU 50.00", "best 62.50 at 1"]),
        ([{"step": 1, "mean_iou": float("nan")}], []),  # no pixel of the validation pictures is labelled
        ([{"step": 1, "mean_iou": 0.5}, {"step": 2, "mean_iou": None}], ["mIoU 50.00", "best 50.00 at 1"]),
    ],
)
def test_last_and_best_score(history, line):
    assert scores_line(Progress(step=9, history=history)) == line


def test_the_best_that_a_run_keeps_counts():
    progress = Progress(step=9, history=[{"step": 8, "mean_iou": 0.5}])
    progress.best = {"step": 4, "mean_iou": 0.75, "weights": "raw"}
    assert scores_line(progress) == ["mIoU 50.00", "best 75.00 at 4"]


def test_texts_in_the_log_stay_lines(tmp_path):
    line = ProgressLine(Progress(), 4, tmp_path / "train.log")
    line.log_passed_over([{"reason": "a.png: bro\nken"}, {"reason": "\udcff\x1b[2J.png"}])
    line.log_passed_over([{"reason": "a.png: bro\nken"}, {"reason": "\udcff\x1b[2J.png"}, {"reason": "third"}])
    texts = [text[20:] for text in (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()]
    assert texts == ["passed over: a.png: bro\\nken", "passed over: \\udcff\\x1b[2J.png", "passed over: third"]


def test_the_bars_of_transformers_come_back():
    assert logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), bars_on_terminals():
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with bars_on_terminals():
            pass
        assert not logging.is_progress_bar_enabled(), "what the user has turned off stays off"
    finally:
        logging.enable_progress_bar()
