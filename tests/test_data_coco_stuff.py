# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO-Stuff 164k: published pixel maps and converted ones, in every layout people unpack them into."""

import numpy as np
import pytest

from hf_segformer.data import check_dataset, load_dataset
from hf_segformer.data.coco_stuff import CLASS_NAMES, PALETTE
from published_data import COCO_RAW_IDS, labels_of, random_label, random_photo, stored, write_coco_stuff, write_picture

TRAIN_IDS = {raw: k for k, raw in enumerate(COCO_RAW_IDS)} | {255: 255}
LAYOUTS = [
    ("images/{}", "annotations/{}"),
    ("images/{}", "stuffthingmaps/{}"),
    ("{}", "stuffthingmaps/{}"),
    ("{}", "stuffthingmaps_trainval2017/{}"),
    ("{}", "{}"),
]


def mapped(values):
    return [[TRAIN_IDS[value] for value in row] for row in values.tolist()]


@pytest.mark.parametrize(("images", "annotations"), LAYOUTS)
def test_published_pixel_maps(tmp_path, images, annotations):
    data = load_dataset("coco-stuff", write_coco_stuff(tmp_path, images, annotations))
    assert (data.name, data.num_classes, data.submission_ids) == ("coco-stuff", 171, None)
    assert data.train["file_name"][:] == ["000000000009.jpg", "000000000025.jpg", "000000000030.jpg"]
    assert len(data.validation) == 2
    for role, split in (("train", "train2017"), ("validation", "val2017")):
        for name, label in labels_of(data, role).items():
            path = tmp_path / annotations.format(split) / name.replace(".jpg", ".png")
            np.testing.assert_array_equal(label, mapped(stored(path)))


def test_every_class_is_read(tmp_path):
    data = load_dataset("coco-stuff", write_coco_stuff(tmp_path))
    report = check_dataset(data)
    assert min(report.pixel_counts["train"]) >= 3 and len(report.pixel_counts["train"]) == 171


@pytest.mark.parametrize("annotations", ["annotations/{}", "{}"])
def test_converted_maps_are_preferred_when_complete(tmp_path, annotations):
    """The converter writes its files beside the ones it has read."""
    root = write_coco_stuff(tmp_path, annotations=annotations)
    values = (*range(171), 255)
    write_coco_stuff(tmp_path, annotations=annotations, suffix="_labelTrainIds.png", values=values)
    data = load_dataset("coco-stuff", root)
    assert not data.annotation_format.id_map
    for name, label in labels_of(data, "train").items():
        path = root / annotations.format("train2017") / name.replace(".jpg", "_labelTrainIds.png")
        np.testing.assert_array_equal(label, stored(path))
    (root / annotations.format("val2017") / "000000000139_labelTrainIds.png").unlink()
    data = load_dataset("coco-stuff", root)  # half converted: the published maps hold the same
    assert data.annotation_format.id_map and len(data.train) == 3
    name = "000000000009.jpg"
    expected = mapped(stored(root / annotations.format("train2017") / "000000000009.png"))
    np.testing.assert_array_equal(labels_of(data, "train")[name], expected)


@pytest.mark.parametrize(
    ("suffix", "values", "message"),
    [
        (".png", random_label(0, (0, 11, 25, 200), (15, 21)), r"other than 0\.\.10, 12\.\.24, .*: 11, 25, 200; the"),
        (".png", random_photo(0, (15, 21)), r"colour picture; .*panoptic task; use stuffthingmaps"),
        ("_labelTrainIds.png", random_label(0, (0, 171, 181), (15, 21)), r"\.\.170 .*: 171, 181; .* pixel maps"),
    ],
)
def test_wrong_annotations(tmp_path, suffix, values, message):
    root = write_coco_stuff(tmp_path, suffix=suffix, values=(*range(11), 255))
    write_picture(root / "annotations" / "train2017" / f"000000000025{suffix}", values)
    with pytest.raises(ValueError, match=rf"000000000025{suffix}: .*{message}"):
        load_dataset("coco-stuff", root)


def test_missing_files(tmp_path):
    root = write_coco_stuff(tmp_path)
    (root / "annotations" / "train2017" / "000000000030.png").unlink()
    with pytest.raises(ValueError, match=r"30\.jpg: no annotation with the stem '000000000030' in .*train2017"):
        load_dataset("coco-stuff", root)
    with pytest.raises(ValueError, match=r"no such folder: .*/annotations/train2017; no such .*/annotations/val2017"):
        load_dataset("coco-stuff", tmp_path / "images")


def test_names_are_unique():
    assert len(set(CLASS_NAMES)) == 171 == len(PALETTE) and len(COCO_RAW_IDS) == 171
