# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""CVAT's XML against label maps that datumaro draws; see `annotations/make_datumaro.py`."""

import math
import re
import shutil

import numpy as np
import pytest
from annotation_exports import EXPORTS, assert_agrees, copied, label_maps

from hf_segformer.data import load_annotated

NAMES = ("background", "grass", "gravel path", "Büsche", "pond", "lamp")
XML = "annotations.xml"


@pytest.fixture(autouse=True)
def masks_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path / "masks"))


@pytest.mark.parametrize(("name", "sizes"), [("cvat_images", [2, 2]), ("cvat_images_datumaro", [2, 1])])
def test_shapes_lie_where_datumaro_draws_them(name, sizes):
    data = load_annotated(EXPORTS / name / "export")
    assert data.class_names == NAMES
    assert [len(data.train), len(data.validation)] == sizes
    assert_agrees(data, name, reach=1)  # pycocotools, too, rounds to pixels at edges


def test_colours_subsets_and_what_is_left_out():
    data = load_annotated(EXPORTS / "cvat_images" / "export")
    assert data.palette == ((0, 0, 0), (60, 150, 60), (180, 160, 120), (20, 90, 30), (40, 90, 200), (250, 240, 20))
    assert sorted(data.validation["file_name"]) == ["images/Validation/bare.jpg", "images/Validation/turned.jpg"]
    assert "2 shapes without an area left out (polyline, tag)" in data.description


def written(tmp_path, shapes, width=96, height=64):
    """The export with other shapes in its first picture."""
    folder = copied("cvat_images", tmp_path)
    text = (folder / XML).read_text(encoding="utf-8")
    head, rest = text.split('width="96" height="64">', 1)
    rest = rest.split("</image>", 1)[1]
    (folder / XML).write_text(f'{head}width="{width}" height="{height}">{shapes}</image>{rest}', encoding="utf-8")
    return folder


def drawn(tmp_path, shapes):
    return label_maps(load_annotated(written(tmp_path, shapes)))["yard"]


def test_turned_box_and_ellipse(tmp_path):
    label = drawn(
        tmp_path,
        '<box label="grass" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90.0" z_order="0"></box>'
        '<ellipse label="pond" cx="70" cy="30" rx="20" ry="8" rotation="30" z_order="0"></ellipse>',
    )
    expected = np.zeros((64, 96), np.uint8)
    expected[15:35, 25:35] = 1
    y, x = np.mgrid[:64, :96] + 0.5
    angle = math.radians(30)  # clockwise as seen: the right end goes down
    along = (x - 70) * math.cos(angle) + (y - 30) * math.sin(angle)
    across = -(x - 70) * math.sin(angle) + (y - 30) * math.cos(angle)
    distance = (along / 20) ** 2 + (across / 8) ** 2
    expected[distance < 1] = 4
    near = np.abs(np.sqrt(distance) - 1) < 0.01
    assert (label == expected)[~near].all()


def test_z_order_before_the_order_of_the_file(tmp_path):
    box = '<box label="{}" xtl="0" ytl="0" xbr="{}" ybr="10" z_order="{}"></box>'
    shapes = box.format("grass", 10, 1) + box.format("pond", 20, 0) + box.format("lamp", 30, -1)
    assert drawn(tmp_path, shapes + box.format("Büsche", 5, 1))[5, :35].tolist() == (
        [3] * 5 + [1] * 5 + [4] * 10 + [5] * 10 + [0] * 5
    )


def test_runs_lie_within_their_box(tmp_path):
    label = drawn(tmp_path, '<mask label="lamp" rle="1, 2, 3" left="90" top="62" width="3" height="2" z_order="0"/>')
    assert np.argwhere(label).tolist() == [[62, 91], [62, 92]]


def test_without_labels_in_the_head_and_unlabelled_ignored(tmp_path):
    folder = copied("cvat_images", tmp_path)
    text = re.sub("(?s)<meta>.*</meta>", "", (folder / XML).read_text(encoding="utf-8"))
    (folder / XML).write_text(text, encoding="utf-8")
    data = load_annotated(folder, unlabeled="ignore")
    assert data.class_names == ("Büsche", "grass", "gravel path", "lamp", "pond")
    assert_agrees(data, "cvat_images", reach=1, outside="ignored")


