# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO instances become label maps as pycocotools draws them, and what is wrong with them is named."""

import json

import numpy as np
import pytest
from tool_exports import GOLDEN, coco, far_differences, flat_square, golden_labels, labels_of, picture

from hf_segformer.data import load_any

KINDS = ((90, "zebra"), (7, "ant"), (12, "bee"))
NAMES = {"a.jpg": (40, 30), "b.jpg": (40, 30)}


@pytest.mark.parametrize("name", ["coco", "coco_roboflow", "coco_datumaro"])
def test_exports_read_as_pycocotools_draws_them(name):
    data = load_any(GOLDEN / name / "export")
    expected, found = golden_labels(name, data.class_names), labels_of(data)
    assert found.keys() == expected.keys()
    for stem in found:
        assert far_differences(found[stem], expected[stem]) == 0
        assert (found[stem] != expected[stem]).mean() < 0.025
    assert "splits as given: 2 train" in data.description


def test_gaps_in_ids_and_the_category_that_stands_above(tmp_path):
    categories = [{"id": 0, "name": "things", "supercategory": "none"}]
    categories += [
        {"id": k, "name": n, "supercategory": "things"} for k, n in ((90, "zebra"), (7, "ant"), (12, "bee"))
    ]
    coco(tmp_path / "_annotations.coco.json", NAMES, [("a.jpg", 90, [flat_square(0, 0)])], categories)
    data = load_any(tmp_path)
    assert data.class_names == ("background", "ant", "bee", "zebra")
    assert labels_of(data)["a"][5, 5] == 3 and labels_of(data)["b"].max() == 0
    assert "category 'things' left out" in data.description


def test_category_0_that_is_used_stays(tmp_path):
    categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 1, "name": "ant", "supercategory": "things"},
    ]
    coco(tmp_path / "x.json", NAMES, [("a.jpg", 0, [flat_square(0, 0)])], categories)
    assert load_any(tmp_path).class_names == ("background", "things", "ant")


def test_small_on_top_whatever_the_order_and_the_stated_area(tmp_path):
    shapes = [("a.jpg", 2, [flat_square(5, 5, 4)]), ("a.jpg", 1, [flat_square(2, 2, 20)])]
    path = coco(tmp_path / "x.json", NAMES, shapes, {1: "large", 2: "small"})
    assert labels_of(load_any(path))["a"][7, 7] == 2


def test_both_kinds_of_runs(tmp_path):
    pixels = np.zeros((30, 40), bool)
    pixels[3:9, 4:30] = True
    # Written down by hand: down the columns, beginning outside.
    counts = [4 * 30 + 3, *([6, 24] * 25), 6, 0]
    counts[-1] = 1200 - sum(counts[:-1])
    plain = {"size": [30, 40], "counts": counts}
    from hf_segformer.data.rle import encode_coco

    packed = plain | {"counts": encode_coco(np.array(counts))}
    shapes = [("a.jpg", 1, plain), ("b.jpg", 1, packed)]
    found = labels_of(load_any(coco(tmp_path / "x.json", NAMES, shapes, {1: "x"})))
    for stem in "ab":
        np.testing.assert_array_equal(found[stem] == 1, pixels)


def test_splits_by_files_with_pictures_of_the_same_names(tmp_path):
    for split, category in (("train2017", "ant"), ("val2017", "ant")):
        shapes = [("a.jpg", 1, [flat_square(0, 0)])]
        coco(tmp_path / "annotations" / f"instances_{split}.json", NAMES, shapes, {1: category}, tmp_path / split)
    data = load_any(tmp_path)
    assert data.train["file_name"][:] == ["train2017/a.jpg", "train2017/b.jpg"]
    assert data.validation["file_name"][:] == ["val2017/a.jpg", "val2017/b.jpg"]


