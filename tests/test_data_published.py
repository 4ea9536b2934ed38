# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Published data sets are found out to be what they are, as they are distributed and unpacked."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tool_exports import coco, flat_square, mask, picture

from hf_segformer.data import DataArguments, check_dataset, load_any, load_dataset
from published_data import (
    labels_of,
    random_label,
    random_photo,
    write_ade20k,
    write_cityscapes,
    write_coco_stuff,
    write_picture,
    zip_folder,
)

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian")
CAMVID = (*CAMVID, "bicyclist")


def write_camvid(root, values=tuple(range(12)), prefix="0006R0_f0"):
    """CamVid as the SegNet tutorial has it; 11 is void."""
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for number in range(count):
            stem = f"{prefix}{len(split)}{number:02d}"
            write_picture(root / split / f"{stem}.png", random_photo(number, (12, 16)))
            write_picture(root / f"{split}annot" / f"{stem}.png", random_label(number, values, (12, 16)))
        lines = (f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in range(count))
        (root / f"{split}.txt").write_text("\n".join(lines))
    return root


def write_own_camvid(root):
    for split in ("train", "val"):
        picture(root / split / "images" / "a.jpg")
        mask(root / split / "annotations" / "a.png", np.arange(1200).reshape(30, 40) % 11)
    (root / "classes.json").write_text(json.dumps({"names": list(CAMVID)}))
    return root


def coco_of_mmsegmentation(root):
    return write_coco_stuff(root, suffix="_labelTrainIds.png", values=tuple(range(171)))


def coco_as_published(root):
    return write_coco_stuff(root, "{}", "stuffthingmaps/{}")


def coco_with_archive(root):
    write_coco_stuff(root / "in", "{}", "{}")
    for split in ("train2017", "val2017"):
        for path in (root / "in" / split).glob("*.jpg"):
            (root / split).mkdir(exist_ok=True)
            shutil.move(path, root / split / path.name)
    zip_folder(root / "in" / "train2017", root / "one.zip")
    import zipfile

    with zipfile.ZipFile(root / "stuffthingmaps_trainval2017.zip", "w") as file:
        for path in sorted((root / "in").rglob("*.png")):
            file.write(path, path.relative_to(root / "in"))
    (root / "one.zip").unlink()
    shutil.rmtree(root / "in")
    return root


WRITERS = {
    "ade20k": [write_ade20k, lambda root: write_ade20k(root).parent],
    "cityscapes": [write_cityscapes, lambda root: write_cityscapes(root, tuple(range(19)), ("labelTrainIds",))],
    "coco-stuff": [write_coco_stuff, coco_as_published, coco_of_mmsegmentation, coco_with_archive],
    "camvid": [write_camvid, write_own_camvid],
}


@pytest.mark.parametrize("inside", ["", "downloads/x"])
@pytest.mark.parametrize(("name", "write"), [(name, write) for name, writers in WRITERS.items() for write in writers])
def test_each_is_recognised_and_said_in_the_line(name, write, inside, tmp_path, capsys):
    (tmp_path / "in" / inside).mkdir(parents=True)
    place = write(tmp_path / "in" / inside)
    data = DataArguments(data=str(tmp_path / "in" if inside else place)).load_data()
    count = f"{len(data.train)} pictures to train on, {len(data.validation)} pictures held out"
    assert capsys.readouterr().out == f"{name}: {count}, {data.num_classes} classes\n"
    expected = load_dataset(name, place)
    assert (data.class_names, data.thin_classes) == (expected.class_names, expected.thin_classes)
    for split in ("train", "validation"):
        mine, theirs = labels_of(data, split), labels_of(expected, split)
        assert mine.keys() == theirs.keys() and all((mine[key] == theirs[key]).all() for key in mine)
    check_dataset(data)


@pytest.mark.parametrize("packed", [False, True])
def test_camvid_as_segnet_has_it(tmp_path, packed):
    root = write_camvid(tmp_path / "CamVid")
    if packed:
        shutil.make_archive(str(tmp_path / "camvid"), "zip", root)
    data = load_any(tmp_path / "camvid.zip" if packed else root)
    assert data.class_names == CAMVID and (len(data.train), len(data.validation)) == (3, 2)
    for split, folder in (("train", "trainannot"), ("validation", "valannot")):
        for name, label in labels_of(data, split).items():
            stored = np.asarray(Image.open(root / folder / name))
            np.testing.assert_array_equal(label, np.where(stored == 11, 255, stored))


def test_other_pictures_in_such_folders_are_not_camvid(tmp_path):
    write_camvid(tmp_path, (0, 1, 2), prefix="mine_")
    data = load_any(tmp_path, class_names="a,b,c")
    assert data.class_names == ("a", "b", "c") and "Pictures beside masks" in data.description
    assert (len(data.train), len(data.validation), len(data.other_splits["test"])) == (3, 2, 1)


def test_instances_beside_coco_stuff_are_another_reading(tmp_path):
    root = coco_as_published(tmp_path)
    images = {f"{number:012d}.jpg": (21, 15) for number in (9, 25)}
    shapes = [(name, 1, [flat_square(0, 0)]) for name in images]
    coco(root / "annotations" / "instances_train2017.json", images, shapes, {1: "x"}, root / "train2017")
    with pytest.raises(
        ValueError, match=r"'coco-stuff' \(stuffthingmaps\) and 'coco' \(.*instances_train2017\.json\)"
    ):
        load_any(root)
    assert load_any(root, "coco-stuff").num_classes == 171
    assert load_any(root, "coco").class_names == ("background", "x")


def test_several_in_one_folder(tmp_path):
    write_cityscapes(tmp_path / "city")
    write_ade20k(tmp_path)
    with pytest.raises(ValueError, match=r"several data sets: .*give the folder of one of them"):
        load_any(tmp_path)


def test_masks_of_ones_own_on_pictures_of_coco(tmp_path):
    write_coco_stuff(tmp_path, values=(0, 1))
    (tmp_path / "classes.txt").write_text("no\nyes\n")
    assert load_any(tmp_path).class_names == ("no", "yes")


@pytest.mark.parametrize("option", [{"pictures": "x"}, {"group_by": "x"}])
def test_what_a_published_data_set_has_no_use_for(tmp_path, option):
    root = write_cityscapes(tmp_path)
    (tmp_path / "x").mkdir()
    option = {key: str(tmp_path / value) if key == "pictures" else value for key, value in option.items()}
    with pytest.raises(ValueError, match=rf"data set 'cityscapes' has no option {next(iter(option))}"):
        load_any(root, **option)
