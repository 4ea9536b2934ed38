# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Bad samples in training: stop at them, or train on others that follow from seed, draw and attempt."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_segformer.data import (
    DrawSampler,
    SegmentationData,
    StorageError,
    TrainingSamples,
    TrainingTransform,
    collate_samples,
    files,
    training_samples,
    undecoded,
)
from hf_segformer.data.segmentation_data import build_dataset, read_sample

COUNT = 12
TRANSFORM = TrainingTransform(crop_size=(16, 16))


@pytest.fixture
def data(tmp_path):
    """Pictures of which each has a colour of its own, so that it is seen which one was taken."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(COUNT):
        label = rng.integers(0, 3, (20, 24)).astype(np.uint8)
        images.append(str(tmp_path / f"p{index:02d}.png"))
        annotations.append(str(tmp_path / f"p{index:02d}_label.png"))
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(images[-1])
        Image.fromarray(label).save(annotations[-1])
    rows = build_dataset(images, annotations, [os.path.basename(name) for name in images])
    return SegmentationData(rows, rows, ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), name="made")


def damage(data, *indices, kind="image"):
    for index in indices:
        path = undecoded(data.train)[index][kind]["path"]
        with open(path, "wb") as file:
            file.write(b"no picture")


def expected_sample(data, index, stream):
    image, label = read_sample(undecoded(data.train)[index], data.annotation_format)
    image, label = TRANSFORM(image, label, np.random.default_rng(stream))
    return torch.from_numpy(image), torch.from_numpy(label)


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_good_draws_are_what_they_were(data, mode):
    samples = TrainingSamples(data, TRANSFORM, 5, mode)
    for draw in (0, 3, 17):
        image, label = expected_sample(data, samples.index_of(draw), [5, draw, 1])
        assert torch.equal(samples[draw]["pixel_values"], image) and torch.equal(samples[draw]["labels"], label)
        assert samples[draw]["bad_samples"] == []


@pytest.mark.parametrize("kind", ["image", "annotation"])
def test_stop_names_split_kind_and_file(data, kind, tmp_path, monkeypatch):
    samples = TrainingSamples(data, TRANSFORM, 5)
    damage(data, samples.index_of(3), kind=kind)
    monkeypatch.chdir(tmp_path)
    name = f"p{samples.index_of(3):02d}" + ("_label" if kind == "annotation" else "")
    what = "picture" if kind == "image" else "annotation"
    with pytest.raises(ValueError, match=rf"^train {what} {name}\.png: cannot read the picture"):
        samples[3]


def test_skip_takes_another_picture_and_tells(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = TrainingSamples(data, TRANSFORM, 5, "skip")
    own = samples.index_of(3)
    damage(data, own)
    (bad,) = samples[3]["bad_samples"]
    assert bad == {"draw": 3, "attempt": 0, "file_name": f"p{own:02d}.png", "reason": bad["reason"]}
    assert bad["reason"].startswith(f"train picture p{own:02d}.png: cannot read")
    assert json.loads(json.dumps(bad)) == bad and samples.file_of(3) == bad["file_name"]
    others = [index for index in range(COUNT) if index != own]
    matches = [
        index
        for index in others
        if torch.equal(samples[3]["pixel_values"], expected_sample(data, index, [5, 3, 3, 1])[0])
    ]
    assert len(matches) == 1


def test_replacements_follow_from_seed_draw_and_attempt(data):
    def taken(seed, draw):
        samples = TrainingSamples(data, TRANSFORM, seed, "skip")
        return samples[draw]

    bad = [0, 2, 3, 5, 6, 8, 9]
    damage(data, *bad)
    for draw in range(2 * COUNT):
        first, again = taken(1, draw), taken(1, draw)
        assert (
            torch.equal(first["pixel_values"], again["pixel_values"]) and first["bad_samples"] == again["bad_samples"]
        )
        assert [sample["attempt"] for sample in first["bad_samples"]] == list(range(len(first["bad_samples"])))
        names = [sample["file_name"] for sample in first["bad_samples"]]
        assert len(set(names)) == len(names)  # none is tried twice
    draws = [draw for draw in range(COUNT) if taken(1, draw)["bad_samples"]]
    assert len(draws) == len(bad)
    assert len({taken(1, draw)["pixel_values"].numpy().tobytes() for draw in draws}) == len(draws)


def test_one_good_picture_is_always_found(data):
    damage(data, *range(1, COUNT))
    samples = TrainingSamples(data, TRANSFORM, 0, "skip")
    for draw in range(COUNT):
        assert len(samples[draw]["bad_samples"]) < COUNT


@pytest.mark.parametrize(("most", "message"), [(20, "12 of 12"), (4, "4 of 4")])
def test_the_attempts_end(data, most, message, monkeypatch):
    monkeypatch.setattr(training_samples, "MAX_ATTEMPTS", most)
    damage(data, *range(COUNT), kind="annotation")
    match = rf"for draw 7, {message} samples tried are bad \(12 are there\); the first: train annotation "
    with pytest.raises(ValueError, match=match):
        TrainingSamples(data, TRANSFORM, 0, "skip")[7]


@pytest.mark.parametrize(
    ("number", "num_workers"), [(errno.EIO, 1), (errno.ESTALE, 0), (errno.ENOTCONN, 0), (errno.EAGAIN, 0)]
)
def test_a_drive_that_fails_is_never_skipped(data, number, num_workers, monkeypatch):
    monkeypatch.setattr(files, "RETRY_WAITS", (0.0,))
    real = os.open

    def fails(path, *arguments, **options):
        if "_label" in str(path):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fails)
    samples = TrainingSamples(data, TRANSFORM, 0, "skip")
    loader = DataLoader(samples, batch_sampler=DrawSampler(2), num_workers=num_workers, collate_fn=collate_samples)
    with pytest.raises(StorageError, match=r"p\d\d_label\.png: cannot be read now"):
        next(iter(loader))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_carry_what_was_skipped(data, num_workers):
    samples = TrainingSamples(data, TRANSFORM, 4, "skip")
    damage(data, samples.index_of(1), samples.index_of(5))
    sampler = DrawSampler(3, stop_step=2)
    loader = DataLoader(samples, batch_sampler=sampler, num_workers=num_workers, collate_fn=collate_samples)
    batches = list(loader)
    draws = [[bad["draw"] for bad in batch["bad_samples"] if bad["attempt"] == 0] for batch in batches]
    assert draws == [[1], [5]]
    assert batches[0]["pixel_values"].shape == (3, 3, 16, 16) and batches[0]["labels"].shape == (3, 16, 16)
    for batch, first in zip(batches, (0, 3), strict=True):
        for position in range(3):
            assert torch.equal(batch["pixel_values"][position], samples[first + position]["pixel_values"])
    copy = pickle.loads(pickle.dumps(samples))
    assert copy[1]["bad_samples"] == samples[1]["bad_samples"]


def test_embedded_pictures_are_named_by_name_and_row(data):
    def cells_of(column):
        return [{"bytes": Path(row[column]["path"]).read_bytes(), "path": None} for row in undecoded(data.train)]

    cells, labels = cells_of("image"), cells_of("annotation")
    cells[4] = {"bytes": b"x", "path": None}
    rows = build_dataset(cells, labels, [f"scene {i}\x1b.png" for i in range(COUNT)])
    embedded = SegmentationData(rows, rows, data.class_names, data.palette)
    samples = TrainingSamples(embedded, TRANSFORM, 0)
    draw = next(draw for draw in range(COUNT) if samples.index_of(draw) == 4)
    assert samples.file_of(draw) == "scene 4\\x1b.png (row 4)"
    with pytest.raises(ValueError, match=r"train picture scene 4\\x1b\.png \(row 4\): cannot read"):
        samples[draw]


def test_the_mode_is_checked(data):
    with pytest.raises(ValueError, match="on_bad_sample must be one of stop, skip, got 'ignore'"):
        TrainingSamples(data, TRANSFORM, 0, "ignore")
