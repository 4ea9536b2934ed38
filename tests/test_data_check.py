# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The check of all samples: shared by processes, limited in time, remembered; and what is done about bad ones."""

import json
import multiprocessing
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from example_scripts import forget_accelerate
from hf_segformer.data import StorageError, check_cache, check_dataset, files, load_dataset, validation
from hf_segformer.data.segmentation_data import check_sample, read_sample, undecoded
from hf_segformer.training import TrainArguments, count_class_pixels
from published_data import ADE_SPLITS, write_ade20k, zip_folder

COUNT = 70


def write(root, split, index, label=None, suffix=".jpg"):
    label = np.random.default_rng(index).integers(0, 3, (6, 8)).astype(np.uint8) if label is None else label
    Image.new("RGB", label.shape[::-1]).save(root / split / "images" / f"p{index:03d}{suffix}")
    path = root / split / "annotations" / f"p{index:03d}.png"
    Image.fromarray(label).save(path)
    return path


def age(root):
    """Let all files be an hour old: what has just been written is not remembered."""
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_CHECKS", str(tmp_path / "checks"))
    root = tmp_path / "set"
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (root / split / kind).mkdir(parents=True)
        for index in range(COUNT if split == "train" else 5):
            write(root, split, index)
    (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    age(root)
    return root


@pytest.fixture
def reads(monkeypatch):
    """Names of the samples that are really read."""
    names = []

    def counted(example, *arguments):
        names.append(example["file_name"])
        return check_sample(example, *arguments)

    monkeypatch.setattr(validation, "check_sample", counted)
    return names


BAD = np.full((6, 8), 7, np.uint8)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


# All samples


def test_all_samples_are_checked_by_default(root):
    data = load_dataset("folder", root)
    for index in (5, 66):
        write(root, "train", index, BAD)
    truncate(root / "train" / "images" / "p033.jpg")
    truncate(root / "val" / "annotations" / "p003.png")
    with pytest.raises(ValueError) as caught:
        check_dataset(data)
    lines = str(caught.value).splitlines()
    assert lines[0] == "folder: 3 of 70 checked train samples are wrong:"
    assert [f"p{index:03d}" in line for index, line in zip((5, 33, 66), lines[1:], strict=False)] == [True] * 3
    assert "train picture " in lines[2] and "truncated" in lines[2].lower()
    assert lines[4] == "folder: 1 of 5 checked validation samples are wrong:"
    assert "validation annotation " in lines[5]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp"])
def test_pictures_cut_short_are_found_whatever_their_format(root, suffix):
    (root / "train" / "images" / "p007.jpg").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = root / "train" / "images" / f"p007{suffix}"
    Image.fromarray(noise).save(path)
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(root / "train" / "annotations" / "p007.png")
    data = load_dataset("folder", root)
    assert check_dataset(data).checked["train"] == COUNT
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ValueError, match=rf"train picture .*p007\{suffix}: cannot read the picture"):
        check_dataset(data)
    with pytest.raises(ValueError, match="cannot read the picture"):
        data.read_sample(undecoded(data.train)[7])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_check_agrees_with_reading(root, orientation):
    """Sizes of turned pictures, seen without turning them."""
    image = Image.new("RGB", (80, 60))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(root / "train" / "images" / "p000.jpg", exif=exif)
    data = load_dataset("folder", root)
    row = undecoded(data.train)[0]
    for shape in ((60, 80), (80, 60)):
        Image.fromarray(np.ones(shape, np.uint8)).save(root / "train" / "annotations" / "p000.png")
        outcomes = []
        for read in (read_sample, check_sample):
            try:
                result = read(row, data.annotation_format, "train", 0)
                outcomes.append(np.asarray(result[1] if read is read_sample else result).tolist())
            except ValueError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def test_counts_are_those_of_reading(root):
    data = load_dataset("folder", root)
    report = check_dataset(data)
    assert list(report.pixel_counts["train"]) == count_class_pixels(data)[0]
    assert check_dataset(data) == report  # from memory


