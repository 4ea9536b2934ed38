# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What is the same for all annotation formats: finding out, splits, unlabelled pixels, maps of ids, the cache."""

import importlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tool_exports import GOLDEN, age, coco, flat_square, labelme, labels_of, mask, picture, square
from transformers import HfArgumentParser

from hf_segformer.data import DataArguments, check_dataset, drawn_masks, load_any, load_dataset, write_dataset
from hf_segformer.data.splits import deal_groups
from hf_segformer.training import TrainArguments

IDS = np.arange(1200).reshape(30, 40) % 3


def folder_of(root: Path, count: int = 10, split: str = "") -> Path:
    """labelme files; the last two pictures have a rare class."""
    (root / split).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        shapes = [square("car", 1, 1)] + [square("rare", 20, 10)] * (index >= count - 2)
        labelme(root / split / f"p{index}_{'ab'[index % 2]}.json", shapes)
    return root


def names(data, split="train"):
    return sorted(getattr(data, split)["file_name"][:])


# ---- finding out


def test_one_line_says_what_was_found(tmp_path, capsys):
    folder_of(tmp_path)
    DataArguments(data=str(tmp_path)).load_data()
    assert capsys.readouterr().out == (
        "labelme: 10 pictures, 3 classes; 89.7 % of the pixels outside every shape -> class 0 background; --unlabeled "
        "ignore leaves them out; 2 of 10 held out (seed 0)\n"
    ).replace("89.7", f"{100 * (1 - (10 * 100 + 2 * 100) / 12000):.3g}")


def test_two_readings_are_named_and_format_says_which(tmp_path):
    folder_of(tmp_path)
    images = {f"p{k}.jpg": (40, 30) for k in range(3)}
    coco(tmp_path / "instances.json", images, [("p0.jpg", 1, [flat_square(0, 0)])], {1: "x"})
    with pytest.raises(ValueError, match=r"can be read as 'labelme' \(.*\) and 'coco' \(.*\); format must say which"):
        load_any(tmp_path)
    assert load_any(tmp_path, "coco").class_names == ("background", "x")
    assert load_any(tmp_path, "labelme").class_names == ("background", "car", "rare")


