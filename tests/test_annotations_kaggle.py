# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Run lengths of Kaggle: the polygons behind them are drawn by datumaro, the runs written by hand."""

import csv

import pytest
from annotation_exports import EXPORTS, assert_agrees, copied, label_maps
from PIL import Image

from hf_segformer.data import load_annotated

FILE = "train.csv"


@pytest.fixture(autouse=True)
def masks_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path / "masks"))


def test_runs_cover_the_pixels_they_say():
    data = load_annotated(EXPORTS / "kaggle" / "export")
    assert data.class_names == ("background", "Büsche", "grass", "gravel path", "pond")
    assert_agrees(data, "kaggle", reach=0)
    assert (label_maps(data)["bare"] == 0).all()


def rows_of(folder):
    with open(folder / FILE, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write(folder, rows):
    with open(folder / FILE, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.mark.parametrize("form", ["joined", "without ending", "one class", "numbers"])
def test_forms_of_columns(tmp_path, form):
    folder = copied("kaggle", tmp_path)
    rows = rows_of(folder)
    expected = label_maps(load_annotated(folder))["yard"]
    if form == "joined":
        write(folder, [["ImageId_ClassId", "EncodedPixels"]] + [[f"{r[0]}_{r[1]}", r[2]] for r in rows[1:]])
    elif form == "without ending":
        write(folder, [["id", "label", "rle"]] + [[r[0].rpartition(".")[0], r[1], r[2]] for r in rows[1:]])
    elif form == "one class":
        write(folder, [["img", "rle_mask"]] + [[r[0], r[2]] for r in rows[1:]])
        expected = (expected > 0).astype(int)
    else:
        numbers = {"Büsche": 1, "grass": 2, "gravel path": 10, "pond": 11, "": ""}
        write(folder, [rows[0]] + [[r[0], numbers[r[1]], r[2]] for r in rows[1:]])
    assert (label_maps(load_annotated(folder))["yard"] == expected).all()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1 2 3", "must be pairs of start and length, got 3 numbers"),
        ("0 2", "starts count from 1"),
        ("1 0", "lengths are at least 1"),
        ("6140 6", "must end within the 96 x 64 pixels of the picture, got 6145"),
        ("1 5 3 2", "runs must not overlap"),
        ("1 x", "must be integers"),
        ("1 9999999999999999999999", "must be integers"),
    ],
)
def test_bad_runs_are_named(tmp_path, runs, message):
    folder = copied("kaggle", tmp_path)
    rows = rows_of(folder)
    write(folder, [rows[0], ["yard.jpg", "grass", runs], *rows[1:]])
    with pytest.raises(ValueError) as raised:
        load_annotated(folder)
    assert f"{folder / FILE}: line 2: " in str(raised.value)
    assert message in str(raised.value)


def test_bad_rows_and_missing_pictures_are_named(tmp_path):
    folder = copied("kaggle", tmp_path)
    rows = rows_of(folder)
    write(folder, [rows[0], ["yard.jpg", "grass"], *rows[1:]])
    with pytest.raises(ValueError, match=r"train.csv: line 2 must have 3 fields as the first has, got 2"):
        load_annotated(folder)
    write(folder, [rows[0], ["gone.jpg", "grass", "1 2"], *rows[1:]])
    with pytest.raises(ValueError, match=r"train.csv, line 2: picture 'gone.jpg' is missing"):
        load_annotated(folder)
    write(folder, [rows[0], ["yard.jpg", "", ""]])
    with pytest.raises(ValueError, match="not one row with run lengths"):
        load_annotated(folder)


def test_sample_submission_is_no_annotation(tmp_path):
    folder = copied("kaggle", tmp_path)
    Image.new("RGB", (4, 4)).save(folder / "test.jpg")
    (folder / "sample_submission.csv").write_text("ImageId,ClassId,EncodedPixels\ntest.jpg,grass,1 1\n")
    assert_agrees(load_annotated(folder), "kaggle", reach=0)
