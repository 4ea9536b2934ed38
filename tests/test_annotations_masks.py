# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Masks beside pictures in the layouts that people make by hand."""

import json

import numpy as np
import pytest
from tool_exports import labels_of, mask, picture

from hf_segformer.data import check_dataset, load_any

IDS = np.arange(1200).reshape(30, 40) % 3


def scene(root, image, annotation, values=IDS, stems=("a", "b", "c")):
    """Pictures and masks; `{}` in the names stands for the stem."""
    for index, stem in enumerate(stems):
        picture(root / image.format(stem), seed=index)
        mask(root / annotation.format(stem), values)


@pytest.mark.parametrize("folder", ["masks", "labels", "annotations", "gt", "Masks"])
@pytest.mark.parametrize("ending", ["", "_mask", "-label", "_seg"])
def test_masks_beside_images(tmp_path, folder, ending):
    scene(tmp_path, "images/{}.jpg", f"{folder}/{{}}{ending}.png")
    data = load_any(tmp_path, class_names="sky, road,car")
    assert data.class_names == ("sky", "road", "car")
    check_dataset(data)
    for label in labels_of(data).values():
        np.testing.assert_array_equal(label, IDS)


@pytest.mark.parametrize(
    "image, annotation",
    [
        ("train/images/{}.jpg", "train/masks/{}.png"),
        ("images/train/{}.jpg", "masks/train/{}_mask.png"),
        ("train/{}.jpg", "train/{}_mask.png"),
        ("train/{}_image.jpg", "train/{}_label.png"),
    ],
)
def test_splits_are_taken_as_they_are(tmp_path, image, annotation):
    for split, stems in (("train", "abc"), ("val", "de"), ("test", "f")):
        scene(tmp_path, image.replace("train", split), annotation.replace("train", split), stems=stems)
    data = load_any(tmp_path, class_names=list("xyz"))
    assert (len(data.train), len(data.validation), len(data.other_splits["test"])) == (3, 2, 1)
    assert "splits as given: 3 train, 2 val (not used: 1 test)" in data.description


def test_stems_that_end_in_a_word_of_masks_by_themselves(tmp_path):
    scene(tmp_path, "images/{}.jpg", "masks/{}.png", stems=("pool_mask", "pool", "left_seg"))
    assert set(labels_of(load_any(tmp_path, class_names="x,y,z"))) == {"pool_mask", "pool", "left_seg"}


def test_black_and_white_masks_need_no_names(tmp_path):
    scene(tmp_path, "images/{}.jpg", "masks/{}.png", 255 * (IDS > 0))
    data = load_any(tmp_path)
    assert data.class_names == ("background", "foreground")
    np.testing.assert_array_equal(labels_of(data)["a"], IDS > 0)


def test_other_masks_need_names(tmp_path):
    scene(tmp_path, "images/{}.jpg", "masks/{}.png")
    with pytest.raises(ValueError, match=r"no class names found for masks with values 0, 1, 2; class_names names"):
        load_any(tmp_path)


def test_labelmes_list_beside_masks(tmp_path):
    scene(tmp_path, "images/{}.jpg", "masks/{}.png")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nzebra\nant\n")
    data = load_any(tmp_path)
    assert data.class_names == ("_background_", "zebra", "ant")
    ignored = load_any(tmp_path, unlabeled="ignore")
    assert ignored.class_names == ("zebra", "ant")
    np.testing.assert_array_equal(labels_of(ignored)["a"], np.array([255, 0, 1])[IDS])


def test_masks_in_colour_need_a_palette(tmp_path):
    colors = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]])
    scene(tmp_path, "images/{}.jpg", "masks/{}.png", colors[IDS])
    with pytest.raises(ValueError, match="colour"):
        load_any(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"names": list("xyz"), "palette": colors.tolist()}))
    np.testing.assert_array_equal(labels_of(load_any(tmp_path))["a"], IDS)


def test_what_does_not_fit_is_named_at_once(tmp_path):
    scene(tmp_path, "images/{}.jpg", "masks/{}.png")
    (tmp_path / "masks" / "a.png").unlink()
    (tmp_path / "images" / "b.jpg").unlink()
    picture(tmp_path / "images" / "c.png")
    with pytest.raises(ValueError) as caught:
        load_any(tmp_path, class_names=list("xyz"))
    text = str(caught.value)
    assert "images/a.jpg: no mask with the stem 'a'" in text
    assert "masks/b.png: no picture with the stem 'b'" in text
    assert "one picture and one mask must have the stem 'c'" in text


def test_ids_beyond_the_list_are_named_by_the_check(tmp_path):
    scene(tmp_path, "images/{}.jpg", "masks/{}.png")
    with pytest.raises(ValueError, match=r"masks/.\.png: 400 pixels have labels outside 0\.\.1"):
        check_dataset(load_any(tmp_path, class_names=["x", "y"]))


def test_zero_for_no_class(tmp_path):
    scene(tmp_path, "images/{}.jpg", "masks/{}.png")
    data = load_any(tmp_path, class_names=["x", "y"], reduce_zero_label=True)
    np.testing.assert_array_equal(labels_of(data)["a"], np.array([255, 0, 1])[IDS])
