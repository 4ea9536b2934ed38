# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""YOLO's forms against ultralytics' own files and label maps; see `annotations/make_yolo.py`."""

import os
import re
import shutil

import numpy as np
import pytest
from annotation_exports import EXPORTS, assert_agrees, copied, label_maps
from PIL import Image

from hf_segformer.data import load_annotated

NAMES = ("background", "grass", "gravel path", "Büsche", "pond", "lamp")


@pytest.fixture(autouse=True)
def masks_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path / "masks"))


def stems(rows):
    return sorted(rows["file_name"])


@pytest.mark.parametrize("name", ["yolo", "yolo_roboflow", "yolo_cvat"])
def test_polygons_lie_where_ultralytics_draws_them(name):
    data = load_annotated(EXPORTS / name / "export")
    assert data.class_names == NAMES
    assert [len(data.train), len(data.validation)] == [2, 2]
    # OpenCV fills the pixels an edge touches, after cutting off fractions: one pixel, seen from both sides of an edge
    assert_agrees(data, name, reach=2)
    assert "1 pictures without a text file have nothing labelled" in data.description


def test_masks_are_those_of_ultralytics():
    data = load_annotated(EXPORTS / "yolo_masks" / "export")
    assert data.class_names == NAMES[1:]
    assert [len(data.train), len(data.validation)] == [2, 1]
    assert_agrees(data, "yolo_masks", reach=0)


def test_given_as_file_and_as_zip(tmp_path):
    whole = label_maps(load_annotated(EXPORTS / "yolo" / "export"))
    archive = shutil.make_archive(str(tmp_path / "garden"), "zip", EXPORTS / "yolo" / "export")
    for given in (EXPORTS / "yolo" / "export" / "data.yaml", archive):
        found = label_maps(load_annotated(given))
        assert found.keys() == whole.keys()
        assert all((found[stem] == whole[stem]).all() for stem in whole)


def changed(tmp_path, change, name="yolo"):
    folder = copied(name, tmp_path)
    path = folder / "data.yaml"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "path",
    [
        "",
        "path: .",
        "path: /content/drive/garden",  # of another machine
        "path: ../datasets/garden",
        "path: C:\\data\\garden",
        "path: FOLDER",
    ],
)
def test_path_may_be_of_another_machine(tmp_path, path):
    folder = changed(tmp_path, lambda text: re.sub("path: .*", lambda _: path, text))
    text = (folder / "data.yaml").read_text(encoding="utf-8").replace("FOLDER", str(folder))
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    assert_agrees(load_annotated(folder), "yolo", reach=2)


def test_splits_may_be_absolute_lists_or_several(tmp_path):
    folder = changed(
        tmp_path,
        lambda text: text.replace(
            "train: images/train", "train: [images/train, '/home/ann/garden/images/val']"
        ).replace("val: images/val", "validation: images/val/turned.jpg"),
    )
    data = load_annotated(folder)
    assert stems(data.train) == [
        "images/train/shelf 2.png",
        "images/train/yard.jpg",
        "images/val/bare.jpg",
        "images/val/turned.jpg",
    ]
    assert stems(data.validation) == ["images/val/turned.jpg"]
    assert "1 pictures are in more than one split" in data.description


def test_names_stay_as_they_are_written(tmp_path):
    names = "names: [no, '1.0', ~, on, 0x10]"
    folder = changed(tmp_path, lambda text: re.sub("(?s)names:.*", names, text))
    assert load_annotated(folder).class_names == ("background", "no", "1.0", "~", "on", "0x10")


def test_data_set_outside_the_folder_of_the_file(tmp_path):
    folder = changed(tmp_path, lambda text: re.sub("path: .*", "path: ../elsewhere/garden", text))
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(folder, tmp_path / "elsewhere" / "garden")
    for name in ("images", "labels"):
        shutil.rmtree(folder / name)
    with pytest.raises(ValueError, match=r"train: folder or list 'images/train' is missing"):
        load_annotated(folder / "data.yaml")
    data = load_annotated(folder / "data.yaml", allow_outside_files=True)
    assert_agrees(data, "yolo", reach=2)
    assert_agrees(load_annotated(folder, pictures=tmp_path / "elsewhere" / "garden"), "yolo", reach=2)


