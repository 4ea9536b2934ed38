# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO panoptic against label maps of datumaro, which wrote the files."""

import json

import numpy as np
import pytest
from annotation_exports import EXPORTS, assert_agrees, copied, label_maps
from PIL import Image

from hf_segformer.data import load_annotated

TRAIN = "annotations/panoptic_train.json"
YARD = "annotations/panoptic_train/yard.png"


@pytest.fixture(autouse=True)
def masks_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path / "masks"))


def test_segments_have_their_category_and_the_rest_none():
    data = load_annotated(EXPORTS / "coco_panoptic" / "export")
    assert data.class_names == ("grass", "gravel path", "Büsche", "pond", "lamp")
    assert [len(data.train), len(data.validation)] == [2, 1]
    assert_agrees(data, "coco_panoptic", reach=0, outside="ignored")
    data = load_annotated(EXPORTS / "coco_panoptic" / "export", unlabeled="background")
    assert_agrees(data, "coco_panoptic", reach=0)


def changed(tmp_path, change):
    folder = copied("coco_panoptic", tmp_path)
    content = json.loads((folder / TRAIN).read_text())
    change(content)
    (folder / TRAIN).write_text(json.dumps(content))
    return folder


def test_category_ids_with_gaps_and_large_numbers(tmp_path):
    def change(content):
        for entry in content["categories"]:
            entry["id"] = entry["id"] * 10 + 3
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["category_id"] = segment["category_id"] * 10 + 3
                segment["id"] += 70000

    folder = changed(tmp_path, change)
    (folder / "annotations" / "panoptic_val.json").unlink()
    for path in (folder / "annotations" / "panoptic_train").iterdir():
        numbers = np.asarray(Image.open(path)).astype(int) @ [1, 256, 65536]
        numbers = np.where(numbers, numbers + 70000, 0)
        Image.fromarray(np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16], -1).astype(np.uint8)).save(path)
    expected = label_maps(load_annotated(EXPORTS / "coco_panoptic" / "export"))
    assert (label_maps(load_annotated(folder))["yard"] == expected["yard"]).all()


def test_a_changed_png_is_read_again(tmp_path):
    folder = copied("coco_panoptic", tmp_path)
    before = label_maps(load_annotated(folder))["yard"]
    colors = np.array(Image.open(folder / YARD))
    colors[:] = 0
    Image.fromarray(colors).save(folder / YARD)
    after = label_maps(load_annotated(folder))["yard"]
    assert (before != 255).any()
    assert (after == 255).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0]["segments_info"].pop(), "segments_info must name every number in the PNG"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=9), "no category has the id 9"),
        (lambda c: c["annotations"][0].update(image_id=99), "image_id must be the id of an image, got 99"),
        (lambda c: c["annotations"][0].update(file_name="gone.png"), "picture 'gone.png' is missing"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "annotated more than once"),
        (lambda c: c["categories"].pop(), "its categories must be those of the other files"),
        (lambda c: c.update(images=3), "images must be a list of objects with an id, got 3"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "picture 'gone.jpg' is missing"),
    ],
)
def test_bad_file_is_named(tmp_path, change, message):
    folder = changed(tmp_path, change)
    with pytest.raises(ValueError) as raised:
        load_annotated(folder)
    assert message in str(raised.value)


def test_grey_png_is_named(tmp_path):
    folder = copied("coco_panoptic", tmp_path)
    Image.open(folder / YARD).convert("L").save(folder / YARD)
    with pytest.raises(ValueError, match=r"yard.png: a PNG of segments must be in colour"):
        load_annotated(folder)
