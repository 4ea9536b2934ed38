# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Roboflow's masks. There is no code of Roboflow to install: the files are written as it documents them."""

import shutil

import pytest
from annotation_exports import EXPORTS, assert_agrees, copied, label_maps
from PIL import Image

from hf_segformer.data import load_annotated

TABLE = "train/_classes.csv"
YARD = "train/yard_jpg.rf.00000000000000000000000000000004"


def test_masks_and_splits():
    data = load_annotated(EXPORTS / "roboflow_masks" / "export")
    assert data.class_names == ("background", "grass", "gravel path", "Büsche", "pond", "lamp")
    assert [len(data.train), len(data.validation)] == [2, 1]
    assert_agrees(data, "roboflow_masks", reach=0)


def test_values_with_gaps_quotes_and_commas(tmp_path):
    folder = copied("roboflow_masks", tmp_path)
    rows = '0, background\n1, "lawn, short"\n2, path\n3, bush\n4, pond, deep\n9, lamp\n'
    for split in ("train", "valid"):
        (folder / split / "_classes.csv").write_bytes(f"Pixel Value, Class\r\n{rows}".replace("\n", "\r\n").encode())
    data = load_annotated(folder)
    assert data.class_names == ("background", "lawn, short", "path", "bush", "pond,deep", "lamp")
    Image.new("L", (96, 64), 9).save(folder / f"{YARD}_mask.png")
    assert (label_maps(load_annotated(folder))[YARD.split("/")[1]] == 5).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Pixel Value, Class\n0, background\n0, grass\n", "line 3: value 0 has the class background already"),
        ("Pixel Value, Class\n0, background\nx, grass\n", "line 3 must be a value in 0..255 and a class"),
        ("Pixel Value, Class\n0, background\n256, grass\n", "line 3 must be a value in 0..255 and a class"),
        ("Pixel Value, Class\n0\n", "line 2 must be a value"),
        ("Pixel Value, Class\n", "class"),
        ("", "first line must be 'Pixel Value, Class'"),
        ("Value, Class\n0, background\n", "first line must be 'Pixel Value, Class'"),
        ("Pixel Value, Class\n0, a\n1, a\n", "a"),
        ("Pixel Value, Class\n0, a\n1, b\n", "classes must be those of"),
    ],
)
def test_bad_table_is_named(tmp_path, text, message):
    folder = copied("roboflow_masks", tmp_path)
    (folder / TABLE).write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        load_annotated(folder)
    assert "_classes.csv" in str(raised.value)


def test_missing_and_double_files_are_named(tmp_path):
    folder = copied("roboflow_masks", tmp_path)
    (folder / f"{YARD}.jpg").rename(tmp_path / "away.jpg")
    shutil.copy(tmp_path / "away.jpg", folder / "train" / "alone.jpg")
    with pytest.raises(ValueError) as raised:
        load_annotated(folder)
    assert "alone.jpg: its mask alone_mask.png is missing" in str(raised.value)
    assert "4_mask.png: its picture yard_jpg.rf." in str(raised.value)
    (folder / "train" / "alone.jpg").unlink()
    for ending in ("jpg", "png"):
        Image.open(tmp_path / "away.jpg").save(folder / f"{YARD}.{ending}")
    with pytest.raises(ValueError, match="its stem must be its own"):
        load_annotated(folder)


def test_unknown_value_and_size_are_named(tmp_path):
    folder = copied("roboflow_masks", tmp_path)
    Image.new("L", (96, 64), 6).save(folder / f"{YARD}_mask.png")
    with pytest.raises(ValueError, match=r"yard_jpg.*6144 pixels"):
        label_maps(load_annotated(folder))
    Image.new("L", (96, 65), 0).save(folder / f"{YARD}_mask.png")
    with pytest.raises(ValueError, match=r"yard_jpg.*65"):
        label_maps(load_annotated(folder))


def test_the_table_of_whole_pictures_is_none_of_masks(tmp_path):
    folder = copied("roboflow_masks", tmp_path)
    for mask in folder.rglob("*_mask.png"):
        mask.unlink()
    with pytest.raises(ValueError, match="no annotations of a known kind"):
        load_annotated(folder)
