# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Cityscapes: label ids and train ids, layouts with parts missing, and the wrong kinds of annotation files."""

import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import MissingSplit, check_dataset, load_dataset, undecoded
from hf_segformer.data.cityscapes import CLASS_NAMES, PALETTE
from published_data import labels_of, random_label, random_photo, stored, write_cityscapes, write_picture

# Label id: (name, evaluated), as in the table that comes with the data set.
LABELS = {
    -1: ("license plate", False),
    0: ("unlabeled", False),
    1: ("ego vehicle", False),
    2: ("rectification border", False),
    3: ("out of roi", False),
    4: ("static", False),
    5: ("dynamic", False),
    6: ("ground", False),
    7: ("road", True),
    8: ("sidewalk", True),
    9: ("parking", False),
    10: ("rail track", False),
    11: ("building", True),
    12: ("wall", True),
    13: ("fence", True),
    14: ("guard rail", False),
    15: ("bridge", False),
    16: ("tunnel", False),
    17: ("pole", True),
    18: ("polegroup", False),
    19: ("traffic light", True),
    20: ("traffic sign", True),
    21: ("vegetation", True),
    22: ("terrain", True),
    23: ("sky", True),
    24: ("person", True),
    25: ("rider", True),
    26: ("car", True),
    27: ("truck", True),
    28: ("bus", True),
    29: ("caravan", False),
    30: ("trailer", False),
    31: ("train", True),
    32: ("motorcycle", True),
    33: ("bicycle", True),
}
TRAIN_IDS = {255: 255} | {i: CLASS_NAMES.index(name) if used else 255 for i, (name, used) in LABELS.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp("cityscapes"), values=(*range(34), 255))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "cityscapes")


def annotation(root, name, kind="labelIds", split="train"):
    city, stem = name.split("_")[0], name.removesuffix("_leftImg8bit.png")
    return root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png"


def mapped(values):
    return [[TRAIN_IDS[value] for value in row] for row in values.tolist()]


def test_label_ids_become_train_ids(made):
    data = load_dataset("cityscapes", made)
    assert (data.name, data.num_classes, data.ignore_index) == ("cityscapes", 19, 255)
    assert [len(data.train), len(data.validation)] == [4, 2]
    assert data.train["file_name"][0] == "aachen_000000_000019_leftImg8bit.png"
    for role, split in (("train", "train"), ("validation", "val")):
        for row in undecoded(getattr(data, role)):
            image, label = data.read_sample(row)
            np.testing.assert_array_equal(label, mapped(stored(annotation(made, row["file_name"], split=split))))
            np.testing.assert_array_equal(image, stored(row["image"]["path"]))
    assert check_dataset(data).checked == {"train": 4, "validation": 2}


def test_submission_ids_invert_the_map(made):
    ids = load_dataset("cityscapes", made).submission_ids
    assert [LABELS[label_id][0] for label_id in ids] == list(CLASS_NAMES) and len(PALETTE) == 19
    assert [TRAIN_IDS[label_id] for label_id in ids] == list(range(19))


def test_license_plate_in_a_signed_file(folder):
    name = "aachen_000000_000019_leftImg8bit.png"
    values = random_label(0, [0, 7, 33], (16, 32)).astype(np.int32)
    values[3, 4:9] = -1
    path = annotation(folder, name)
    Image.fromarray(values).save(path.with_suffix(".tif"))
    path.with_suffix(".tif").rename(path)
    np.testing.assert_array_equal(labels_of(load_dataset("cityscapes", folder), "train")[name], mapped(values))


def test_train_ids_are_preferred_when_complete(tmp_path):
    root = write_cityscapes(tmp_path, values=(*range(19), 255), kinds=("labelIds", "labelTrainIds"))
    data = load_dataset("cityscapes", root)
    for name, label in labels_of(data, "train").items():
        np.testing.assert_array_equal(label, stored(annotation(root, name)))
    next((root / "gtFine" / "val" / "lindau").glob("*labelTrainIds.png")).unlink()
    with pytest.warns(UserWarning, match=r"_labelIds\.png hold 0\.\.18 and 255 only.*labelTrainIds\.png"):
        data = load_dataset("cityscapes", root)
    for name, label in labels_of(data, "train").items():
        np.testing.assert_array_equal(label, mapped(stored(annotation(root, name))))


