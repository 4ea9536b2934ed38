# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs that pass over bad samples leave out pictures with wrong annotations, and say which; others stop at them."""

import html
import json
import shutil

import numpy as np
import pytest
import torch
from annotation_exports import EXPORTS, copied
from tool_exports import SIZE, age, coco, flat_square, labelme, labels_of, mask, picture, shape, square

from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation
from hf_segformer.cli import main
from hf_segformer.data import check_dataset, load_any
from hf_segformer.data.tolerance import tolerant_probes
from hf_segformer.training import TrainArguments

IDS = np.arange(1200).reshape(30, 40) % 3
TINY = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1]}
TINY |= {"decoder_hidden_size": 8}


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path_factory.mktemp("masks")))
    monkeypatch.setenv("HF_SEGFORMER_CHECKS", str(tmp_path_factory.mktemp("checks")))


def tolerated(path, **options):
    with tolerant_probes():
        return load_any(path, **options)


def some_labelme(folder, count=4):
    folder.mkdir(exist_ok=True)
    for index in range(count):
        labelme(folder / f"p{index}.json", [square("x", 1, 1)])
    return folder


def broken_json(folder):
    (folder / "p1.json").write_text('{"shapes": [')


def two_points(folder):
    labelme(folder / "p1.json", [square("x", 1, 1), shape("only here", [[0, 0], [5, 5]])])


def no_picture(folder):
    (folder / "p1.jpg").unlink()


def other_size(folder):
    labelme(folder / "p1.json", [square("x", 1, 1)], size=(41, 30))
    picture(folder / "p1.jpg", (50, 30))


def no_shapes(folder):
    (folder / "p1.json").write_text('{"imagePath": "p1.jpg"}')


@pytest.mark.parametrize("damage", [broken_json, two_points, no_picture, other_size, no_shapes])
def test_labelme(tmp_path, damage):
    folder = some_labelme(tmp_path / "in")
    damage(folder)
    with pytest.raises(ValueError, match=r"labelme: 1 annotation is wrong:\n  .*p1\.json: "):
        load_any(folder)
    data = tolerated(folder)
    check_dataset(data)
    assert sorted(labels_of(data)) == ["p0", "p2", "p3"] and data.class_names == ("background", "x")
    (fault,) = data.left_out
    assert fault.place.endswith("p1.json") and "3 pictures, 2 classes" in data.description


def test_what_was_left_out_is_told_at_every_start_and_never_kept_for_others(tmp_path):
    folder = some_labelme(tmp_path / "in")
    two_points(folder)
    age(folder)
    first, second = tolerated(folder), tolerated(folder)
    assert first.left_out == second.left_out and len(second.left_out) == 1
    with pytest.raises(ValueError, match=r"p1\.json: shape 1 \('only here'\): a polygon needs at least 3 points"):
        load_any(folder)
    labelme(folder / "p1.json", [square("x", 1, 1)])
    assert len(labels_of(tolerated(folder))) == 4


def test_ten_are_named_and_all_counted(tmp_path, capsys):
    folder = some_labelme(tmp_path / "in", 15)
    for index in range(12):
        (folder / f"p{index}.json").write_text("no json")
    arguments = TrainArguments(data=str(folder), on_bad_sample="skip")
    with pytest.warns(UserWarning, match=r"in: 12 annotations are wrong, their pictures are left out:") as caught:
        data = arguments.load_data()
    (warning,) = [str(w.message) for w in caught if "left out" in str(w.message)]
    assert warning.count("it is no JSON file") == 10 and warning.endswith("... and 2 more")
    assert len(data.left_out) == 12


def test_pictures_that_are_all_bad_stop_it(tmp_path):
    folder = some_labelme(tmp_path / "in")
    for path in folder.glob("*.json"):
        path.write_text('{"imagePath": "x", "shapes": [3]}')
    with pytest.raises(ValueError, match="labelme: 4 annotations are wrong"):
        tolerated(folder)


def test_one_wrong_annotation_of_several_costs_its_picture(tmp_path):
    """A picture with half of its objects would be trained on as if the others were background."""
    images = {f"{stem}.jpg": SIZE for stem in "abcd"}
    shapes = [(name, 1, [flat_square(0, 0)]) for name in images] + [("b.jpg", 7, [flat_square(20, 0)])]
    shapes += [("b.jpg", 1, [flat_square(20, 15)]), ("c.jpg", 1, [[1, 2, 3, 4]]), ("nowhere.jpg", 1, [])]
    path = coco(tmp_path / "x.json", images | {"nowhere.jpg": SIZE}, shapes, {1: "x"})
    (tmp_path / "nowhere.jpg").unlink()
    with pytest.raises(ValueError, match="COCO instances: 2 annotations are wrong"):
        load_any(tmp_path)
    data = tolerated(tmp_path)
    assert sorted(labels_of(data)) == ["a", "d"]
    rules = [fault.rule for fault in data.left_out]
    assert len(rules) == 3 and all(fault.place == str(path) for fault in data.left_out)
    assert "category_id 7 is not among 1" in rules[0] and "'nowhere.jpg' is missing" in rules[1]
    assert "a polygon needs at least 3 points" in rules[2]


