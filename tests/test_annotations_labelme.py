# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""labelme's files become label maps as labelme itself draws them, and what is wrong with them is named."""

import base64
import json

import numpy as np
import pytest
from tool_exports import (
    GOLDEN,
    far_differences,
    golden_labels,
    labelme,
    labels_of,
    picture,
    png_text,
    shape,
    square,
)

from hf_segformer.data import check_dataset, load_any

TRIANGLE = [[1, 1], [20, 1], [1, 20]]


def test_what_labelme_wrote_reads_as_labelme_draws_it():
    data = load_any(GOLDEN / "labelme" / "export")
    assert data.class_names == ("_background_", "grass", "gravel path", "Büsche", "pond", "lamp")
    expected, found = golden_labels("labelme", data.class_names), labels_of(data)
    assert found.keys() == expected.keys()
    for stem in found.keys() - {"yard"}:
        assert far_differences(found[stem], expected[stem]) == 0
    # labelme draws lines and points as strokes of 10 pixels, here they are left out and counted.
    assert "3 shapes without an area left out" in data.description
    assert far_differences(found["yard"], expected["yard"]) < 0.1 * found["yard"].size


def test_kinds_of_shapes(tmp_path):
    leaf = np.eye(5, 8, dtype=bool)
    shapes = [
        shape("box", [[30, 20], [22, 12]], "rectangle"),
        shape("disc", [[8, 8], [8, 13]], "circle"),
        shape("leaf", [[20, 1], [28, 6]], "mask", mask=png_text(leaf)),
        shape("line", [[1, 1], [9, 9]], "linestrip"),
    ]
    for name in "ab":
        labelme(tmp_path / f"{name}.json", shapes)
    data = load_any(tmp_path)
    assert data.class_names == ("background", "box", "disc", "leaf")
    label = labels_of(data)["a"]
    expected = np.zeros((30, 40), int)
    expected[12:20, 22:30] = 1
    ys, xs = np.mgrid[:30, :40] + 0.5
    expected[(ys - 8) ** 2 + (xs - 8) ** 2 < 25] = 2
    expected[1:6, 20:28][leaf] = 3
    np.testing.assert_array_equal(label, expected)
    assert "2 shapes without an area left out (linestrip)" in data.description


def test_later_shapes_lie_on_top(tmp_path):
    for name in "ab":
        labelme(tmp_path / f"{name}.json", [square("small", 5, 5, 4), square("large", 2, 2, 20)])
    data = load_any(tmp_path)
    assert set(np.unique(labels_of(data)["a"])) == {0, 1}


def test_labels_txt_begins_with_no_class(tmp_path):
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nzebra\nant\n")
    for name in "ab":
        labelme(tmp_path / f"{name}.json", [square("ant", 0, 0), square("__ignore__", 20, 0), square("zebra", 0, 15)])
    data = load_any(tmp_path)
    assert data.class_names == ("_background_", "zebra", "ant")
    label = labels_of(data)["a"]
    assert [label[y, x] for y, x in ((5, 5), (5, 25), (20, 5), (12, 35))] == [2, 255, 1, 0]
    assert "class 0 _background_" in data.description


@pytest.mark.parametrize("name", ["classes.txt", "classes.json"])
def test_the_same_list_under_another_name_shifts_nothing(tmp_path, name):
    from hf_segformer.data import read_class_table

    names = ["__ignore__", "_background_", "zebra"]
    (tmp_path / name).write_text("\n".join(names) if name.endswith("txt") else json.dumps(names))
    assert read_class_table(tmp_path / name).names == ("_background_", "zebra")


def test_the_picture_is_found_or_embedded(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "json").mkdir()
    labelme(tmp_path / "json" / "a.json", [square("x", 1, 1)], image_path="..\\images\\a.jpg")
    inside = base64.b64encode(picture(tmp_path / "elsewhere" / "b.png").read_bytes()).decode()
    (tmp_path / "elsewhere" / "b.png").unlink()
    labelme(tmp_path / "json" / "b.json", [square("x", 1, 1)], image_path="b.png", imageData=inside)
    picture(tmp_path / "images" / "c.jpg")
    labelme(tmp_path / "json" / "c.json", [square("x", 1, 1)], image_path="C:\\Users\\me\\pictures\\c.jpg")
    data = load_any(tmp_path)
    check_dataset(data)
    assert len(data.train) + len(data.validation) == 3