# Memory


def test_a_second_check_reads_what_has_changed(root, reads):
    data = load_dataset("folder", root)
    first = check_dataset(data)
    assert len(reads) == COUNT + 5
    reads.clear()
    assert check_dataset(data) == first and reads == []
    write(root, "train", 8)  # the same contents, another time
    os.rename(root / "train" / "annotations" / "p009.png", root / "moved.png")
    label = np.zeros((6, 8), np.uint8)
    write(root, "train", 9, label)
    changed = check_dataset(data)
    assert sorted(reads) == ["p008.jpg", "p009.jpg"]
    assert changed.pixel_counts != first.pixel_counts
    (root / "train" / "images" / "p010.jpg").unlink()
    reads.clear()
    with pytest.raises(
        ValueError, match=r"1 of 70 .*\n.*train picture .*p010\.jpg: cannot read the picture: it is missing"
    ):
        check_dataset(data)


def test_another_reading_is_another_memory(root, reads):
    check_dataset(load_dataset("folder", root))
    reads.clear()
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"], "ignore_index": 2}))
    report = check_dataset(load_dataset("folder", root))
    assert len(reads) == COUNT + 5 and report.ignored_pixels["train"] > 0
    (root / "classes.json").write_text(json.dumps(["a", "b"]))
    with pytest.raises(ValueError, match="samples are wrong"):
        check_dataset(load_dataset("folder", root, mask_format="ids"))


def test_bad_samples_are_not_remembered(root, reads):
    write(root, "train", 4, BAD)
    age(root)
    data = load_dataset("folder", root)
    for _ in range(2):
        reads.clear()
        with pytest.raises(ValueError, match="1 of 70 checked train samples are wrong"):
            check_dataset(data)
    assert reads == ["p004.jpg"]


def test_what_was_written_just_now_is_not_remembered(root, reads):
    """It could be written again within one tick of the clock that its time is taken from."""
    data = load_dataset("folder", root)
    write(root, "train", 4)
    for _ in range(2):
        reads.clear()
        check_dataset(data)
    assert reads == ["p004.jpg"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(b":[0,", b":[1,", 1),
        lambda text: b"\0" * len(text),
        lambda text: b"{}",
    ],
)
def test_damaged_memory_is_ignored_and_written_again(root, reads, damage):
    data = load_dataset("folder", root)
    first = check_dataset(data)
    for path in (root.parent / "checks").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    reads.clear()
    assert check_dataset(data) == first and len(reads) == COUNT + 5
    reads.clear()
    assert check_dataset(data) == first and reads == []


@pytest.mark.parametrize("entry", [[], [1, 2], [0, 99, 4], [-1], ["0"], None, {"a": 1}, [0, 1, 10**30]])
def test_entries_that_cannot_be_are_not_believed(monkeypatch, tmp_path, entry):
    monkeypatch.setenv("HF_SEGFORMER_CHECKS", str(tmp_path))
    check_cache.CheckCache("x", 3).add({"k": entry, "sound": [5, 2, 7]}, 10)
    cache = check_cache.CheckCache("x", 3)
    assert cache.get("k") is None and cache.get("sound") == [5, 2, 7]


