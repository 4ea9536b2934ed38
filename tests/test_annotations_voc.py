# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC, labelme2voc and CVAT's masks, all of which hold label maps: every pixel is compared."""

import json
import shutil

import numpy as np
import pytest
from annotation_exports import EXPORTS, assert_agrees, copied, label_maps
from PIL import Image

from hf_segformer.data import load_annotated
from hf_segformer.data.voc import VOC_NAMES

LABELME = ("_background_", "grass", "gravel path", "Büsche", "pond", "lamp")
CVAT = ("background", "Büsche", "grass", "gravel path", "lamp", "pond")  # in the order of labelmap.txt


def test_pascal_voc_has_the_names_and_splits_of_the_challenge():
    data = load_annotated(EXPORTS / "voc" / "export")
    assert data.class_names == VOC_NAMES
    assert data.palette[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert data.palette[20] == (0, 64, 128)
    assert [sorted(data.train["file_name"]), data.validation["file_name"][:]] == [
        ["shelf 2.jpg", "yard.jpg"],
        ["turned.jpg"],
    ]
    assert_agrees(data, "voc", reach=0)
    assert "names are those of the challenge" in data.description


@pytest.mark.parametrize("name", ["labelme2voc", "labelme2voc_before_5.3"])
def test_labelme2voc(name):
    data = load_annotated(EXPORTS / name / "export")
    assert data.class_names == LABELME
    assert len(data.train) + len(data.validation) == {"labelme2voc": 3}.get(name, 2)
    assert_agrees(data, name, reach=0)


def test_cvat_masks_have_the_classes_colours_and_splits_of_the_label_map():
    data = load_annotated(EXPORTS / "cvat_masks" / "export")
    assert data.class_names == CVAT
    assert data.palette[:2] == ((0, 0, 0), (20, 90, 30))
    assert [len(data.train), len(data.validation)] == [2, 1]
    assert_agrees(data, "cvat_masks", reach=0)


def test_in_a_zip_and_in_folders_of_the_challenge(tmp_path):
    shutil.copytree(EXPORTS / "voc" / "export", tmp_path / "in" / "VOCdevkit" / "VOC2012")
    assert_agrees(load_annotated(tmp_path / "in"), "voc", reach=0)
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "in")
    assert_agrees(load_annotated(archive), "voc", reach=0)
    shutil.copytree(EXPORTS / "voc" / "export", tmp_path / "in" / "VOCdevkit" / "VOC2007")
    with pytest.raises(ValueError, match=r"several data sets: .*VOC2007.*VOC2012|several data sets"):
        load_annotated(tmp_path / "in")


@pytest.mark.parametrize("name", ["voc", "cvat_masks"])
def test_pictures_may_lie_elsewhere(tmp_path, name):
    folder = copied(name, tmp_path)
    (folder / "JPEGImages").rename(tmp_path / "pictures")
    with pytest.raises(ValueError, match=r"its picture yard\.\* .* is missing .*; pictures names a folder"):
        load_annotated(folder)
    assert_agrees(load_annotated(folder, pictures=tmp_path / "pictures"), name, reach=0)
    for picture in (tmp_path / "pictures").iterdir():
        shutil.copy(picture, folder)
    assert_agrees(load_annotated(folder), name, reach=0)


def test_colours_of_the_challenge_instead_of_ids(tmp_path):
    folder = copied("voc", tmp_path)
    for path in (folder / "SegmentationClass").iterdir():
        Image.open(path).convert("RGB").save(path)
    assert_agrees(load_annotated(folder), "voc", reach=0)


def test_ids_instead_of_colours_in_masks_of_cvat(tmp_path):
    folder = copied("cvat_masks", tmp_path)
    values = json.loads((EXPORTS / "cvat_masks" / "expected" / "values.json").read_text(encoding="utf-8"))["values"]
    table = np.array([CVAT.index(values[str(value)]) for value in range(len(values))], np.uint8)
    for path in (folder / "SegmentationClass").iterdir():
        expected = Image.open(EXPORTS / "cvat_masks" / "expected" / path.name)
        Image.fromarray(table[np.asarray(expected)]).save(path)
    assert_agrees(load_annotated(folder), "cvat_masks", reach=0)


