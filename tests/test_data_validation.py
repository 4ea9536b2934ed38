# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The check at the door: finds every bad sample, names files, warns about classes that never occur."""

import re
import warnings

import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import MissingSplit, SegmentationData, check_dataset
from hf_segformer.data.segmentation_data import build_dataset

NAMES = ("a", "b", "c")
PALETTE = ((1, 0, 0), (2, 0, 0), (3, 0, 0))


def write(folder, name, label, image_size=None):
    height, width = image_size or label.shape
    Image.new("RGB", (width, height)).save(folder / f"{name}.jpg")
    Image.fromarray(label).save(folder / f"{name}.png")


def labels(count, values=(0, 1, 2, 255)):
    rng = np.random.default_rng(0)
    return [rng.choice(values, (6, 8)).astype(np.uint8) for _ in range(count)]


def make_data(folder, count, names=NAMES, **changes):
    def rows(split):
        stems = [f"{split}{i:03d}" for i in range(count)]
        images, annotations = ([str(folder / f"{stem}.{kind}") for stem in stems] for kind in ("jpg", "png"))
        return build_dataset(images, annotations, [f"{stem}.jpg" for stem in stems])

    fields = {"train": rows("t"), "validation": rows("v"), "class_names": names, "palette": PALETTE, "name": "made"}
    return SegmentationData(**fields | changes)


@pytest.fixture
def folder(tmp_path):
    for split in "tv":
        for i, label in enumerate(labels(20)):
            write(tmp_path, f"{split}{i:03d}", label)
    return tmp_path


def test_sound_data(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_dataset(make_data(folder, 20))
    every = np.stack(labels(20))
    assert report.checked == {"train": 20, "validation": 20}
    assert report.pixel_counts["train"] == tuple(int((every == i).sum()) for i in range(3))
    assert report.ignored_pixels["validation"] == int((every == 255).sum())


@pytest.mark.parametrize("num_workers", [1, 4])
def test_all_bad_samples_are_counted_and_the_first_described(folder, num_workers):
    bad = np.full((6, 8), 7, np.uint8)
    for i in (3, 4, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19):
        write(folder, f"v{i:03d}", bad)
    write(folder, "v004", bad[:, :5], (6, 8))
    (folder / "v008.png").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        check_dataset(make_data(folder, 20), num_workers=num_workers)
    lines = str(caught.value).splitlines()
    assert lines[0] == "made: 12 of 20 checked validation samples are wrong:"
    assert re.search(r"v003\.png: 48 pixels have labels outside 0\.\.2 \(K=3 .*: 7;", lines[1])
    assert re.search(r"v004\.png: annotation is 5x6 .* is 8x6", lines[2])
    assert re.search(r"v008\.png: cannot read", lines[3])
    assert len(lines) == 12 and lines[11].strip() == "... and 2 more"


def test_large_splits_are_sampled_evenly_with_both_ends(folder):
    bad = np.full((6, 8), 7, np.uint8)
    write(folder, "t005", bad)
    data = make_data(folder, 20)
    assert check_dataset(data, max_samples=4).checked == {"train": 4, "validation": 4}  # 0, 6, 13, 19
    write(folder, "t019", bad)
    with pytest.raises(ValueError, match="1 of 4 checked train samples"):
        check_dataset(data, max_samples=4)


def test_class_that_never_occurs(tmp_path):
    for split in "tv":
        for i, label in enumerate(labels(4, (0, 2))):
            write(tmp_path, f"{split}{i:03d}", label)
    with pytest.warns(UserWarning, match=r"no pixel of b in the 4 checked training samples \(of 4\)"):
        check_dataset(make_data(tmp_path, 4))


def test_binary_masks_read_as_ids(tmp_path):
    for split in "tv":
        for i, label in enumerate(labels(4, (0, 255))):
            write(tmp_path, f"{split}{i:03d}", label)
    with pytest.warns(UserWarning, match=r"no pixel of b .* use mask_format 'binary'"):
        check_dataset(make_data(tmp_path, 4, names=("a", "b")))


def test_empty_split(folder):
    data = make_data(folder, 3, validation=build_dataset([], [], []))
    with pytest.raises(ValueError, match="made: the validation split is empty"):
        check_dataset(data)


def test_max_samples(folder):
    with pytest.raises(ValueError, match="max_samples must be at least 1, got 0"):
        check_dataset(make_data(folder, 3), max_samples=0)


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_missing_splits_are_passed_over_unless_asked_for(folder, missing):
    there = "validation" if missing == "train" else "train"
    data = make_data(folder, 20, **{missing: MissingSplit("no such folder: X")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_dataset(data)
        assert report == check_dataset(data, splits=(there,))
    assert report.checked == {there: 20} and list(report.pixel_counts) == list(report.ignored_pixels) == [there]
    with pytest.raises(ValueError, match="no such folder: X"):
        check_dataset(data, splits=("train", "validation"))


def test_only_the_asked_split_is_read(folder):
    (folder / "t003.png").write_bytes(b"")
    assert check_dataset(make_data(folder, 20), splits=("validation",)).checked == {"validation": 20}
    with pytest.raises(ValueError, match="1 of 20 checked train samples"):
        check_dataset(make_data(folder, 20))


def test_unknown_split(folder):
    with pytest.raises(ValueError, match="splits may hold train and validation, got 'val'"):
        check_dataset(make_data(folder, 3), splits=("val",))


def test_streamed_splits(folder):
    data = make_data(folder, 20)
    streamed = make_data(folder, 20, train=data.train.to_iterable_dataset())
    assert check_dataset(streamed) == check_dataset(data)
    assert check_dataset(streamed, max_samples=4).checked == {"train": 4, "validation": 4}
    (folder / "t002.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"made: 1 of 4 checked train samples are wrong:\n  .*t002\.png: cannot read"):
        check_dataset(streamed, max_samples=4)
