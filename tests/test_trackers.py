# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers, run for real: what they hold of a run, also of one that was stopped and went on."""

import json
import os
import struct
import time
from types import SimpleNamespace

import accelerate.tracking
import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from example_scripts import kept_process
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.cli import COMMANDS
from hf_segformer.evaluation.pictures import ShownPicture, tracked_pictures
from hf_segformer.training import TrainArguments
from hf_segformer.training.run import Run
from hf_segformer.training.trackers import run_id, score_names, tracker_names
from hf_segformer.training.wandb_log import last_logged_step, logged_steps
from scene_folder import write_scene_folder

KNOWN = ["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


class Stopped(RuntimeError):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Flags of a run of six steps, evaluated at steps 2, 4 and 6, saved after 3 and 6."""
    root = tmp_path_factory.mktemp("tracked")
    write_scene_folder(root / "pictures", 4, 7)
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=11)).save_pretrained(root / "start")
    flags = ["--dataset", "folder", "--data_root", root / "pictures", "--model", root / "start", "--max_steps", 6]
    flags += ["--crop_size", 32, "--batch_size", 2, "--num_workers", 0, "--num_threads", 1, "--log_every", 1]
    return [str(word) for word in [*flags, "--eval_every", 2, "--save_every", 3]]


def stopped_and_resumed(words, output_dir, report_to, monkeypatch, meanwhile=lambda: None):
    """Train, stop after step 5, of which no state is left, and go on from step 3."""
    take_step = Run.take_step

    def stops(run, batches):
        if run.progress.step == 5:
            raise Stopped
        return take_step(run, batches)

    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    words = [*words, "--output_dir", str(output_dir), "--report_to", report_to]
    with kept_process(), monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Run, "take_step", stops)
        COMMANDS["train"].main(words)
    meanwhile()
    with kept_process():
        COMMANDS["train"].main([*words, "--resume"])
    # wandb's own process may write its last row a moment after it was told to finish.
    deadline = time.monotonic() + 20
    while (
        "wandb" in report_to
        and last_logged_step(output_dir / "wandb", run_id(output_dir)) < 6
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)


# ---- which


@pytest.mark.parametrize(
    "report_to", ["tensorbord", "TensorBoard", "tensorboard,", "", "none,tensorboard", "a,b", "list"]
)
def test_an_unknown_name_lists_the_known_ones(report_to):
    with pytest.raises(ValueError, match="report_to must be none, all, or trackers") as raised:
        TrainArguments(report_to=report_to)
    assert ", ".join(KNOWN) in str(raised.value)
    wrong = next(name for name in report_to.split(",") if name not in KNOWN)
    assert f"got {wrong!r}" in str(raised.value)
    assert ("did you mean tensorboard?" in str(raised.value)) == ("tensorb" in wrong.lower())


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_one_that_is_not_installed_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
    with pytest.raises(ValueError, match=f"report_to {name} is not installed: pip install {name}") as raised:
        TrainArguments(report_to=name)
    assert ("Pillow" in str(raised.value)) == (name == "trackio")
    with pytest.raises(ValueError, match="report_to all finds no tracker installed"):
        tracker_names("all")


def test_which_trackers_a_flag_names(monkeypatch):
    assert tracker_names(None) == tracker_names("none") == []
    assert tracker_names("tensorboard, tensorboard") == ["tensorboard"]
    assert tracker_names("all") == ["all"]
    own = type("Own", (accelerate.tracking.GeneralTracker,), {"name": "own", "requires_logging_directory": False})
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "own", own)
    assert tracker_names("own,tensorboard") == ["own", "tensorboard"]


def test_a_wrong_tracker_leaves_nothing_behind(words, tmp_path):
    with pytest.raises(ValueError, match="report_to"):
        COMMANDS["train"].main([*words, "--output_dir", str(tmp_path / "out"), "--report_to", "tensorboard,mlfow"])
    assert not list(tmp_path.iterdir())


def test_what_is_left_of_a_run_that_saved_nothing(words, tmp_path, monkeypatch):
    """Neither refusal sends the user to the other one."""

    def stops(run, batches):
        raise Stopped

    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    words = [*words, "--output_dir", str(tmp_path / "out"), "--report_to", "tensorboard"]
    with kept_process(), monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Run, "take_step", stops)
        COMMANDS["train"].main(words)
    with kept_process(), pytest.raises(ValueError, match=r"must be new or empty.*no saved state.*empty it, or choose"):
        COMMANDS["train"].main(words)
    with kept_process(), pytest.raises(ValueError, match=r"no saved state.* without --resume, in a new or empty fold"):
        COMMANDS["train"].main([*words, "--resume"])
    with kept_process(), pytest.raises(ValueError, match=r"no saved state to resume; start the run without --resume$"):
        COMMANDS["train"].main([*words, "--resume", "--output_dir", str(tmp_path / "other")])


# ---- what they are told


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["road", "side walk"], ["road", "side_walk"]),
        (["a b", "a_b", "c"], ["0_a_b", "1_a_b", "c"]),
        (["Car", "car"], ["0_Car", "1_car"]),  # files of one name on some disks
        (["iou/x", "x.y", "Straße"], ["iou_x", "x_y", "Straße"]),  # neither groups nor parts
        (["a\nb", "a\x00b"], ["a_nb", "a_x00b"]),
        (["", ""], ["0_", "1_"]),
    ],
)
def test_classes_keep_apart(names, told):
    assert score_names(names) == told


def test_pictures_for_trackers_are_small():
    image, labels = np.zeros((900, 1600, 3), np.uint8), np.zeros((900, 1600), np.int64)
    shown = tracked_pictures([ShownPicture("a", image, labels, labels + 1)], [(255, 0, 0), (0, 0, 255)])
    assert {name: picture.shape for name, picture in shown.items()} == {"truth_and_prediction/a": (216, 768, 3)}
    truth, prediction = np.split(shown["truth_and_prediction/a"], 2, axis=1)
    assert truth[50, 50].argmax() == 0 and prediction[50, 50].argmax() == 2


def test_tensorboard_of_a_run_that_was_stopped(words, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped_and_resumed(words, tmp_path, "tensorboard", monkeypatch)
    with kept_process():  # with no step left to take
        COMMANDS["train"].main([*words, "--output_dir", str(tmp_path), "--report_to", "tensorboard", "--resume"])
    events = EventAccumulator(str(tmp_path / "segformer"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    history = {}
    for entry in json.loads((tmp_path / "states/step-00000006/progress.json").read_text())["history"]:
        history.setdefault(entry["step"], {}).update(entry)
    tags = events.Tags()
    for name, steps in (("loss", range(1, 7)), ("learning_rate", range(1, 7)), ("mean_iou", (2, 4, 6))):
        assert [event.step for event in events.Scalars(name)] == list(steps)
        for event in events.Scalars(name):
            if name in history[event.step]:  # the last scores come after the last state
                assert event.value == pytest.approx(history[event.step][name], rel=1e-6)
    assert {"overall_accuracy", "mean_accuracy", "iou/sky", "iou/building"} <= set(tags["scalars"])
    assert len(tags["images"]) == 6
    for name in tags["images"]:
        assert [event.step for event in events.Images(name)] == [2, 4, 6]
        assert (events.Images(name)[0].width, events.Images(name)[0].height) == (192, 72)
    settings = [path for path in (tmp_path / "segformer").iterdir() if path.is_dir()]
    assert len([path for path in settings if (path / "hparams.yml").exists()]) == 1


# ---- wandb


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """wandb as on a machine without network and account."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    wandb.teardown()  # it reads its settings once a process
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "home").mkdir()
    yield tmp_path / "out"
    wandb.teardown()