def test_same_name_in_two_subsets_and_flat_pictures(tmp_path):
    folder = copied("cvat_images", tmp_path)
    text = (folder / XML).read_text(encoding="utf-8").replace('"turned.jpg"', '"yard.jpg"')
    (folder / XML).write_text(text, encoding="utf-8")
    (folder / "images" / "Validation" / "turned.jpg").rename(folder / "images" / "Validation" / "yard.jpg")
    data = load_annotated(folder)
    assert label_maps(data)["yard"].shape == (80, 60)
    assert "images/Train/yard.jpg" in data.train["file_name"][:]
    folder = copied("cvat_images", tmp_path / "flat")
    for picture in folder.glob("images/*/*"):
        (tmp_path / "all").mkdir(exist_ok=True)
        picture.rename(tmp_path / "all" / picture.name)
    with pytest.raises(ValueError, match=r"image 'yard.jpg': picture 'yard.jpg' is missing"):
        load_annotated(folder)
    assert_agrees(load_annotated(folder / XML, pictures=tmp_path / "all"), "cvat_images", reach=1)


def test_a_zip(tmp_path):
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", EXPORTS / "cvat_images" / "export")
    assert_agrees(load_annotated(archive), "cvat_images", reach=1)


POLYGON = '<polygon label="{}" points="{}" z_order="{}"></polygon>'
MASK = '<mask label="lamp" rle="{}" left="{}" top="2" width="{}" height="2" z_order="0"></mask>'


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (POLYGON.format("tree", "1,1;2,2;3,1", 0), "polygon 0 ('tree'): its label must be one of grass"),
        ('<polygon points="1,1;2,2;3,1"/>', "its label must be one of"),
        (POLYGON.format("lamp", "1,1;2,2", 0), "polygon 0 ('lamp'): a polygon needs at least 3 points, got 2"),
        (POLYGON.format("lamp", "1,1;2,2;3", 0), "points must have the form x,y;x,y;..."),
        (POLYGON.format("lamp", "", 0), "points must have the form"),
        (POLYGON.format("lamp", "1,1;2,2;nan,1", 0), "finite"),
        (POLYGON.format("lamp", "1,1;2,2;3,1", "top"), "z_order must be a number, got 'top'"),
        ('<box label="lamp" xtl="1" ytl="1" xbr="5"/>', "box 0 ('lamp'): ybr must be a number"),
        ('<ellipse label="lamp" cx="1" cy="1" rx="5" ry="x"/>', "ry must be a number"),
        (MASK.format("1, 2", 1, 3), "must add up to height * width = 2 * 3 = 6, got 3"),
        (MASK.format("1, -2, 7", 1, 3), "RLE runs must lie in 0..6"),
        (MASK.format("1, x", 1, 3), "rle must be integers"),
        (MASK.format("", 1, 3), "rle must be integers"),
        (MASK.format("6", 1.5, 3), "left and top must be integers"),
        (MASK.format("6", 1, "wide"), "width must be a number"),
        ("<cube label='lamp'/>", "a shape must be one of polygon, box, ellipse, mask, got 'cube'"),
    ],
)
def test_bad_shape_is_named(tmp_path, shape, message):
    folder = written(tmp_path, shape)
    with pytest.raises(ValueError) as raised:
        load_annotated(folder)
    assert message in str(raised.value)
    assert f"{folder / XML}: image 'yard.jpg': " in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-30], "it is no XML file"),
        (lambda text: text.replace("utf-8", "utf-88"), "it is no XML file"),
        (lambda text: text.replace("utf-8", "shift-jis"), "annotations.xml"),
        (lambda text: text.replace("?>", '?><!DOCTYPE a [<!ENTITY b "c">]>', 1), "no document type"),
        (
            lambda text: text.replace("?>", '?><!DOCTYPE annotations SYSTEM "file:///etc/passwd">', 1),
            "no document type",
        ),
        (lambda text: text.replace("</meta>", "</meta><track/>"), 'as "CVAT for video"; export it as'),
        (
            lambda text: text.replace('name="turned.jpg"', 'name="yard.jpg"').replace('"Validation"', '"Train"'),
            "twice",
        ),
        (lambda text: text.replace('width="60"', 'width="-60"'), "-60"),
        (lambda text: text.replace('width="60"', ""), "width must be a number"),
        (lambda text: text.replace("<name>pond", "<name>grass"), "grass"),
    ],
)
def test_bad_file_is_named(tmp_path, change, message):
    folder = copied("cvat_images", tmp_path)
    (folder / XML).write_text(change((folder / XML).read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError) as raised:
        load_annotated(folder)
    assert message in str(raised.value)


def test_size_that_differs_from_the_picture_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"yard.jpg.*(96.*64|64.*96)"):
        label_maps(load_annotated(written(tmp_path, "", 64, 96)))
