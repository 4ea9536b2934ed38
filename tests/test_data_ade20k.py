# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ADE20K (SceneParse150): layouts, labels against a brute-force reading, and the mistakes people make with it."""

import csv
import pickle
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import MissingSplit, check_dataset, load_dataset, undecoded
from hf_segformer.data.ade20k import CLASS_NAMES, PALETTE
from published_data import labels_of, random_label, random_photo, stored, write_ade20k, write_picture, zip_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_ade20k(tmp_path_factory.mktemp("ade"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / made.name)


def reduced(values):
    """Pixel by pixel: 0 is ignored, k is class k - 1."""
    return [[255 if value in (0, 255) else value - 1 for value in row] for row in values.tolist()]


@pytest.mark.parametrize("parent", [False, True])
def test_published_layout(made, parent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset("ade20k", made.parent if parent else made)
    assert (data.name, data.num_classes, data.ignore_index) == ("ade20k", 150, 255)
    assert data.submission_ids == tuple(range(1, 151))
    assert data.train.column_names == ["image", "annotation", "file_name"]
    assert data.train["file_name"][:] == [f"ADE_train_{i:08d}.jpg" for i in range(1, 6)]
    for split, folder in (("train", "training"), ("validation", "validation")):
        rows = getattr(data, split)
        assert len(rows) == (5 if split == "train" else 3)
        for row in undecoded(rows):
            image, label = data.read_sample(row)
            stem = row["file_name"].removesuffix(".jpg")
            np.testing.assert_array_equal(label, reduced(stored(made / "annotations" / folder / f"{stem}.png")))
            np.testing.assert_array_equal(image, stored(made / "images" / folder / f"{stem}.jpg"))
            assert label.dtype == np.uint8


def test_every_class_is_counted(made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_dataset(load_dataset("ade20k", made))
    assert report.checked == {"train": 5, "validation": 3} and min(report.pixel_counts["train"]) > 0
    every = np.concatenate([stored(p).ravel() for p in sorted((made / "annotations" / "training").iterdir())])
    assert report.pixel_counts["train"] == tuple(int((every == k).sum()) for k in range(1, 151))
    assert report.ignored_pixels["train"] == int((every == 0).sum())


def test_genuine_samples(shared_data):
    data = load_dataset("ade20k", shared_data / "ade20k")
    for split, folder in (("train", "training"), ("validation", "validation")):
        for name, label in labels_of(data, split).items():
            path = shared_data / "ade20k" / "annotations" / folder / name.replace(".jpg", ".png")
            np.testing.assert_array_equal(label, reduced(stored(path)))
    name, label = labels_of(data, "validation").popitem()
    # The first validation picture shows a building with trees under the sky.
    assert name == "ADE_val_00000001.jpg" and {"building", "sky"} <= {CLASS_NAMES[k] for k in np.unique(label)[:-1]}
    assert check_dataset_quietly(data).checked == {"train": 1, "validation": 1}


def check_dataset_quietly(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two pictures do not hold every class
        return check_dataset(data)


def test_names_are_those_of_the_published_table(shared_data):
    with open(shared_data / "ade20k" / "object150_info.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["Idx"]) for row in table] == list(range(1, 151))
    for name, row in zip(CLASS_NAMES, table, strict=True):  # the table has synonyms, one word after the other
        assert set(name.split()) <= set(row["Name"].split(";"))
    assert len(set(CLASS_NAMES)) == 150 == len(PALETTE)


def test_data_survives_pickling(made):
    data = load_dataset("ade20k", made)
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy.read_sample(copy.train[0])[1], data.read_sample(data.train[0])[1])


@pytest.mark.parametrize(("removed", "kept"), [("training", "validation"), ("validation", "training")])
def test_one_split_is_enough(folder, removed, kept):
    for kind in ("images", "annotations"):
        shutil.rmtree(folder / kind / removed)
    data = load_dataset("ade20k", folder)
    missing, there = (data.train, data.validation)[:: 1 if removed == "training" else -1]
    assert isinstance(missing, MissingSplit) and len(there) == (3 if kept == "validation" else 5)
    message = rf"no such folder: .*images/{removed} and .*annotations/{removed}"
    for use in (len, undecoded, lambda split: split[0], list, lambda split: split.column_names):
        with pytest.raises(ValueError, match=message):
            use(missing)
    assert isinstance(pickle.loads(pickle.dumps(data)).train, type(data.train))


def test_both_splits_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder: .*images/training .*; .*images/validation"):
        load_dataset("ade20k", tmp_path)


def test_annotations_missing(folder):
    shutil.rmtree(folder / "annotations")
    with pytest.raises(ValueError, match=r"no such folder: .*annotations/training; no such .*annotations/validation"):
        load_dataset("ade20k", folder)


def test_partner_missing(folder):
    (folder / "annotations" / "training" / "ADE_train_00000002.png").unlink()
    with pytest.raises(ValueError, match=r"ADE_train_00000002\.jpg: no annotation with .*annotations/training"):
        load_dataset("ade20k", folder)
    (folder / "images" / "training" / "ADE_train_00000002.jpg").unlink()
    (folder / "images" / "training" / "ADE_train_00000004.jpg").unlink()
    with pytest.raises(ValueError, match=r"ADE_train_00000004\.png: no image with the stem"):
        load_dataset("ade20k", folder)


def test_empty_folder(folder):
    for path in (folder / "images" / "validation").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"images/validation: no files \*\.jpg here$"):
        load_dataset("ade20k", folder)


def test_folders_swapped(folder):
    (folder / "images").rename(folder / "x")
    (folder / "annotations").rename(folder / "images")
    (folder / "x").rename(folder / "annotations")
    with pytest.raises(ValueError, match=r"images/training: no files \*\.jpg here, but \*\.png: .*swapped"):
        load_dataset("ade20k", folder)


# Annotations of something else


def replace_annotation(folder, picture, stem="ADE_train_00000003"):
    path = folder / "annotations" / "training" / f"{stem}.png"
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)


def test_ids_of_the_full_data_set(folder):
    replace_annotation(folder, random_label(0, [0, 5, 151, 200], (23, 28)))
    with pytest.raises(ValueError, match=r"3\.png: \d+ pixels have values other than 0\.\.150, 255: 151, 200; .*full"):
        load_dataset("ade20k", folder)


def test_sixteen_bit_ids_of_the_full_data_set(folder):
    replace_annotation(folder, np.full((23, 28), 2978, np.uint16))
    with pytest.raises(ValueError, match=r"00003\.png: 644 pixels have values other than .*: 2978; .*full ADE20K"):
        load_dataset("ade20k", folder)


def test_colour_annotations_of_the_full_data_set(folder):
    replace_annotation(folder, random_photo(0, (23, 28)))
    with pytest.raises(ValueError, match=r"3\.png: .*colour picture; .*red and green.*full ADE20K.*ADEChallengeData"):
        load_dataset("ade20k", folder)


@pytest.mark.parametrize(
    "layout", ["ADE20K_2016_07_26/images/training/a/abbey", "images/training/a/abbey", "images/ADE/training/urban"]
)
def test_folders_of_the_full_data_set(tmp_path, layout):
    write_picture(tmp_path / layout / "ADE_train_00000970.jpg", random_photo(0, (8, 9)))
    write_picture(tmp_path / layout / "ADE_train_00000970_seg.png", random_photo(1, (8, 9)))
    with pytest.raises(ValueError, match=r"this is the full ADE20K data set, not SceneParse150.*2016\.zip"):
        load_dataset("ade20k", tmp_path)


def test_zip_of_the_full_data_set(tmp_path):
    inner = tmp_path / "ADE20K_2021_17_01"
    write_picture(inner / "images" / "ADE" / "training" / "ADE_train_1.jpg", random_photo(0, (8, 9)))
    zip_folder(inner, tmp_path / "full.zip")
    with pytest.raises(ValueError, match="this is the full ADE20K data set"):
        load_dataset("ade20k", tmp_path / "full.zip")


def test_annotations_that_are_reduced_already(tmp_path):
    folder = write_ade20k(tmp_path, values=(*range(150), 255))
    with pytest.warns(UserWarning, match=r"annotations hold 255, .*set reduce_zero_label=False"):
        load_dataset("ade20k", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset("ade20k", folder, reduce_zero_label=False)
    for name, label in labels_of(data, "train").items():
        path = folder / "annotations" / "training" / name.replace(".jpg", ".png")
        np.testing.assert_array_equal(label, stored(path))
    assert {0, 149, 255} <= set(np.unique(np.concatenate([x.ravel() for x in labels_of(data, "train").values()])))


def test_published_annotations_taken_for_reduced_ones(folder, tmp_path):
    with pytest.raises(ValueError, match=r"150; these annotations are as published.*set reduce_zero_label=True"):
        load_dataset("ade20k", folder, reduce_zero_label=False)
    without_flags = write_ade20k(tmp_path / "other", values=tuple(range(150)))
    with pytest.warns(UserWarning, match=r"no annotation looked at holds 255.*set reduce_zero_label=True"):
        load_dataset("ade20k", without_flags, reduce_zero_label=False)