def test_nothing_known_and_nothing_there(tmp_path):
    picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="no annotations of a known kind found"):
        load_any(tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        load_any(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"format must be one of .*did you mean 'labelme'"):
        load_any(tmp_path, "labelm")


def test_a_zip_file_and_a_single_file(tmp_path):
    folder_of(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
        for path in sorted((tmp_path / "data").iterdir()):
            file.write(path, f"export/{path.name}")
        file.writestr("__MACOSX/export/._p0_a.json", "no json")
    zipped, plain = load_any(tmp_path / "data.zip"), load_any(tmp_path / "data")
    check_dataset(zipped)
    for stem, label in labels_of(plain).items():
        np.testing.assert_array_equal(labels_of(zipped)[stem], label)


def test_pipes_and_circles_of_links_do_not_hold_it_up(tmp_path):
    folder_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(load_any(tmp_path).train) == 8


def test_published_layouts_and_our_own(tmp_path):
    for split in ("train", "val"):
        for stem in "abc":
            picture(tmp_path / split / "images" / f"{stem}.png")
            mask(tmp_path / split / "annotations" / f"{stem}.png", IDS)
    (tmp_path / "classes.json").write_text('{"names": ["x", "y", "z"]}')
    ours, before = load_any(tmp_path), load_dataset("folder", tmp_path)
    assert (ours.class_names, len(ours.train), len(ours.validation)) == (before.class_names, 3, 3)


def test_the_flags_of_training_take_it(tmp_path, capsys):
    folder_of(tmp_path / "export", 4)
    flags = ["--data", str(tmp_path / "export"), "--validation_fraction", "0.5", "--thin_classes", "rare"]
    (arguments,) = HfArgumentParser(TrainArguments).parse_args_into_dataclasses(flags)
    data = arguments.load_data()
    assert "labelme: 4 pictures, 3 classes; " in capsys.readouterr().out
    assert (data.thin_classes, len(data.validation)) == (("rare",), 2)
    assert (arguments.dataset, arguments.data_name, arguments.crop_size) == ("export", "export", 512)  # not "scenes"
    with pytest.raises(ValueError, match="dataset must be left out with data, got 'camvid'"):
        TrainArguments(data=str(tmp_path), dataset="camvid")


@pytest.mark.parametrize("more", [{"data_root": "x"}, {"data": "nowhere", "format": "labelme"}])
def test_flags_that_do_not_go_together(tmp_path, more):
    with pytest.raises(ValueError, match=r"data_root must be left out|nowhere: no such file"):
        DataArguments(**({"data": str(tmp_path)} | more)).load_data()


# ---- splits


@pytest.mark.parametrize("train, validation", [("train", "valid"), ("Train", "val"), ("training", "validation")])
def test_splits_as_the_tool_made_them(tmp_path, train, validation):
    for split in (train, validation, "test"):
        folder_of(tmp_path, 3, split)
    data = load_any(tmp_path)
    assert all(name.startswith(f"{train}/") for name in names(data))
    assert all(name.startswith(f"{validation}/") for name in names(data, "validation"))
    assert f"splits as given: 3 {train}, 3 {validation} (not used: 3 test)" in data.description


def test_split_names_of_ones_own(tmp_path):
    for split in ("train", "valid", "test"):
        folder_of(tmp_path, 3, split)
    assert names(load_any(tmp_path, validation_split="test"), "validation")[0].startswith("test/")
    with pytest.raises(ValueError, match=r"validation_split must be one of the splits .*got 'night'"):
        load_any(tmp_path, validation_split="night")
    with pytest.raises(ValueError, match="must be different"):
        load_any(tmp_path, train_split="test", validation_split="test")


def test_a_fifth_is_held_out_with_rare_classes_on_both_sides(tmp_path):
    folder_of(tmp_path, 20)
    data = load_any(tmp_path)
    assert (len(data.train), len(data.validation)) == (16, 4)
    for split in ("train", "validation"):
        report = check_dataset(data, splits=[split])
        assert report.pixel_counts[split][2] > 0
    assert names(load_any(tmp_path)) == names(data)
    assert names(load_any(tmp_path, split_seed=1)) != names(data)


def test_rare_classes_come_to_both_sides_when_several_are_rare():
    groups = {f"p{k}": (1, frozenset({0} | ({k // 2 + 1} if k < 8 else set()))) for k in range(40)}
    for seed in range(20):
        parts = deal_groups(groups, [0.2, 0.8], seed)
        for label in range(1, 5):
            assert {parts[f"p{k}"] for k in range(2 * label - 2, 2 * label)} == {0, 1}
        assert sum(part == 0 for part in parts.values()) == 8


def test_groups_stay_together(tmp_path):
    folder_of(tmp_path)
    data = load_any(tmp_path, group_by=r"_([ab])\.")
    sides = [{name[-5] for name in names(data, split)} for split in ("train", "validation")]
    assert sorted(map(sorted, sides)) == [["a"], ["b"]]
    with pytest.raises(ValueError, match="group_by 'p0' must be found in the name of every picture, not in 'p1_b"):
        load_any(tmp_path, group_by="p0")
    with pytest.raises(ValueError, match="at least 2 groups of pictures"):
        load_any(tmp_path, group_by="p")
    with pytest.raises(ValueError, match="group_by must be a regular expression"):
        load_any(tmp_path, group_by="(")


def test_folds_hold_out_every_picture_once(tmp_path):
    folder_of(tmp_path, 11)
    held_out = [names(load_any(tmp_path, folds=4, fold=k), "validation") for k in range(4)]
    assert sorted(name for part in held_out for name in part) == sorted(f"p{k}_{'ab'[k % 2]}.jpg" for k in range(11))
    assert {len(part) for part in held_out} <= {2, 3}
    data = load_any(tmp_path, folds=4, fold=1)
    assert not set(names(data)) & set(held_out[1]) and "fold 1 of 0..3" in data.description


@pytest.mark.parametrize(
    "options, rule",
    [
        ({"folds": 4, "fold": 4}, r"fold must be in 0\.\.3, got 4"),
        ({"folds": 4}, r"fold must be in 0\.\.3, got None"),
        ({"fold": 1}, "fold goes with folds"),
        ({"folds": 1, "fold": 0}, "folds must be at least 2"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie between 0 and 1"),
        ({"folds": 30, "fold": 0}, "at least 30 pictures are needed"),
        ({"unlabeled": "sky"}, r"unlabeled must be .*\(car, rare\), got 'sky'"),
        ({"mask_orientation": "left"}, "mask_orientation must be one of upright, stored"),
        ({"image_column": "x"}, "has no option image_column"),
    ],
)
def test_wrong_options(tmp_path, options, rule):
    folder_of(tmp_path)
    with pytest.raises(ValueError, match=rule):
        load_any(tmp_path, **options)


# ---- pixels outside every shape


def test_unlabelled_pixels(tmp_path):
    folder_of(tmp_path)
    assert labels_of(load_any(tmp_path))["p0_a"][29, 39] == 0
    ignored = load_any(tmp_path, unlabeled="ignore")
    assert ignored.class_names == ("car", "rare") and labels_of(ignored)["p0_a"][29, 39] == 255
    assert "ignored" in ignored.description
    named = load_any(tmp_path, unlabeled="rare")
    assert named.class_names == ("car", "rare") and labels_of(named)["p0_a"][29, 39] == 1


def test_no_background_is_made_up_where_every_pixel_is_labelled(tmp_path):
    for name in "ab":
        labelme(tmp_path / f"{name}.json", [square("floor", -5, -5, 100), square("car", 1, 1)])
    data = load_any(tmp_path)
    assert data.class_names == ("car", "floor") and "outside" not in data.description
    assert load_any(tmp_path, unlabeled="background").class_names == ("background", "car", "floor")


def test_more_than_254_classes(tmp_path):
    for name in "ab":
        labelme(tmp_path / f"{name}.json", [square(f"c{k:03}", k % 39, k // 39, 1) for k in range(300)])
    data = load_any(tmp_path)
    assert data.num_classes == 301 and data.ignore_index == 65535
    label = labels_of(data)["a"]
    assert label[0, 0] == 1 and label[299 // 39, 299 % 39] == 300
    write_dataset(data, tmp_path / "out")
    np.testing.assert_array_equal(labels_of(load_dataset("folder", tmp_path / "out"))["a"], label)


# ---- maps of ids


def test_label_map_for_shapes_and_masks(tmp_path):
    folder_of(tmp_path / "shapes")
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"0": None, "1": 0, "2": 0}))
    data = load_any(tmp_path / "shapes", label_map=path)
    assert data.class_names == ("car/rare",)
    label = labels_of(data)["p9_b"]
    assert [label[5, 5], label[15, 25], label[29, 39]] == [0, 0, 255]
    for stem in "abc":
        picture(tmp_path / "masks" / "images" / f"{stem}.jpg")
        mask(tmp_path / "masks" / "masks" / f"{stem}.png", IDS)
    masks = load_any(tmp_path / "masks", label_map=path, class_names=["thing"])
    np.testing.assert_array_equal(labels_of(masks)["a"], np.array([255, 0, 0])[IDS])


def test_label_ids_of_cityscapes(tmp_path):
    values = np.arange(1200).reshape(30, 40) % 34
    for stem in "abc":
        picture(tmp_path / "images" / f"{stem}.jpg")
        mask(tmp_path / "annotations" / f"{stem}.png", values)
    data = load_any(tmp_path, label_map="cityscapes")
    assert data.num_classes == 19 and data.class_names[13] == "car"
    assert labels_of(data)["a"].ravel()[[7, 26, 0]].tolist() == [0, 13, 255]
    (tmp_path / "classes.txt").write_text("\n".join(data.class_names))
    folder = load_dataset("folder", tmp_path, label_map="cityscapes")
    np.testing.assert_array_equal(labels_of(folder)["a"], labels_of(data)["a"])


def test_label_ids_of_cityscapes_in_parquet(tmp_path):
    import datasets

    values = np.arange(1200).reshape(30, 40) % 34
    rows = {"image": [str(picture(tmp_path / f"{k}.png")) for k in range(3)]}
    rows["label"] = [str(mask(tmp_path / f"m{k}.png", values)) for k in range(3)]
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "p").mkdir()
    table.cast_column("label", datasets.Image()).to_parquet(tmp_path / "p" / "train-0.parquet")
    options = {"label_map": "cityscapes", "allow_outside_files": True}
    data = load_dataset("parquet", tmp_path / "p", **options)
    assert data.num_classes == 19
    _, label = data.read_sample(data.train[0])
    assert label.ravel()[[7, 26, 0]].tolist() == [0, 13, 255]
    assert load_any(tmp_path / "p", **options).description.startswith(
        "parquet: 2 pictures to train on, 1 pictures held out"
    )


@pytest.mark.parametrize(
    "content, rule",
    [
        ({"0": 0, "1": 2, "2": 2}, r"new ids must be 0\.\.1 without gaps, got \[0, 2\]"),
        ({"0": 0, "1": 1}, "must map every class, not so rare"),
        ({"a": 0}, "label ids must be integers"),
        ({}, r"new ids must be 0\.\.0"),
        ([1], "must hold an object"),
    ],
)
def test_wrong_label_maps(tmp_path, content, rule):
    folder_of(tmp_path / "d")
    (tmp_path / "map.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rule):
        load_any(tmp_path / "d", label_map=tmp_path / "map.json")


# ---- pictures that EXIF turns


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_stored_as_the_pixels_are(tmp_path, orientation):
    for stem in "ab":
        picture(tmp_path / "images" / f"{stem}.png", orientation=orientation)
        mask(tmp_path / "masks" / f"{stem}.png", IDS)
    data = load_any(tmp_path, class_names="x,y,z", mask_orientation="stored")
    check_dataset(data)
    turned = Image.open(tmp_path / "images" / "a.png")
    expected = Image.fromarray(IDS.astype(np.uint8))
    exif = expected.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "expected.png"
    expected.save(path, exif=exif)
    from PIL import ImageOps

    np.testing.assert_array_equal(labels_of(data)["a"], np.array(ImageOps.exif_transpose(Image.open(path))))
    assert labels_of(data)["a"].shape == ImageOps.exif_transpose(turned).size[::-1]
    if orientation > 4:
        with pytest.raises(ValueError, match="mask_orientation 'stored'"):
            check_dataset(load_any(tmp_path, class_names="x,y,z"))


def test_shapes_on_pictures_as_they_are_stored(tmp_path):
    for stem in "ab":
        picture(tmp_path / f"{stem}.jpg", orientation=6)
        labelme(tmp_path / f"{stem}.json", [square("x", 0, 0)])
    with pytest.raises(ValueError, match="mask_orientation 'stored' fits"):
        load_any(tmp_path)
    data = load_any(tmp_path, mask_orientation="stored")
    label = labels_of(data)["a"]
    assert label.shape == (40, 30) and label[5, 25] == 1 and label[5, 5] == 0  # a quarter clockwise


def test_decoded_rows_no_longer_tell_how_they_were_stored(tmp_path):
    for stem in "ab":
        picture(tmp_path / "images" / f"{stem}.jpg", orientation=3)
        mask(tmp_path / "masks" / f"{stem}.png", IDS)
    data = load_any(tmp_path, class_names="x,y,z", mask_orientation="stored")
    with pytest.raises(ValueError, match="rows must be undecoded"):
        data.read_sample(data.train[0])


# ---- the cache


def test_the_second_start_reads_no_annotation(tmp_path, monkeypatch):
    folder_of(tmp_path)
    age(tmp_path)
    first = load_any(tmp_path)
    module = importlib.import_module("hf_segformer.data.labelme")
    monkeypatch.setattr(module, "read", None)
    second = load_any(tmp_path)
    assert (second.description, second.class_names) == (first.description, first.class_names)
    assert second.train[:]["file_name"] == first.train[:]["file_name"]
    monkeypatch.undo()
    labelme(tmp_path / "p0_a.json", [square("bus", 1, 1)])
    assert load_any(tmp_path).class_names == ("background", "bus", "car", "rare")


@pytest.mark.parametrize("change", ["new", "gone", "index", "mask", "picture"])
def test_what_is_kept_is_not_believed_when_something_changed(tmp_path, change):
    folder_of(tmp_path)
    age(tmp_path)
    load_any(tmp_path)
    (index,) = [p for p in drawn_masks.masks_folder().glob("*/index.json") if str(tmp_path / "p0") in p.read_text()]
    if change == "new":
        labelme(tmp_path / "q.json", [square("car", 1, 1)])
    elif change == "gone":
        (tmp_path / "p0_a.json").unlink()
    elif change == "index":
        index.write_bytes(index.read_bytes().replace(b"labelme", b"labelbe"))
    elif change == "picture":
        picture(tmp_path / "p0_a.jpg", (50, 60))
        with pytest.raises(ValueError, match=r"p0_a\.json: it is annotated as 40x30 .* is 50x60"):
            load_any(tmp_path)
        return
    else:
        next(index.parent.glob("*/*.png")).unlink()
    data = load_any(tmp_path)
    check_dataset(data)
    assert len(data.train) + len(data.validation) == {"new": 11, "gone": 9}.get(change, 10)


def test_masks_are_drawn_once_whatever_unlabelled_pixels_are(tmp_path, monkeypatch):
    folder_of(tmp_path)
    load_any(tmp_path)
    monkeypatch.setattr(drawn_masks, "draw_shapes", None)
    assert load_any(tmp_path, unlabeled="ignore").class_names == ("car", "rare")


# ---- written in our own layout


def test_a_written_data_set_is_the_same(tmp_path):
    for name, split in (("labelme", ""), ("coco", ""), ("coco_roboflow", "")):
        data = load_any(GOLDEN / name / "export" / split)
        written = load_dataset("folder", write_dataset(data, tmp_path / name))
        assert (written.class_names, written.palette) == (data.class_names, data.palette)
        mine, theirs = labels_of(data), labels_of(written)
        assert mine.keys() == theirs.keys()
        for stem, label in mine.items():
            np.testing.assert_array_equal(theirs[stem], label)
        for split in ("train", "validation"):
            copies = {Path(row["file_name"]).stem: row["image"] for row in getattr(written, split)}
            for row in getattr(data, split):
                assert row["image"].tobytes() == copies[Path(row["file_name"]).stem].tobytes()


def test_pictures_of_one_name_are_kept_apart(tmp_path):
    for folder in ("x", "y"):
        for split in ("train", "val", "test"):
            picture(tmp_path / "in" / split / folder / "a.jpg", seed=len(folder + split))
            labelme(tmp_path / "in" / split / folder / "a.json", [square("car", 1, 1)])
    out = write_dataset(load_any(tmp_path / "in"), tmp_path / "out")
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*"))
    assert found == ["classes.json"] or len(found) == 13
    assert (out / "images" / "test" / "test_x_a.jpg").read_bytes() == (
        tmp_path / "in" / "test" / "x" / "a.jpg"
    ).read_bytes()


def test_nothing_is_written_over_or_left_half(tmp_path):
    data = load_any(folder_of(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="output must be a new or empty folder"):
        write_dataset(data, tmp_path / "out")
    (tmp_path / "in" / "p3_b.jpg").unlink()
    with pytest.raises(ValueError, match=r"p3_b\.jpg: cannot read"):
        write_dataset(data, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    shutil.rmtree(tmp_path / "in")