def test_a_picture_outside_the_folder_is_read_on_request_only(tmp_path):
    picture(tmp_path / "secret.jpg")
    (tmp_path / "data").mkdir()
    for name in "ab":
        labelme(tmp_path / "data" / f"{name}.json", [square("x", 1, 1)], image_path="../secret.jpg")
    with pytest.raises(ValueError, match=r"'\.\./secret\.jpg' lies outside .*allow_outside_files"):
        load_any(tmp_path / "data")
    labelme(tmp_path / "data" / "b.json", [square("x", 1, 1)])
    assert len(load_any(tmp_path / "data", allow_outside_files=True).train) == 1


def wrong(content, rule):
    return pytest.param(content, rule, id=rule[:30])


@pytest.mark.parametrize(
    "entry, rule",
    [
        wrong(shape("car", [[1, 2], [3, 4]]), r"shape 1 \('car'\): a polygon needs at least 3 points, got 2"),
        wrong(shape("car", [[1, 2]], "rectangle"), r"shape 1 \('car'\): a rectangle needs two points"),
        wrong(shape("car", [[1, 2], [3, 4], [5, 6]], "circle"), r"shape 1 \('car'\): a circle needs two points"),
        wrong(shape("car", [[1, 2], [3, 4]], "mask"), r"shape 1 \('car'\): mask must be a file in base64, got None"),
        wrong(shape("car", [[1, 2], [3, 4]], "mask", mask="AAAA"), r"shape 1 \('car'\): mask must be a PNG"),
        wrong(shape("car", TRIANGLE, "heptagon"), r"shape 1 \('car'\): shape_type must be one of polygon, .*heptagon"),
        wrong(shape("car", None), r"shape 1 \('car'\): a polygon must be a list of points"),
        wrong(shape(None, TRIANGLE), r"shape 1: its label must be a text, got None"),
        wrong(shape("bus", TRIANGLE), r"shape 1 \('bus'\): the label is not in the list of classes: car"),
        wrong("text", r"shape 1: it must be an object, got 'text'"),
    ],
)
def test_wrong_shapes_are_named(tmp_path, entry, rule):
    labelme(tmp_path / "a.json", [square("car", 1, 1)])
    labelme(tmp_path / "b.json", [square("car", 1, 1), entry])
    with pytest.raises(ValueError, match=rf"labelme: 1 annotation is wrong:\n  .*b\.json: {rule}"):
        load_any(tmp_path, class_names=["car"])


def test_wrong_files_are_named_all_at_once(tmp_path):
    for name in "abcdefgh":
        labelme(tmp_path / f"{name}.json", [square("car", 1, 1)])
    (tmp_path / "a.json").write_text('{"shapes": [')
    labelme(tmp_path / "b.json", [], image_path="nowhere.jpg")
    (tmp_path / "b.jpg").unlink()
    labelme(tmp_path / "c.json", [square("car", 1, 1)], image_path="d.jpg")
    labelme(tmp_path / "e.json", [square("car", 1, 1)], size=(30, 40))
    labelme(tmp_path / "f.json", [], imageWidth="wide")
    (tmp_path / "g.json").write_bytes(b"\xff{}")
    with pytest.raises(ValueError) as caught:
        load_any(tmp_path)
    text = str(caught.value)
    for rule in (
        "a.json: it is no JSON file",
        "b.json: picture 'nowhere.jpg' is missing",
        "d.json: its picture d.jpg is annotated in",
        "f.json: imageWidth, imageHeight: width and height must be integers",
        "g.json: it must be text in UTF-8",
    ):
        assert rule in text, text
    assert text.startswith("labelme: 5 annotations are wrong:")


def test_sizes_that_differ_are_named_with_both_files(tmp_path):
    labelme(tmp_path / "a.json", [square("car", 1, 1)])
    labelme(tmp_path / "b.json", [square("car", 1, 1)], size=(30, 40))
    labelme(tmp_path / "b.json", [square("car", 1, 1)], size=(40, 30))
    with pytest.raises(ValueError, match=r"b\.json: it is annotated as 40x30 .*picture b\.jpg is 30x40; if EXIF"):
        load_any(tmp_path)


def test_ten_are_shown_and_the_others_counted(tmp_path):
    for index in range(13):
        labelme(tmp_path / f"{index:02}.json", [shape("car", [[1, 2], [3, 4]])])
    with pytest.raises(ValueError) as caught:
        load_any(tmp_path)
    lines = str(caught.value).split("\n")
    assert lines[0] == "labelme: 13 annotations are wrong:" and len(lines) == 12
    assert lines[-1].strip() == "... and 3 more"
