# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Files for the benchmark servers of Cityscapes and ADE20K."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segformer.data import ade20k, cityscapes
from hf_segformer.evaluation.submission import prediction_names, save_submission_png, submission_ids

# cityscapesScripts 2.3.0, helpers/labels.py: `id` of the labels with `trainId` 0..18.
LABEL_ID_OF = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}


def random_labels(classes, seed=0):
    return np.random.default_rng(seed).integers(0, classes, (21, 34))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_cityscapes_label_ids(as_tensor, tmp_path):
    labels = random_labels(19)
    path = tmp_path / "new" / "berlin_000000_000019_leftImg8bit.png"
    save_submission_png(path, torch.tensor(labels) if as_tensor else labels, submission_ids("cityscapes"))
    picture = Image.open(path)
    assert picture.mode == "L" and picture.size == (34, 21)
    written = np.asarray(picture)
    for train_id, name in enumerate(cityscapes.CLASS_NAMES):
        assert (written[labels == train_id] == LABEL_ID_OF[name]).all()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_ade20k_values_of_the_published_table(shared_data, tmp_path):
    with open(shared_data / "ade20k" / "object150_info.csv") as file:
        rows = list(csv.DictReader(file))
    labels = random_labels(150)
    save_submission_png(tmp_path / "ADE_test_00000001.png", labels, submission_ids("ade20k"))
    written = np.asarray(Image.open(tmp_path / "ADE_test_00000001.png"))
    assert np.array_equal(written, labels + 1)
    for class_id, name in enumerate(ade20k.CLASS_NAMES):
        assert int(rows[class_id]["Idx"]) == submission_ids("ade20k")[class_id]
        assert name in rows[class_id]["Name"].replace(";", " ")


def test_label_ids_of_a_published_annotation(shared_data, tmp_path):
    """Perfect train ids, submitted, are the published label ids wherever a class is evaluated."""
    folder = shared_data / "cityscapes" / "gtFine" / "val" / "frankfurt"
    train_ids = np.asarray(Image.open(next(folder.glob("*_labelTrainIds.png"))))
    label_ids = np.asarray(Image.open(next(folder.glob("*_labelIds.png"))))
    evaluated = train_ids < 19
    save_submission_png(tmp_path / "a.png", np.where(evaluated, train_ids, 0), submission_ids("cityscapes"))
    assert 0.5 < evaluated.mean() < 1
    equal = np.asarray(Image.open(tmp_path / "a.png"))[evaluated] == label_ids[evaluated]
    assert equal.mean() > 0.99  # the two files were reduced in size apart, so a few pixels at borders differ


def test_data_sets_without_a_server_keep_their_ids(tmp_path):
    labels = random_labels(7)
    save_submission_png(tmp_path / "a.png", labels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), labels)


def test_a_class_without_a_pixel_value(tmp_path):
    with pytest.raises(ValueError, match=r"classes in \[0, 19\), got 19"):
        save_submission_png(tmp_path / "a.png", np.array([[0, 19]]), submission_ids("cityscapes"))
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 255\]"):
        save_submission_png(tmp_path / "a.png", np.array([[0, 1]]), [3, 256])
    with pytest.raises(ValueError, match="one of ade20k, cityscapes, got 'camvid'"):
        submission_ids("camvid")
    assert not list(tmp_path.iterdir())


def test_names():
    names = prediction_names(["berlin/berlin_000000_000019_leftImg8bit.png", "ADE_test_00000001.jpg", "row 1.5"])
    assert list(names.values()) == ["berlin_000000_000019_leftImg8bit.png", "ADE_test_00000001.png", "row 1.5.png"]
    inside = prediction_names(["/data/a/1.jpg", "b/1.jpg", "../1.jpg"], keep_folders=True)
    assert list(inside.values()) == ["data/a/1.png", "b/1.png", "1.png"]


@pytest.mark.parametrize("pair", [("a/1.png", "b/1.png"), ("1.jpg", "1.png"), ("1.png", "1.png")])
def test_two_pictures_with_one_name(pair):
    with pytest.raises(ValueError, match=f"{pair[0]} and {pair[1]} would both be written to 1.png"):
        prediction_names(pair)