def test_boxes_alone_are_no_segmentation(tmp_path):
    path = coco(tmp_path / "x.json", NAMES, [("a.jpg", 1, []), ("a.jpg", 1, [])], {1: "x"})
    with pytest.raises(ValueError, match="boxes alone, without segmentation"):
        load_any(path)
    coco(path, NAMES, [("a.jpg", 1, []), ("a.jpg", 1, [flat_square(1, 1)])], {1: "x"})
    assert "1 boxes without segmentation left out" in load_any(path).description


RUNS = {"size": [30, 40], "counts": [5, 3]}


@pytest.mark.parametrize(
    "category, segmentation, rule",
    [
        (1, [[1, 2, 3, 4]], r"annotation 1 \('car'\): a polygon needs at least 3 points, got 2"),
        (1, [[1, 2, 3, 4, 5]], r"annotation 1 \('car'\): a polygon must be a list x, y, x, y"),
        (1, ["text"], r"annotation 1 \('car'\): a polygon must be a list"),
        (1, "text", r"annotation 1 \('car'\): segmentation must be a list of polygons, or RLE"),
        (1, RUNS, r"annotation 1 \('car'\): RLE runs must add up to height \* width = 30 \* 40 = 1200, got 8"),
        (
            1,
            RUNS | {"size": [40, 30]},
            r"annotation 1 \('car'\): the size of RLE must .* got \[40, 30\]",
        ),
        (1, RUNS | {"counts": "~"}, r"annotation 1 \('car'\): an RLE string has characters"),
        (5, [flat_square(1, 1)], r"annotation 1: category_id 5 is not among 1, 2"),
        (2, [flat_square(1, 1)], r"annotation 1 \('bus'\): the category is not in the list of classes: car"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, category, segmentation, rule):
    shapes = [("a.jpg", 1, [flat_square(1, 1)]), ("b.jpg", category, segmentation)]
    path = coco(tmp_path / "x.json", NAMES, shapes, {1: "car", 2: "bus"})
    with pytest.raises(ValueError, match=rf"COCO instances: 1 annotation is wrong:\n  .*x\.json: {rule}"):
        load_any(path, class_names=["car"])


def test_wrong_images_are_named(tmp_path):
    path = coco(tmp_path / "x.json", NAMES, [("a.jpg", 1, [flat_square(1, 1)])], {1: "car"})
    content = json.loads(path.read_text())
    content["images"] += [
        {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 8, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 9, "file_name": "missing.jpg", "width": 40, "height": 30},
        {"id": 10, "file_name": "a.jpg", "width": 0, "height": 30},
        {"file_name": "a.jpg"},
    ]
    content["annotations"].append({"image_id": 77, "category_id": 1, "segmentation": [flat_square(1, 1)]})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        load_any(path)
    text = str(caught.value)
    for rule in (
        "image 2: its id 1 is that of image 0",
        "image 3: its picture b.jpg is annotated twice",
        "image 4: picture 'missing.jpg' is missing",
        "image 5: width and height must be integers",
        "image 6: it must have an id",
        "annotation 1: image_id 77 is not among the images",
    ):
        assert rule in text, text


def test_categories_that_disagree_between_files(tmp_path):
    for split, name in (("train", "ant"), ("valid", "bee")):
        folder = tmp_path / split
        coco(folder / "_annotations.coco.json", NAMES, [("a.jpg", 1, [flat_square(0, 0)])], {1: name})
    with pytest.raises(ValueError, match="id 1 must stand for one name, got 'ant' and 'bee'"):
        load_any(tmp_path)


def test_pictures_elsewhere_are_named_by_the_user(tmp_path):
    path = coco(
        tmp_path / "json" / "result.json", NAMES, [("a.jpg", 1, [flat_square(0, 0)])], {1: "x"}, tmp_path / "p"
    )
    with pytest.raises(ValueError, match=r"picture 'a\.jpg' is missing"):
        load_any(path)
    assert len(load_any(path, pictures=tmp_path / "p").train) == 1
    picture(tmp_path / "p" / "more" / "a.jpg")
    with pytest.raises(ValueError, match=r"picture 'a\.jpg': several files fit"):
        load_any(tmp_path / "json", pictures=tmp_path / "p")