@pytest.mark.parametrize("content", ['{"images": [', '{"images": [], "annotations": []}', "[]"])
def test_a_file_of_many_pictures_and_the_list_of_classes_stop_it(tmp_path, content):
    images = {"a.jpg": SIZE, "b.jpg": SIZE}
    for split in ("train", "valid"):
        coco(tmp_path / split / "x.json", images, [(name, 1, [flat_square(0, 0)]) for name in images], {1: "x"})
    (tmp_path / "train" / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"train/x\.json: it "):
        tolerated(tmp_path / "train" / "x.json", format="coco")
    if "]" not in content:  # cut off: the other split alone is not what was annotated
        with pytest.raises(ValueError, match=r"train/x\.json: it is no JSON file"):
            tolerated(tmp_path)
    folder = some_labelme(tmp_path / "in")
    (folder / "labels.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"labels\.txt: it must be text in UTF-8"):
        tolerated(folder)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_validation_pictures_must_all_be_there(tmp_path, split):
    for name in ("train", "valid", "test"):
        some_labelme(tmp_path / name)
    two_points(tmp_path / split)
    two_points(tmp_path / "test")
    if split == "train":
        data = tolerated(tmp_path)
        assert (len(data.train), len(data.validation), len(data.other_splits["test"])) == (3, 4, 3)
        return
    with pytest.raises(ValueError, match=r"1 validation pictures cannot be left out, .*\n  .*valid/p1\.json: shape 1"):
        tolerated(tmp_path)


def drop_text(folder):
    path = next(folder.rglob("labels/*/*.txt"))
    path.write_text("0 0.1 0.2 0.3 0.4\n")
    return path.stem


def drop_roboflow_mask(folder):
    path = next((folder / "train").glob("*_mask.png"))
    path.unlink()
    return path.name.removesuffix("_mask.png")


def drop_voc_picture(folder):
    stem = (folder / "ImageSets" / "Segmentation" / "train.txt").read_text().split()[0]
    next((folder / "JPEGImages").glob(f"{stem}.*")).unlink()
    return stem


def drop_cvat_shape(folder):
    path = next(folder.rglob("*.xml"))
    text = path.read_text(encoding="utf-8")
    start = text.index("<polygon ")
    end = text.index('points="', start) + len('points="')
    path.write_text(text[:end] + "1,2;3,4;" + '" x="' + text[end:], encoding="utf-8")
    return text[:start].rpartition('name="')[2].partition(".")[0]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("yolo", drop_text),
        ("roboflow_masks", drop_roboflow_mask),
        ("voc", drop_voc_picture),
        ("cvat_images", drop_cvat_shape),
    ],
)
def test_every_other_format(tmp_path, name, damage):
    folder = copied(name, tmp_path)
    before = labels_of(load_any(folder))
    stem = damage(folder)
    with pytest.raises(ValueError, match="1 annotation is wrong"):
        load_any(folder)
    data = tolerated(folder, validation_fraction=0.5)
    after = labels_of(data)
    assert before.keys() - after.keys() == {stem} and len(data.left_out) == 1
    for other, label in after.items():
        np.testing.assert_array_equal(label, before[other])


@pytest.mark.parametrize("damage", ["unreadable", "jpeg", "missing", "twice"])
def test_masks_beside_pictures(tmp_path, damage):
    for stem in "abcdefgh":
        picture(tmp_path / "images" / f"{stem}.jpg")
        mask(tmp_path / "masks" / f"{stem}.png", IDS)
    (tmp_path / "classes.json").write_text('["x", "y", "z"]')
    path = tmp_path / "masks" / "a.png"  # the first, which formats look at
    if damage == "unreadable":
        path.write_bytes(path.read_bytes()[:60])
    elif damage == "jpeg":
        mask(path.with_suffix(".jpg"), IDS)
    elif damage == "twice":
        mask(path.with_suffix(".tif"), IDS)
    if damage in ("jpeg", "missing"):
        path.unlink()
    with pytest.raises(ValueError, match=r"/a\.(png|jpg)"):
        check_dataset(load_any(tmp_path))
    data = tolerated(tmp_path)
    check_dataset(data)
    (fault,) = data.left_out
    assert sorted(labels_of(data)) == list("bcdefgh") and fault.within(tmp_path)["annotation"][-5:-3] == "a."
    assert "7 pictures, 3 classes" in data.description and "of 7 held out" in data.description


def test_the_first_mask_of_voc_may_be_damaged(tmp_path):
    folder = copied("voc", tmp_path)
    shutil.rmtree(folder / "ImageSets")
    first = min((folder / "SegmentationClass").glob("*.png"))
    first.write_bytes(b"no picture")
    assert first.stem not in labels_of(tolerated(folder))
    expected = labels_of(load_any(EXPORTS / "voc" / "export"))
    for stem, label in labels_of(tolerated(folder)).items():
        np.testing.assert_array_equal(label, expected[stem])


def test_training_lists_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    folder = tmp_path / "in"
    folder.mkdir()
    two_points(some_labelme(folder / "night"))
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=2)).save_pretrained(tmp_path / "start")
    words = ["train", "--data", folder, "--output_dir", tmp_path / "out", "--model", tmp_path / "start"]
    words += ["--crop_size", 32, "--batch_size", 1, "--num_workers", 0, "--num_threads", 1, "--max_steps", 2]
    assert main([*map(str, words)]) == 2
    with pytest.warns(UserWarning, match=r"in: 1 annotations are wrong, their pictures are left out"):
        assert main([*map(str, words), "--on_bad_sample", "skip"]) == 0
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    (fault,) = recipe["left_out"]
    assert fault["annotation"] == "night/p1.json"
    assert fault["reason"] == "shape 1 ('only here'): a polygon needs at least 3 points, got 2"
    texts = [line[20:] for line in (tmp_path / "out" / "train.log").read_text().splitlines()]
    assert texts[2] == "left out: 1 with wrong annotations:"
    assert texts[3].startswith("left out: ") and texts[3].endswith(f"night/p1.json: {fault['reason']}")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Left out</h2>\n<p>1 wrong annotation; its picture is in no split.</p>" in page
    assert f"<li>night/p1.json: {html.escape(fault['reason'])}</li>" in page and str(tmp_path) not in page