def rows_of(path):
    """Rows of a file of wandb, by the steps."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for content in level_db_records(path.read_bytes()[7:]):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def level_db_records(data):
    """Records of a LevelDB log, whose first block lacks the seven bytes before it."""
    blocks = [data[: 32768 - 7], *(data[start : start + 32768] for start in range(32768 - 7, len(data), 32768))]
    record = b""
    for block in blocks:
        while len(block) > 6:
            length, kind = struct.unpack("<HB", block[4:7])
            record, block = record + block[7 : 7 + length], block[7 + length :]
            if kind in (1, 4):
                yield record
                record = b""


def test_wandb_without_network_of_a_run_that_was_stopped(words, offline, monkeypatch):
    stopped_and_resumed(words, offline, "wandb", monkeypatch)
    files = sorted((offline / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and files[0].name == files[1].name
    assert json.loads((offline / "trackers.json").read_text()) == {"wandb": files[0].stem.removeprefix("run-")}
    assert [logged_steps(path) for path in files] == [[1, 2, 3, 4, 5], [6]]
    rows = {row["_step"]: row for path in files for row in rows_of(path)}
    assert all({"loss", "learning_rate"} <= row.keys() for row in rows.values())
    for step in (2, 4, 6):
        assert {"mean_iou", "overall_accuracy", "iou/sky"} <= rows[step].keys()
        names = [
            name for name in rows[step] if name.startswith("truth_and_prediction/") and name.endswith("/filenames")
        ]
        pictures = [file for name in names for file in rows[step][name]]
        assert len(names) == len(pictures) == 6
        for picture in pictures:
            (path,) = (offline / "wandb").glob(f"offline-run-*/files/{picture}")
            assert Image.open(path).size == (192, 72)


def test_wandb_is_told_what_a_kill_lost(words, offline, monkeypatch):
    """Rows that were not written yet when the process died; the state has them."""

    def kill():
        (path,) = (offline / "wandb").glob("offline-run-*/run-*.wandb")
        while len(logged_steps(path)) > 1:
            os.truncate(path, path.stat().st_size - 50)

    stopped_and_resumed(words, offline, "wandb", monkeypatch, kill)
    files = sorted((offline / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [logged_steps(path) for path in files] == [[1], [2, 3, 4, 5, 6]]
    history = json.loads((offline / "states/step-00000006/progress.json").read_text())["history"]
    for row in rows_of(files[1]):
        told = {name: value for entry in history if entry["step"] == row["_step"] for name, value in entry.items()}
        assert {name: row[name] for name in told if name in ("loss", "learning_rate")}.items() <= told.items()
        assert row["_step"] == 6 or row.get("mean_iou") == told.get("mean_iou")


@pytest.mark.parametrize("names", ["wandb", "tensorboard,wandb"])
def test_wandb_without_an_account_says_so(names, words, offline, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    for _ in range(2):  # what failed to start does not occupy the folder
        with kept_process(), pytest.raises(ValueError, match=rf"report_to {names} cannot start: .*API key"):
            COMMANDS["train"].main([*words, "--output_dir", str(offline), "--report_to", names])


def chunked(contents, block=1 << 15):
    """A LevelDB log behind wandb's header, written by the description of the format."""
    data = bytearray(b":W&B\xe1\xbe\x00")
    for content in contents:
        first = True
        while True:
            left = block - len(data) % block
            if left < 7:
                data += bytes(left)
                continue
            piece, content = content[: left - 7], content[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not content]
            data += struct.pack("<IHB", 0, len(piece), kind) + piece
            first = False
            if not content:
                break
    return bytes(data)


