# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of parquet files in groups and folds, as pictures in folders are."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import load_any, load_dataset
from hf_segformer.data.tolerance import tolerant_probes

COUNT = 12


@pytest.fixture(autouse=True)
def checks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_CHECKS", str(tmp_path / "checks"))


def png(values):
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(root, splits=("train",), names="path", count=COUNT):
    """Parquet files; rows 3 and 7 alone have the third class, every patient has two pictures."""
    for split in splits:
        rows = {"image": [], "label": []}
        for index in range(count):
            values = np.zeros((8, 9))
            values[:2], values[2:4] = 1, 2 * (index in (3, 7))
            name = f"{split}_patient{index // 2}_{index}.png"
            picture = np.random.default_rng(index).integers(0, 255, (8, 9, 3))
            rows["image"].append({"bytes": png(picture), "path": name if names == "path" else None})
            rows["label"].append({"bytes": png(values), "path": None})
            if names == "column":
                rows.setdefault("file_name", []).append(name)
        features = {"image": datasets.Image(), "label": datasets.Image()}
        if names == "column":
            features["file_name"] = datasets.Value("string")
        root.mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    (root / "classes.txt").write_text("x\ny\nz\n")
    return root


def names(data):
    return [sorted(getattr(data, side)["file_name"][:]) for side in ("train", "validation")]


def patients(side):
    return {name.rpartition("_")[0] for name in side}


@pytest.mark.parametrize("kind", ["path", "column"])
def test_groups_stay_together(tmp_path, kind):
    root = write(tmp_path / "in", names=kind)
    data = load_any(root, group_by=r"patient(\d+)", validation_fraction=0.34)
    train, validation = names(data)
    assert len(train) + len(validation) == COUNT and not patients(train) & patients(validation)
    assert "4 of 12 held out (seed 0, 6 groups)" in data.description and data.description.startswith("parquet: ")
    for side, rows in (("train", data.train), ("validation", data.validation)):
        assert max(data.read_sample(row, side)[1].max() for row in rows) == 2  # the rare class is on both
    assert names(load_dataset("parquet", root, group_by=r"patient(\d+)", validation_fraction=0.34)) == [
        train,
        validation,
    ]


def test_folds_hold_out_every_row_once_but_those_for_tests(tmp_path):
    root = write(tmp_path / "in", ("train", "validation", "test"))
    parts = [load_any(root, folds=4, fold=fold) for fold in range(4)]
    held_out = [names(data)[1] for data in parts]
    expected = [f"{split}_patient{k // 2}_{k}.png" for split in ("train", "validation") for k in range(COUNT)]
    assert sorted(name for part in held_out for name in part) == sorted(expected) and {
        len(part) for part in held_out
    } == {6}
    assert "fold 1 of 0..3: 6 of 24 held out (seed 0) (not used: 12 test)" in parts[1].description
    assert names(load_any(root, folds=4, fold=0, split_seed=1))[1] != held_out[0]
    data = load_any(root, folds=3, fold=0, group_by=r"(\w+_patient\d+)")
    assert not patients(names(data)[0]) & patients(names(data)[1])


def test_rows_without_names(tmp_path):
    root = write(tmp_path / "in", names="none")
    rule = r"in: group_by needs the names of files, and row 0 of split 'train' has none: .* no column file_name"
    with pytest.raises(ValueError, match=rule):
        load_any(root, group_by="x")
    assert len(load_any(root, folds=3, fold=2).validation) == 4  # needs none
    with pytest.raises(
        ValueError, match=r"group_by 'x' must be found in the name of every picture, not in 'train_pat"
    ):
        load_any(write(tmp_path / "named"), group_by="x")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"folds": 3}, r"fold must be in 0\.\.2, got None"),
        ({"fold": 1}, "fold goes with folds"),
        ({"folds": 3, "fold": 1, "streaming": True}, "group_by and folds need all rows at hand"),
        ({"group_by": "("}, "group_by must be a regular expression"),
        ({"folds": 30, "fold": 1}, "at least 30 pictures are needed"),
        ({"group_by": "a", "train_split": "night"}, "no split 'night'"),
    ],
)
def test_wrong_options(tmp_path, options, rule):
    with pytest.raises(ValueError, match=rule):
        load_any(write(tmp_path / "in"), **options)


def test_a_damaged_annotation_is_left_to_the_check(tmp_path):
    root = write(tmp_path / "in")
    table = datasets.Dataset.from_parquet(str(next(root.glob("*.parquet")))).cast_column(
        "label", datasets.Image(decode=False)
    )
    rows = table.to_list()
    rows[4]["label"]["bytes"] = b"no picture"
    datasets.Dataset.from_list(rows, features=table.features).to_parquet(root / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="cannot read the picture"):
        load_any(root, folds=3, fold=0)
    with tolerant_probes():
        data = load_any(root, folds=3, fold=0)
    assert len(data.train) + len(data.validation) == COUNT
