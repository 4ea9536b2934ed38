# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Every export is found out to be what it is, and nothing else."""

import shutil

import pytest
from annotation_exports import EXPORTS

from hf_segformer.data import load_annotated
from hf_segformer.data.formats import FORMATS, GENERAL, recognise
from hf_segformer.data.source import Source

EXPECTED = {
    "labelme": "labelme",
    "labelme2voc": "voc",
    "labelme2voc_before_5.3": "voc",
    "coco": "coco",
    "coco_roboflow": "coco",
    "coco_datumaro": "coco",
    "yolo": "yolo",
    "yolo_roboflow": "yolo",
    "yolo_cvat": "yolo",
    "yolo_masks": "yolo",
    "voc": "voc",
    "cvat_masks": "cvat-masks",
    "cvat_images": "cvat",
    "cvat_images_datumaro": "cvat",
    "roboflow_masks": "roboflow",
    "coco_panoptic": "coco-panoptic",
    "label_studio": "label-studio",
    "kaggle": "kaggle",
}


@pytest.mark.parametrize(("export", "format"), EXPECTED.items())
def test_each_export_has_one_reading(export, format, tmp_path):
    shutil.copytree(EXPORTS / export / "export", tmp_path / "in" / "a folder" / "data set")
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", EXPORTS / export / "export")
    for place in (EXPORTS / export / "export", tmp_path / "in", archive):
        source = Source(place)
        readings = {name for name, module in FORMATS.items() if module.recognise(source) is not None}
        assert readings - {GENERAL} == {format}, place
        assert recognise(source) == format


def test_every_export_is_tried():
    assert {path.parent.name for path in EXPORTS.glob("*/export")} == set(EXPECTED)


def test_every_format_has_an_export():
    assert set(FORMATS) - {GENERAL} == set(EXPECTED.values())


@pytest.mark.parametrize("format", sorted({"voc", "cvat-masks", "cvat", "roboflow", "coco-panoptic", "kaggle"}))
def test_a_format_that_does_not_fit_says_what_it_lacks(format):
    with pytest.raises(ValueError, match=r"yolo/export: no .* found"):
        load_annotated(EXPORTS / "yolo" / "export", format)


def test_json_that_is_cut_off_is_named(tmp_path):
    shutil.copytree(EXPORTS / "label_studio" / "export", tmp_path / "data")
    (path,) = (tmp_path / "data").glob("*.json")
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    for format in (None, "label-studio", "coco-panoptic"):
        with pytest.raises(ValueError, match=r"0badcafe.json: it is no JSON file"):
            load_annotated(tmp_path / "data", format)


@pytest.mark.parametrize(
    ("export", "file", "format"),
    [
        ("yolo_cvat", "data.yaml", "yolo"),
        ("cvat_masks", "labelmap.txt", "cvat-masks"),
        ("labelme2voc", "class_names.txt", "voc"),
        ("cvat_images", "annotations.xml", "cvat"),
        ("roboflow_masks", "train/_classes.csv", "roboflow"),
        ("coco_panoptic", "annotations/panoptic_train.json", "coco-panoptic"),
        ("label_studio", "project-1-at-2026-11-28-08-00-0badcafe.json", "label-studio"),
        ("kaggle", "train.csv", "kaggle"),
    ],
)
def test_a_single_file_stands_for_its_export(export, file, format):
    source = Source(EXPORTS / export / "export" / file)
    assert recognise(source) == format
    assert len(FORMATS[format].read(source, None).pictures) >= 2
