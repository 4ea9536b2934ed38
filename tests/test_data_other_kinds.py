# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports that are not read are named for what they are, with what to export instead."""

import json
import shutil

import numpy as np
import pytest
from annotation_exports import EXPORTS, copied
from tool_exports import SIZE, coco, flat_square, mask, picture

from hf_segformer.data import load_any

IDS = np.arange(1200).reshape(30, 40) % 3


def refused(path, *rules, **options):
    with pytest.raises(ValueError) as caught:
        load_any(path, **options)
    assert all(rule in str(caught.value) for rule in rules), str(caught.value)


# Names as label_studio_sdk.converter.brush.save_brush_images_from_annotation writes them: id or address of the
# annotator, the tag's name, classes with "-" between them, and a number for each brush stroke of the class.
TASKS = [
    "task-1-annotation-3-by-1-tag-Airplane-0.png",
    "task-12-annotation-345-by-me@example.org-brush-a big-car-12.png",
    "task-7-annotation-8-by--tag-no_label-0.npy",
]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("folder", [".", "masks"])
def test_brush_strokes_of_label_studio_as_pictures(tmp_path, name, folder):
    for stem in "abc":
        picture(tmp_path / "images" / f"{stem}.jpg")
    (tmp_path / folder).mkdir(exist_ok=True)
    if name.endswith(".npy"):
        np.save(tmp_path / folder / name, 255 * (IDS > 0))
    else:
        mask(tmp_path / folder / name, 255 * (IDS > 0))
    refused(tmp_path, name, "Label Studio's export of brush strokes", "export JSON, and give it together")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / folder)
    refused(archive, name, "Label Studio's export")


def test_its_json_beside_them_is_read(tmp_path):
    folder = copied("label_studio", tmp_path)
    mask(folder / TASKS[0], 255 * (IDS > 0))
    assert load_any(folder).class_names == load_any(EXPORTS / "label_studio" / "export").class_names


@pytest.mark.parametrize(("suffix", "count"), [(".npy", 3), (".npz", 2), (".mat", 1)])
def test_masks_in_files_of_arrays(tmp_path, suffix, count):
    (tmp_path / "masks").mkdir()
    for index in range(count):
        picture(tmp_path / "images" / f"{index}.jpg")
        (tmp_path / "masks" / f"{index}{suffix}").write_bytes(b"\x93NUMPY")
    refused(tmp_path, f"masks/0{suffix}", f"({count} *{suffix}) are not read; save each as a PNG of label ids")
    refused(tmp_path / "masks" / f"0{suffix}", "save each as a PNG")


def test_arrays_beside_masks_are_no_matter(tmp_path):
    for stem in "abc":
        picture(tmp_path / "images" / f"{stem}.jpg")
        mask(tmp_path / "masks" / f"{stem}.png", IDS)
    np.save(tmp_path / "depth.npy", IDS)
    assert load_any(tmp_path, class_names="x,y,z").num_classes == 3


def keypoints(path):
    coco(path, {"a.jpg": SIZE}, [("a.jpg", 1, [flat_square(0, 0)])], {1: "person"})
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"keypoints": [1, 2, 2], "num_keypoints": 1}
    content["categories"][0] |= {"keypoints": ["nose"], "skeleton": []}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["person_keypoints_train2017.json", "_annotations.coco.json"])
def test_keypoints(tmp_path, name):
    keypoints(tmp_path / name)
    refused(tmp_path, name, "these are COCO keypoints, points without an area; export COCO instances")
    refused(tmp_path / name, name, "it must be a COCO file of instances", "without keypoints", format="coco")
    coco(
        tmp_path / "instances_train2017.json",
        {"a.jpg": SIZE, "b.jpg": SIZE},
        [("a.jpg", 1, flat_square(0, 0))],
        {1: "x"},
    )
    assert load_any(tmp_path).class_names == ("background", "x")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "A cat"}]}, "COCO captions"),
        ([{"image_id": 1, "category_id": 2, "segmentation": {}, "score": 0.5}], "list of COCO results"),
        (
            {"description": "", "tags": [], "size": {"height": 3, "width": 4}, "objects": []},
            "Supervisely's own format",
        ),
        (
            {"a.jpg1234": {"filename": "a.jpg", "size": 1234, "regions": [], "file_attributes": {}}},
            "VGG Image Annotator",
        ),
        ({"_via_img_metadata": {"x": {"filename": "a.jpg", "regions": []}}}, "VGG Image Annotator"),
    ],
)
def test_other_json(tmp_path, content, rule):
    picture(tmp_path / "a.jpg")
    (tmp_path / "x.json").write_text(json.dumps(content))
    refused(tmp_path, "x.json: th", rule)


def test_boxes_of_voc(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation><object><name>x</name>{box}</object></annotation>")
    refused(tmp_path, "Annotations/a.xml: these are boxes of Pascal VOC, not areas")