def test_two_writers_lose_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_SEGFORMER_CHECKS", str(tmp_path))
    one, other = check_cache.CheckCache("x", 3), check_cache.CheckCache("x", 3)
    one.add({"a": [1]}, 10)
    other.add({"b": [2]}, 10)
    both = check_cache.CheckCache("x", 3)
    assert (both.get("a"), both.get("b")) == ([1], [2])
    both.add({f"n{i}": [i] for i in range(20)}, 10)
    assert check_cache.CheckCache("x", 3).get("n19") == [19]
    assert len(json.loads(next(tmp_path.iterdir()).read_text().partition("\n")[2])) == 10
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_folder_that_cannot_be_written_costs_a_warning(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_SEGFORMER_CHECKS", str(tmp_path / "file" / "checks"))
    with pytest.warns(UserWarning, match=r"cannot keep the results of the check.*HF_SEGFORMER_CHECKS names another"):
        assert check_dataset(load_dataset("folder", root)).checked["train"] == COUNT


def test_the_usual_place(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_SEGFORMER_CHECKS")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert check_cache.cache_folder() == tmp_path / "hf_segformer" / "checks"


def test_zip_files_and_embedded_pictures_are_remembered_too(tmp_path, monkeypatch, reads):
    monkeypatch.setenv("HF_SEGFORMER_CHECKS", str(tmp_path / "checks"))
    folder = write_ade20k(tmp_path / "source")
    archive = tmp_path / "ADEChallengeData2016.zip"
    zip_folder(folder, archive)
    age(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in (load_dataset("ade20k", archive), load_dataset("scenes", num_train=3, num_validation=2, size=64)):
            reads.clear()
            first = check_dataset(data)
            assert len(reads) == len(data.train) + len(data.validation)
            reads.clear()
            assert check_dataset(data) == first and reads == []
        os.utime(archive)
        check_dataset(load_dataset("ade20k", archive))
    assert len(reads) == 8


def test_nothing_of_the_machine_stands_in_the_memory(root):
    check_dataset(load_dataset("folder", root))
    assert all(str(root).encode() not in path.read_bytes() for path in (root.parent / "checks").iterdir())


# Time


def test_when_the_time_is_up_it_says_what_was_not_checked(root, reads, monkeypatch):
    data = load_dataset("folder", root)
    real = validation.check_sample
    monkeypatch.setattr(validation, "check_sample", lambda *a: (time.sleep(0.005), real(*a))[1])
    message = r"folder: checked (\d+) of 70 train samples, then the 0\.1 seconds of check_seconds were over"
    with pytest.warns(UserWarning, match=message):
        report = check_dataset(data, num_workers=1, seconds=0.1)
    assert report.checked["validation"] == 5 and 0 < report.checked["train"] < COUNT
    assert len(reads) == report.checked["train"] + 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_dataset(data).checked == {"train": COUNT, "validation": 5}
    assert len(reads) == COUNT + 5  # it went on with the rest


def test_no_time_at_all(root):
    with pytest.warns(UserWarning, match="checked 0 of 5 validation samples"):
        assert check_dataset(load_dataset("folder", root), seconds=1e-9).checked == {"train": 0, "validation": 0}


# Bad samples


def test_bad_training_samples_can_be_skipped(root):
    data = load_dataset("folder", root)
    write(root, "train", 4, BAD)
    (root / "train" / "images" / "p009.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"(?s)2 of 70 checked train samples are wrong:.*p004.*p009.*other samples"):
        report = check_dataset(data, on_bad_sample="skip")
    assert len(report.bad["train"]) == 2 and report.checked["train"] == COUNT


def test_bad_validation_samples_cannot_be_skipped(root):
    data = load_dataset("folder", root)
    (root / "val" / "images" / "p001.jpg").unlink()
    with pytest.raises(ValueError, match=r"(?s)1 of 5 checked validation .*skip passes over training samples only"):
        check_dataset(data, on_bad_sample="skip")


def test_all_training_samples_bad(root):
    data = load_dataset("folder", root)
    for path in (root / "train" / "images").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match="70 of 70 checked train samples are wrong"):
        check_dataset(data, on_bad_sample="skip")


def test_a_bad_annotation_among_those_that_loading_looks_at(root):
    (root / "train" / "annotations" / "p000.png").write_bytes(b"x")
    flags = {"dataset": "folder", "data_root": str(root), "max_steps": 40}
    with pytest.raises(ValueError, match=r"p000\.png: cannot read the picture"):
        TrainArguments(**flags).load_data()
    data = TrainArguments(**flags, on_bad_sample="skip").load_data()
    with pytest.raises(ValueError, match=r"train annotation .*p000\.png"):
        count_class_pixels(data)
    assert sum(count_class_pixels(data, "skip")[0]) == (COUNT - 1) * 48
    for index in range(COUNT):
        (root / "train" / "annotations" / f"p{index:03d}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"p000\.png: cannot read the picture"):
        TrainArguments(**flags, on_bad_sample="skip").load_data()


# Flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"check": "some"}, "check must be one of all, sample, none, got 'some'"),
        ({"check_seconds": -1.0}, "check_seconds must be >= 0, got -1"),
        ({"check_seconds": float("nan")}, "check_seconds must be >= 0, got nan"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample must be one of stop, skip, got 'ignore'"),
    ],
)
def test_flags_are_checked(flags, message):
    with pytest.raises(ValueError, match=message):
        TrainArguments(**flags)


def test_flags_that_a_resumed_run_may_change():
    """One that stopped at a bad sample goes on by skipping it."""
    changed = {"check": "none", "check_seconds": 1, "allow_outside_files": True, "on_bad_sample": "skip"}
    assert TrainArguments().settings(1) == TrainArguments(**changed).settings(1)


@pytest.mark.parametrize(("check", "expected"), [("all", COUNT), ("sample", 9), ("none", 0)])
def test_how_much_is_checked(root, reads, monkeypatch, check, expected):
    monkeypatch.setattr("hf_segformer.data.arguments.SAMPLE", 9)
    args = TrainArguments(dataset="folder", data_root=str(root), check=check)
    args.check_data(args.load_data(), ("train", "validation"))
    assert len(reads) == (expected + 5 if expected else 0)


def test_no_check_still_needs_the_splits(tmp_path):
    args = TrainArguments(dataset="ade20k", data_root=str(write_ade20k(tmp_path, splits=ADE_SPLITS[:1])), check="none")
    with pytest.raises(ValueError, match=r"no such folder: .*validation"):
        args.check_data(args.load_data(), ("train", "validation"))


# Processes


def check_as_one_of_two(task):
    rank, port, root, mode = task
    where = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in where.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    from accelerate import Accelerator

    forget_accelerate()  # what the process that this one was forked from may have set up
    files.RETRY_WAITS = (0.0,)
    accelerator, read = Accelerator(cpu=True), []
    real = check_sample
    validation.check_sample = lambda example, *rest: (read.append(example["file_name"]), real(example, *rest))[1]
    assert accelerator.num_processes == 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = check_dataset(load_dataset("folder", root), accelerator=accelerator, on_bad_sample=mode)
        except (ValueError, StorageError) as error:
            result = f"{type(error).__name__}: {error}"
    accelerator.end_training()
    return result, read, [str(warning.message) for warning in caught]


def in_two_processes(root, mode="stop"):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(check_as_one_of_two, [(rank, port, root, mode) for rank in range(2)]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_processes_share_the_work_and_agree(root):
    expected = check_dataset(load_dataset("folder", root))
    for path in (root.parent / "checks").iterdir():
        path.unlink()
    (one, mine, _), (other, theirs, _) = in_two_processes(root)
    assert one == other == expected
    assert len(mine) + len(theirs) == COUNT + 5 and min(len(mine), len(theirs)) >= 5
    assert [result[1] for result in in_two_processes(root)] == [[], []]  # both remember what either has read


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_processes_stop_together(root):
    write(root, "train", 66, BAD)
    (one, *_), (other, *_) = in_two_processes(root)
    assert one == other and "1 of 70 checked train samples are wrong" in one and "p066" in one
    (one, _, told), (other, _, silent) = in_two_processes(root, "skip")
    assert one == other and len(one.bad["train"]) == 1
    assert len(told) == 1 and silent == []
    path = Path(root / "train" / "images" / "p003.jpg")
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading it gives EIO
    (one, *_), (other, *_) = in_two_processes(root)
    assert one == other and one.startswith("StorageError: ") and "p003.jpg: cannot be read now" in one
