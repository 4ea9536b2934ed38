# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Streamed splits: every sample comes to exactly one process and worker, with the pixels it has on disk."""

import itertools

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from hf_segformer.data import MissingSplit, check_dataset, load_dataset, stream_split
from published_data import random_label, random_photo, write_ade20k, write_cityscapes, zip_folder

COUNT = 11  # neither 2 nor 3 divides it


@pytest.fixture(autouse=True)
def no_rest_for_threads(monkeypatch):
    """`datasets` sleeps for 5 seconds after each shuffled pass over parquet files."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    folder = write_ade20k(
        tmp_path_factory.mktemp("ade"), splits=(("training", "train", COUNT), ("validation", "val", 1))
    )
    return load_dataset("ade20k", folder)


@pytest.fixture(scope="module")
def zipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zip")
    unpacked = write_ade20k(
        tmp_path_factory.mktemp("to_zip"), splits=(("training", "train", COUNT), ("validation", "val", 1))
    )
    zip_folder(unpacked, folder / "ADEChallengeData2016.zip")
    return load_dataset("ade20k", folder)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Five files, of which the last has a row less: neither 2 nor 3 processes get whole files each."""
    folder = tmp_path_factory.mktemp("parquet")
    features = datasets.Features(picture=datasets.Image(), mask=datasets.Image(), weight=datasets.Value("float32"))
    rows = list(range(COUNT))
    for part in range(5):
        mine = rows[part::5]
        columns = {
            "picture": [Image.fromarray(random_photo(i, (7, 9))) for i in mine],
            "mask": [Image.fromarray(random_label(i, range(20), (7, 9))) for i in mine],
            "weight": [1.0] * len(mine),
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / f"train-{part:05d}-of-00005.parquet")
    return folder


def streamed_parquet(folder, **options):
    names = [f"class {k}" for k in range(19)]
    return load_dataset(
        "parquet",
        folder,
        image_column="picture",
        class_names=names,
        reduce_zero_label=True,
        streaming=True,
        cache_dir=folder / "cache",
        **options,
    )


def fingerprints(data, rows):
    return [image.tobytes() + label.tobytes() for image, label in map(data.read_sample, rows)]


def expected(data):
    if isinstance(data.train, datasets.Dataset):
        return sorted(fingerprints(data, data.train))
    values = [random_label(i, range(20), (7, 9)) for i in range(COUNT)]
    reduced = [np.where(v == 0, 255, v - 1).astype(np.uint8) for v in values]
    return sorted(random_photo(i, (7, 9)).tobytes() + label.tobytes() for i, label in enumerate(reduced))


@pytest.fixture(params=["folders", "zip", "parquet"])
def data(request):
    if request.param == "parquet":
        return streamed_parquet(request.getfixturevalue("parquet"))
    return request.getfixturevalue("ade" if request.param == "folders" else "zipped")


@pytest.mark.parametrize("shuffle_seed", [None, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_comes_to_one_process(data, world_size, shuffle_seed):
    streams = [stream_split(data, "train", rank, world_size, shuffle_seed=shuffle_seed) for rank in range(world_size)]
    seen = [fingerprints(data, stream) for stream in streams]
    every = list(itertools.chain(*seen))
    assert sorted(every) == expected(data) and len(set(every)) == COUNT and all(seen)


@pytest.mark.parametrize("shards_per_process", [1, 2, 100])
@pytest.mark.parametrize("world_size", [2, 3, 13])
def test_any_number_of_shards(ade, world_size, shards_per_process):
    streams = [stream_split(ade, "train", r, world_size, shards_per_process) for r in range(world_size)]
    names = [[row["file_name"] for row in stream] for stream in streams]
    assert sorted(itertools.chain(*names)) == ade.train["file_name"][:]
    if world_size < COUNT:
        assert max(map(len, names)) - min(map(len, names)) <= 1


def test_every_sample_comes_to_one_worker(data):
    """Two processes with two workers each."""
    seen = []
    for rank in range(2):
        stream = stream_split(data, "train", rank, 2)
        loader = DataLoader(stream, batch_size=None, num_workers=2, collate_fn=data.read_sample)
        seen += [image.tobytes() + label.tobytes() for image, label in loader]
    assert sorted(seen) == expected(data)


def test_columns(data):
    stream = stream_split(data)
    assert isinstance(stream, datasets.IterableDataset)
    row = next(iter(stream))
    assert list(row) == ["image", "annotation", "file_name"] == stream.column_names
    assert isinstance(row["file_name"], str) and row["file_name"]


def test_order_is_kept_or_shuffled_anew_in_each_epoch(ade):
    names = ade.train["file_name"][:]
    assert [row["file_name"] for row in stream_split(ade)] == names
    stream = stream_split(ade, shuffle_seed=1)
    first = [row["file_name"] for row in stream]
    assert first == [row["file_name"] for row in stream_split(ade, shuffle_seed=1)] != names
    stream.set_epoch(1)
    assert sorted(first) == names and [row["file_name"] for row in stream] != first


def test_streamed_parquet_files(parquet):
    data = streamed_parquet(parquet)
    assert isinstance(data.train, datasets.IterableDataset) and isinstance(data.validation, MissingSplit)
    assert data.annotation_format.reduce_zero_label and data.num_classes == 19
    with pytest.raises(ValueError, match="no validation split, and none can be held out of a streamed data set"):
        next(iter(data.validation))
    assert check_dataset(data).checked == {"train": COUNT}
    assert check_dataset(data, max_samples=3).checked == {"train": 3}


def test_streamed_data_with_a_validation_split(parquet, tmp_path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.parquet").write_bytes((parquet / f"train-{0:05d}-of-00005.parquet").read_bytes())
    data = streamed_parquet(tmp_path)
    assert len(list(data.validation)) == 3 == len(list(stream_split(data, "validation")))


def test_stream_finds_bad_annotations(parquet):
    with pytest.raises(
        ValueError,
        match=r"11 of 11 checked train samples are wrong:\n  train annotation train \(row 0\): \d+ pixels .*: 19",
    ):
        data = load_dataset(
            "parquet",
            parquet,
            image_column="picture",
            class_names=[f"class {k}" for k in range(19)],
            streaming=True,
            cache_dir=parquet / "cache",
        )
        check_dataset(data)


def test_bad_arguments(ade, tmp_path):
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.1, got 2"):
        stream_split(ade, rank=2, world_size=2)
    missing = load_dataset("cityscapes", write_cityscapes(tmp_path, splits=("val",)))
    with pytest.raises(ValueError, match=r"no such folder: .*leftImg8bit/train"):
        stream_split(missing)