@pytest.mark.parametrize("name", ["background", "ignored"])
def test_palette_pngs_with_the_colours_of_the_classes_in_another_order(tmp_path, name):
    folder = copied("cvat_masks", tmp_path)
    path = folder / "labelmap.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("background", name), encoding="utf-8")
    expected = label_maps(load_annotated(folder))
    for path in (folder / "SegmentationClass").iterdir():
        Image.open(path).quantize(16).save(path)
        assert Image.open(path).mode == "P"
    found = label_maps(load_annotated(folder))
    assert all((found[stem] == expected[stem]).all() for stem in expected)


def test_a_label_called_ignored_is_no_class(tmp_path):
    folder = copied("cvat_masks", tmp_path)
    path = folder / "labelmap.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("background:", "Ignored:"), encoding="utf-8")
    data = load_annotated(folder)
    assert data.class_names == ("Büsche", "grass", "gravel path", "lamp", "pond")
    expected = label_maps(load_annotated(EXPORTS / "cvat_masks" / "export"))["yard"]
    assert ((label_maps(data)["yard"] == 255) == (expected == 0)).all()
    assert "Ignored belongs to no class" in data.description


def test_without_colours_they_are_those_of_the_challenge(tmp_path):
    folder = copied("cvat_masks", tmp_path)
    (folder / "labelmap.txt").write_text("background:::\nnose:::\nfoot: front::hand,leg:\n", encoding="utf-8")
    for path in (folder / "SegmentationClass").iterdir():
        picture = np.zeros((*Image.open(path).size[::-1], 3), np.uint8)
        picture[:5] = (128, 0, 0)
        picture[5:9] = (0, 128, 0)
        Image.fromarray(picture).save(path)
    data = load_annotated(folder)
    assert data.class_names == ("background", "nose", "foot: front")
    assert label_maps(data)["yard"][:10, 0].tolist() == [1] * 5 + [2] * 4 + [0]


def test_lists_say_which_pictures_are_used(tmp_path):
    folder = copied("cvat_masks", tmp_path)
    lists = folder / "ImageSets" / "Segmentation"
    (lists / "train.txt").rename(lists / "default.txt")
    (lists / "val.txt").unlink()
    with open(lists / "default.txt", "a") as file:
        file.write("\n  \nnot annotated yet\n")
    data = load_annotated(folder)
    assert len(data.train) + len(data.validation) == 2
    assert "1 listed pictures without a mask left out, such as not annotated yet" in data.description
    assert "1 masks in no list left out, such as turned" in data.description


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tree:0,128", r"line 8 must have the form name:r,g,b:parts:actions, got 'tree:0,128'"),
        ("tree:0,128::", r"line 8: a colour must be r,g,b in 0..255, got '0,128'"),
        ("tree:0,128,256::", r"line 8: a colour must be"),
        ("tree:60,150,60::", r"line 8: every class needs a colour of its own, \(60, 150, 60\) is that of grass"),
        ("tree:::", r"class tree must have a colour"),
        ("grass:1,2,3::", "grass"),
    ],
)
def test_bad_line_of_the_label_map_is_named(tmp_path, line, message):
    folder = copied("cvat_masks", tmp_path)
    with open(folder / "labelmap.txt", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message) as raised:
        load_annotated(folder)
    assert str(folder / "labelmap.txt") in str(raised.value)


def test_colour_of_no_class_size_and_two_pictures_are_named(tmp_path):
    folder = copied("cvat_masks", tmp_path)
    mask = folder / "SegmentationClass" / "yard.png"
    Image.new("RGB", (96, 64), (1, 2, 3)).save(mask)
    with pytest.raises(ValueError, match=r"yard.*colour \(1, 2, 3\)"):
        label_maps(load_annotated(folder))
    Image.new("RGB", (64, 96), (0, 0, 0)).save(mask)
    with pytest.raises(ValueError, match=r"yard.*96.*64"):
        label_maps(load_annotated(folder))
    shutil.copy(folder / "JPEGImages" / "yard.jpg", folder / "JPEGImages" / "yard.jpeg")
    with pytest.raises(ValueError, match=r"SegmentationClass/yard.png: several pictures fit: .*yard.jpeg, .*yard.jpg"):
        load_annotated(folder)


def test_names_of_the_user(tmp_path):
    names = [f"class {index}" for index in range(6)]
    assert load_annotated(EXPORTS / "cvat_masks" / "export", class_names=names).class_names == tuple(names)
    with pytest.raises(ValueError, match=r"one name for each line .*labelmap.txt, got 5 names for 6 lines"):
        load_annotated(EXPORTS / "cvat_masks" / "export", class_names=names[:5])