@pytest.mark.parametrize("how", ["allow_outside_files", "pictures"])
@pytest.mark.parametrize("change", ["line", "file"])
def test_a_change_outside_is_noticed(tmp_path, how, change):
    folder = changed(tmp_path, lambda text: re.sub("path: .*", "path: ../garden", text))
    garden = copied("yolo", tmp_path / "other").rename(tmp_path / "garden")
    for name in ("images", "labels"):
        shutil.rmtree(folder / name)
    for path in (*garden.rglob("*"), *folder.rglob("*"), garden, folder):
        os.utime(path, (1e9, 1e9))
    options = {"allow_outside_files": True} if how == "allow_outside_files" else {"pictures": garden}
    stem, text = ("yard", YARD) if change == "line" else ("bare", "labels/val/bare.txt")
    before = label_maps(load_annotated(folder, **options))[stem]
    (garden / text).write_text("4 0 0 1 0 1 1 0 1\n")
    after = label_maps(load_annotated(folder, **options))[stem]
    assert (before != 5).any()
    assert (after == 5).all()


def test_without_data_yaml(tmp_path):
    folder = copied("yolo", tmp_path)
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("\n".join(NAMES[1:]), encoding="utf-8")
    assert_agrees(load_annotated(folder), "yolo", reach=2)


def test_one_class_is_binary_in_masks(tmp_path):
    for split in ("train", "val"):
        for kind, values in (("images", 90), ("masks", [[0, 1], [1, 255]])):
            (tmp_path / "d" / kind / split).mkdir(parents=True)
            picture = np.full((2, 2), values, np.uint8)
            Image.fromarray(picture).save(tmp_path / "d" / kind / split / "a.png")
    (tmp_path / "d" / "data.yml").write_text("train: images/train\nval: images/val\nnames: {0: road}\n")
    data = load_annotated(tmp_path / "d")
    assert data.class_names == ("background", "road")
    assert label_maps(data)["a"].tolist() == [[0, 1], [1, 255]]