def test_train_ids_alone_must_be_complete(tmp_path):
    root = write_cityscapes(tmp_path, values=(*range(19), 255), kinds=("labelTrainIds",))
    next((root / "gtFine" / "val" / "lindau").glob("*_000001_*labelTrainIds.png")).unlink()
    with pytest.raises(ValueError, match=r"lindau_000001_000019_leftImg8bit\.png: no annotation with the stem"):
        load_dataset("cityscapes", root)


def test_genuine_sample(shared_data, tmp_path):
    root = shared_data / "cityscapes"
    data = load_dataset("cityscapes", root)
    ((name, label),) = labels_of(data, "validation").items()
    assert name == "frankfurt_000000_000294_leftImg8bit.png"
    np.testing.assert_array_equal(label, stored(annotation(root, name, "labelTrainIds", "val")))
    shutil.copytree(root, tmp_path / "copy")
    annotation(tmp_path / "copy", name, "labelTrainIds", "val").unlink()
    data = load_dataset("cityscapes", tmp_path / "copy")
    assert data.annotation_format.id_map
    from_label_ids, values = labels_of(data, "validation")[name], stored(annotation(root, name, split="val"))
    np.testing.assert_array_equal(from_label_ids, mapped(values))
    assert (from_label_ids != label).mean() < 0.003  # both files were made smaller, and differ along some edges
    for value in np.unique(values):
        ids, counts = np.unique(label[values == value], return_counts=True)
        assert ids[counts.argmax()] == TRAIN_IDS[value]
    assert {"road", "car", "sky"} <= {CLASS_NAMES[k] for k in np.unique(label) if k != 255}


def test_validation_alone_can_be_checked_and_used(tmp_path):
    root = write_cityscapes(tmp_path, splits=("val",))
    data = load_dataset("cityscapes", root)
    assert isinstance(data.train, MissingSplit) and len(data.validation) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_dataset(data).checked == {"validation": 2}
    with pytest.raises(ValueError, match=r"no such folder: .*leftImg8bit/train and .*gtFine/train"):
        check_dataset(data, splits=("train", "validation"))


def test_images_of_one_split_missing(folder):
    shutil.rmtree(folder / "leftImg8bit" / "train")
    data = load_dataset("cityscapes", folder)
    with pytest.raises(ValueError, match=r"no such folder: [^ ]*leftImg8bit/train$"):
        len(data.train)
    assert len(data.validation) == 2


@pytest.mark.parametrize("kind", ["instanceIds", "color"])
def test_only_other_kinds_of_annotations(tmp_path, kind):
    root = write_cityscapes(tmp_path, kinds=(kind,))
    message = r"gtFine/train: no files .*_gtFine_labelIds\.png or .* are needed; instanceIds"
    with pytest.raises(ValueError, match=message):
        load_dataset("cityscapes", root)


NAME = "aachen_000000_000019_leftImg8bit.png"


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("labelIds", np.full((16, 32), 26001, np.uint16), r"512 pixels .*: 26001; instance ids .*instanceIds\.png"),
        ("labelIds", random_photo(0, (16, 32)), r"colour picture; this is what \*_gtFine_color\.png hold"),
        ("labelIds", np.full((16, 32), 77, np.uint8), r"values other than -1\.\.33, 255: 77; "),
        ("labelTrainIds", random_label(0, [0, 7, 21, 33], (16, 32)), r"outside 0\.\.18 .*: 21, 33; .*label ids"),
        ("labelTrainIds", random_photo(0, (16, 32)), r"colour picture; this is what \*_gtFine_color\.png hold"),
    ],
)
def test_files_of_another_kind_under_this_name(tmp_path, kind, values, message):
    root = write_cityscapes(tmp_path, values=(*range(19), 255), kinds=(kind,))
    write_picture(annotation(root, NAME, kind), values)
    with pytest.raises(ValueError, match=rf"aachen_000000_000019_gtFine_{kind}\.png: .*{message}"):
        load_dataset("cityscapes", root)


def test_label_ids_in_a_users_own_folder(tmp_path):
    for k in range(3):
        write_picture(tmp_path / "images" / f"{k}.jpg", random_photo(k, (8, 9)))
        write_picture(tmp_path / "annotations" / f"{k}.png", random_label(k, range(34), (8, 9)))
    (tmp_path / "classes.txt").write_text("\n".join(CLASS_NAMES))
    with pytest.raises(ValueError, match=r"19, 20, .*; these may be label ids of Cityscapes \(0\.\.33\)"):
        check_dataset(load_dataset("folder", tmp_path))