def test_steps_in_a_file_that_is_cut_off_anywhere(tmp_path):
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is not installed")
    contents, rng = [], np.random.default_rng(0)
    for step in range(1, 40):
        record = pb.Record()
        record.history.step.num = step
        record.history.item.add(key="x", value_json=json.dumps("x" * int(rng.integers(1, 9000))))
        contents += [record.SerializeToString(), pb.Record(telemetry={}).SerializeToString()]
    data = chunked(contents)
    assert len(data) > 4 << 15
    path = tmp_path / "offline-run-1-abc" / "run-abc.wandb"
    path.parent.mkdir()
    path.write_bytes(data)
    assert logged_steps(path) == list(range(1, 40)) and last_logged_step(tmp_path, "abc") == 39
    assert last_logged_step(tmp_path, "other") == -1
    lengths = []
    for end in [*range(12), *rng.integers(0, len(data), 60), 1 << 15, (1 << 15) + 3]:
        path.write_bytes(data[:end])
        steps = logged_steps(path)
        assert steps == list(range(1, len(steps) + 1))
        lengths.append((end, len(steps)))
    assert [count for _, count in sorted(lengths)] == sorted(count for _, count in lengths)
    for other in (b"", b"another file", data[:7] + b"\xff" * 999, b":W&B\xe1\xbe\x09" + data[7:]):
        path.write_bytes(other)
        assert logged_steps(path) == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"wandb": 3}', b'{"wandb": "a/b"}', b'{"wandb": ""}', b"\xff"]
)
def test_a_damaged_id_is_named(content, tmp_path):
    (tmp_path / "trackers.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"trackers\.json"):
        run_id(tmp_path)


def test_an_id_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    assert run_id(tmp_path) == run_id(tmp_path)
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path / "other") != run_id(tmp_path)
    assert SimpleNamespace(**json.loads((tmp_path / "trackers.json").read_text())).wandb == run_id(tmp_path)