YARD = "labels/train/yard.txt"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.1 0.1 0.2 0.2", "five numbers are a box of a detector"),
        ("0 0.1 0.1 0.2 0.2 0.3", "odd number of them: 5"),
        ("0 0.1 0.1", "at least 3 points, got 1"),
        ("0", "got"),
        ("5 0.1 0.1 0.2 0.2 0.3 0.1", r"class must be in 0..4 \(5 names\), got 5"),
        ("-1 0.1 0.1 0.2 0.2 0.3 0.1", r"class must be in 0..4"),
        ("1.5 0.1 0.1 0.2 0.2 0.3 0.1", r"class must be in 0..4"),
        ("nan 0.1 0.1 0.2 0.2 0.3 0.1", r"class must be in 0..4"),
        ("grass 0.1 0.1 0.2 0.2 0.3 0.1", "must be numbers"),
        ("0 10 10 40 10 40 30", "pixels must be divided by width and height"),
        ("0 0.1 0.1 0.2 1.02 0.3 0.1", "0..1"),
        ("0 0.1 0.1 0.2 -0.5 0.3 0.1", "0..1"),
        ("0 0.1 0.1 0.2 nan 0.3 0.1", "finite"),
        ("0 0.1 0.1 0.2 1e400 0.3 0.1", "finite"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    folder = copied("yolo", tmp_path)
    with open(folder / YARD, "a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=message) as raised:
        load_annotated(folder)
    assert f"{folder / YARD}: line 7: " in str(raised.value)


def test_a_little_outside_is_taken_and_cut_off(tmp_path):
    folder = copied("yolo", tmp_path)
    (folder / YARD).write_text("4 -0.005 0 1.01 0 1.01 1.01 -0.005 1\n\n2.0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    label = label_maps(load_annotated(folder))["yard"]
    assert (label[:32, :48] == 3).all()
    assert (label[32:] == 5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + "nc: 4\n", "nc must be the number of names, got 4 for 5 names"),
        (lambda text: text + "nc: many\n", "nc must be the number of classes"),
        (lambda text: text.replace("4: lamp", "7: lamp"), "7"),
        (lambda text: text.replace("4: lamp", "3: lamp"), "'3' must stand once"),
        (lambda text: text.replace("lamp", "pond"), "pond"),
        (lambda text: text.replace("images/train", "images/trian"), "train: folder or list 'images/trian' is missing"),
        (lambda text: text.replace("train: images/train", "train: {a: b}"), "path or a list of paths"),
        (lambda text: text + "kpt_shape: [17, 3]\n", "keypoints"),
        (lambda text: text + "names: [a\n", "no YAML"),
        (lambda text: "- " * 5000, "no YAML"),
        (lambda text: "just a text", "must hold keys and values"),
    ],
)
def test_bad_yaml_is_named(tmp_path, change, message):
    folder = changed(tmp_path, change)
    with pytest.raises(ValueError, match=message) as raised:
        load_annotated(folder / "data.yaml", format="yolo")
    assert str(folder / "data.yaml") in str(raised.value)


def test_wrong_folder_of_text_files_is_no_empty_data_set(tmp_path):
    folder = copied("yolo", tmp_path)
    (folder / "labels").rename(folder / "lables")
    with pytest.raises(ValueError, match="not one of 4 pictures has a text file"):
        load_annotated(folder)


def test_missing_mask_missing_picture_and_unknown_value(tmp_path):
    folder = copied("yolo_masks", tmp_path)
    (folder / "masks" / "train" / "yard.png").rename(tmp_path / "yard.png")
    with pytest.raises(ValueError, match=r"yard.jpg: its mask .*yard.png is missing"):
        load_annotated(folder)
    Image.new("L", (96, 64), 11).save(folder / "masks" / "train" / "yard.png")
    with pytest.raises(ValueError, match=r"yard.jpg.*11"):
        label_maps(load_annotated(folder))
    folder = copied("yolo_cvat", tmp_path)
    (folder / "images" / "val" / "turned.jpg").unlink()
    with pytest.raises(ValueError, match=r"val.txt, line 1: picture './images/val/turned.jpg' is missing"):
        load_annotated(folder)


@pytest.mark.parametrize("mapping", ["label_mapping: 3", "label_mapping: {1: grass}", "label_mapping: {1: 5}"])
def test_bad_label_mapping_is_named(tmp_path, mapping):
    folder = changed(tmp_path, lambda text: re.sub("(?s)label_mapping.*", mapping, text), "yolo_masks")
    with pytest.raises(ValueError, match=r"data.yaml: label_mapping must"):
        load_annotated(folder)


def test_a_test_split_may_lack_masks_and_be_missing(tmp_path):
    folder = changed(tmp_path, lambda text: f"{text}\ntest: images/test\n", "yolo_masks")
    assert "test: images/test is missing" in load_annotated(folder).description
    (folder / "images" / "test").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "images" / "test" / "a.png")
    data = load_annotated(folder)
    assert [len(data.train), len(data.validation)] == [2, 1]
    assert "1 test pictures without a mask left out" in data.description


def test_two_descriptions_need_a_choice(tmp_path):
    folder = copied("yolo", tmp_path)
    (folder / "data.yaml").rename(folder / "a.yaml")
    shutil.copy(folder / "a.yaml", folder / "b.yml")
    with pytest.raises(ValueError, match=r"several files describe a data set: .*a.yaml.*b.yml"):
        load_annotated(folder)
    assert len(load_annotated(folder / "b.yml").train) == 2
