# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Annotations as people have them, through the command line: `data`, `data --output`, `train --data`."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from annotation_exports import EXPORTS, copied
from conftest import TINY
from PIL import Image
from tool_exports import coco, flat_square, labelme, labels_of, mask, picture, square

from example_scripts import forget_accelerate, kept_process
from hf_segformer import SegformerConfig, SegformerForSemanticSegmentation, cli
from hf_segformer.data import load_any, load_dataset, write_dataset
from hf_segformer.training import data_settings, find_state

NAMES = sorted(path.parent.name for path in EXPORTS.glob("*/export"))
ONE_OF_EACH = ("coco", "coco_panoptic", "cvat_images", "cvat_masks", "kaggle", "label_studio", "labelme")
ONE_OF_EACH += ("roboflow_masks", "voc", "yolo", "yolo_masks")


@pytest.fixture(autouse=True)
def masks_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SEGFORMER_MASKS", str(tmp_path / "masks"))


@pytest.fixture
def segformer(capsys):
    """Function that runs a command and returns what it printed."""

    def call(*words, code=0):
        capsys.readouterr()
        with kept_process():
            forget_accelerate()
            done = cli.main([str(word) for word in words])
        printed = capsys.readouterr()
        assert done == code, printed.err
        if code:
            assert printed.err.count("error: ") == 1 and printed.err.endswith("\n"), printed.err
            return printed.err.partition("error: ")[2]
        return printed.out

    return call


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("start")
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=3)).save_pretrained(path)
    return path


@pytest.fixture
def train(segformer, start, monkeypatch):
    """Function that trains a tiny model for two steps."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    small = ["--model", start, "--crop_size", 32, "--image_size", 32, "--batch_size", 2, "--num_workers", 0]
    small += ["--num_threads", 1, "--max_steps", 2]

    def call(data, output, *words, code=0):
        return segformer("train", "--data", data, "--output_dir", output, *small, *words, code=code)

    return call


def splits_of(data):
    named = {"train": data.train, "validation": data.validation} | dict(data.other_splits)
    return {name: sorted(Path(file).stem for file in rows["file_name"][:]) for name, rows in named.items()}


# ---- every export


@pytest.mark.parametrize("name", NAMES)
def test_data_shows_every_export_as_folder_and_zip(name, segformer, tmp_path):
    shutil.copytree(EXPORTS / name / "export", tmp_path / "in" / "one more" / "data set")
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", EXPORTS / name / "export")
    expected = load_any(EXPORTS / name / "export")
    for index, place in enumerate((EXPORTS / name / "export", tmp_path / "in", archive)):
        printed = segformer("data", place, "--output_dir", tmp_path / f"shown{index}")
        line, _, table = printed.partition("\n")
        count = len(expected.train) + len(expected.validation) + sum(map(len, expected.other_splits.values()))
        assert f": {count} pictures, {expected.num_classes} classes" in line
        assert all(class_name in table for class_name in expected.class_names)
        assert re.search(rf"^train +{len(expected.train)} ", table, re.MULTILINE)
        shown = min(6, len(expected.train) + len(expected.validation))
        assert len(list((tmp_path / f"shown{index}").iterdir())) == shown


@pytest.mark.parametrize("name", NAMES)
def test_every_export_is_written_without_a_loss(name, segformer, tmp_path):
    before = load_any(EXPORTS / name / "export")
    printed = segformer("data", EXPORTS / name / "export", "--output", tmp_path / "o", "--output_dir", tmp_path / "d")
    assert f"{tmp_path / 'o'}: {len(before.train)} pictures in images/train" in printed
    after = load_any(tmp_path / "o")
    assert (after.class_names, after.palette) == (before.class_names, before.palette)
    assert splits_of(after) == splits_of(before)
    written = labels_of(after)
    for stem, label in labels_of(before).items():
        ignored = written[stem] == after.ignore_index
        np.testing.assert_array_equal(ignored, label == before.ignore_index)
        np.testing.assert_array_equal(np.where(ignored, 0, written[stem]), np.where(ignored, 0, label))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_format_is_trained_on(name, train, tmp_path):
    printed = train(EXPORTS / name / "export", tmp_path / "out")
    names = json.loads((tmp_path / "out" / "metrics.json").read_text())["class_names"]
    assert tuple(names) == load_any(EXPORTS / name / "export").class_names
    assert "step 2" in printed or "mIoU" in printed


def test_what_was_written_is_trained_on_with_the_same_splits(segformer, train, tmp_path):
    before = load_any(EXPORTS / "coco" / "export")
    segformer("data", EXPORTS / "coco" / "export", "--output", tmp_path / "own", "--output_dir", tmp_path / "shown")
    train(tmp_path / "own", tmp_path / "out")
    settings = json.loads((find_state(tmp_path / "out" / "states").path / "progress.json").read_text())["settings"]
    assert settings["class_names"] == list(before.class_names)
    assert settings["training_samples"].startswith(f"{len(before.train)} ")


# ---- the arguments


def test_the_word_without_a_flag_goes_with_a_named_data_set(segformer, tmp_path):
    for split in ("train", "val"):
        for stem in "ab":
            picture(tmp_path / "own" / "images" / split / f"{stem}.jpg")
            mask(tmp_path / "own" / "annotations" / split / f"{stem}.png", np.zeros((30, 40)))
    (tmp_path / "own" / "classes.json").write_text('{"names": ["x", "y"]}')
    for words in (["--dataset", "folder"], []):
        printed = segformer("data", tmp_path / "own", *words, "--output_dir", tmp_path / "shown")
        assert re.search(r"^train +2 ", printed, re.MULTILINE)
    said = segformer("data", tmp_path / "own", "--data", tmp_path / "other", code=2)
    assert "data must be left out with IN" in said
    said = segformer("data", "--data", tmp_path / "own", "--dataset", "folder", code=2)
    assert "dataset must be left out with data, got 'folder'" in said


def test_what_is_there_is_not_written_over(segformer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for output in ("full", "full/mine.txt", "link"):
        said = segformer("data", EXPORTS / "coco" / "export", "--output", output, code=2)
        assert "output must be a new or empty folder" in said
    assert "no folder that can be written to" in segformer(
        "data", EXPORTS / "coco" / "export", "--output", "full/mine.txt/x", code=2
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "link"]  # no overlays either


def test_a_name_that_is_neither_here_nor_on_the_hub(segformer, train, tmp_path):
    for said in (segformer("data", "some/where", code=2), train("some/where", tmp_path / "out", code=2)):
        assert "data some/where: no such file or folder in " in said and "of the Hub" in said


def test_the_closest_format_is_named(segformer):
    said = segformer("data", EXPORTS / "coco" / "export", "--format", "coca", code=2)
    assert "format must be one of labelme, coco, masks" in said and "did you mean 'coco'?" in said
    assert "did you mean 'parquet'?" in segformer("data", EXPORTS / "coco", "--format", "parket", code=2)


def test_two_readings_are_named(segformer, tmp_path):
    labelme(tmp_path / "a.json", [square("x", 1, 1)])
    labelme(tmp_path / "b.json", [square("x", 1, 1)])
    coco(tmp_path / "instances.json", {"a.jpg": (40, 30)}, [("a.jpg", 1, [flat_square(0, 0)])], {1: "y"})
    said = segformer("data", tmp_path, "--output_dir", tmp_path / "shown", code=2)
    assert "'labelme'" in said and "'coco'" in said and "format must say which" in said


def test_a_folder_called_scenes_is_no_recipe(train, tmp_path):
    shutil.copytree(EXPORTS / "coco" / "export", tmp_path / "scenes")
    train(tmp_path / "scenes", tmp_path / "out")
    shutil.copytree(EXPORTS / "coco" / "export", tmp_path / "other")
    train(tmp_path / "other", tmp_path / "out2")
    first, second = (json.loads((tmp_path / o / "recipe.json").read_text()) for o in ("out", "out2"))
    assert first["learning_rate"] == second["learning_rate"] and first["photometric"] == second["photometric"]


# ---- writing


def test_two_classes_of_which_one_shows_beside_ignored_pixels(tmp_path):
    """0 and 255 alone would be read as a mask of black and white."""
    values = np.zeros((30, 40))
    values[:10] = 255
    for stem in "abc":
        picture(tmp_path / "in" / "images" / f"{stem}.jpg")
        mask(tmp_path / "in" / "masks" / f"{stem}.png", values)
    data = load_any(tmp_path / "in", class_names="x,y", mask_format="ids")
    write_dataset(data, tmp_path / "out")
    for again in (load_any(tmp_path / "out"), load_dataset("folder", tmp_path / "out")):
        assert np.unique(labels_of(again)["a"]).tolist() == [0, 255]


@pytest.mark.parametrize("other", ["train", "valid", "Training", "a/b", "..", "", "test"])
def test_splits_that_are_not_used_stay_apart(tmp_path, other):
    images = {f"{split}/{stem}.jpg": (40, 30) for split in ("one", "two", "rest") for stem in "ab"}
    coco(tmp_path / "in" / "x.json", images, [(n, 1, [flat_square(0, 0)]) for n in images], {1: "y"})
    data = load_any(tmp_path / "in")
    third = data.train.select(range(2))
    data = type(data)(**{**vars(data), "other_splits": {other: third}})
    write_dataset(data, tmp_path / "out")
    again = load_any(tmp_path / "out")
    assert (len(again.train), len(again.validation)) == (len(data.train), len(data.validation))
    assert [len(rows) for rows in again.other_splits.values()] == [2]


@pytest.mark.parametrize("names", [["a"], {"names": ["a"], "mask_format": "png"}])
def test_the_class_file_may_say_how_masks_hold_ids(tmp_path, names):
    for stem in "ab":
        picture(tmp_path / "images" / f"{stem}.jpg")
        mask(tmp_path / "masks" / f"{stem}.png", np.zeros((30, 40)))
    (tmp_path / "classes.json").write_text(json.dumps(names))
    if isinstance(names, list):
        assert load_any(tmp_path).annotation_format.mask_format == "ids"
    else:
        with pytest.raises(ValueError, match=r"classes.json: mask_format must be one of auto, ids, .* got 'png'"):
            load_any(tmp_path)


# ---- resuming


def test_changed_meanings_of_pixels_are_noticed(train, tmp_path):
    folder = copied("voc", tmp_path)
    maps = tmp_path / "map.json"
    names = ["background", "thing"]
    maps.write_text(json.dumps({str(k): int(k > 5) for k in range(21)} | {"255": None}))
    words = ["--label_map", maps, "--class_names", ",".join(names)]
    train(folder, tmp_path / "out", *words)
    maps.write_text(json.dumps({str(k): int(k > 8) for k in range(21)} | {"255": None}))
    said = train(folder, tmp_path / "out", *words, "--resume", code=2)
    assert "id_map=" in said
    maps.write_text(json.dumps({str(k): int(k > 5) for k in range(21)} | {"255": None}))
    for flags, named in (
        (["--mask_orientation", "stored"], "orientation='stored' (was 'upright')"),
        (["--unlabeled", "background"], "unlabeled='background' (was None)"),
        (["--train_split", "train"], "train_split='train' (was None)"),
    ):
        assert named in train(folder, tmp_path / "out", *words, *flags, "--resume", code=2)


def test_colours_that_changed_places_are_noticed(tmp_path):
    found = []
    for number, palette in enumerate(([[0, 0, 0], [255, 0, 0], [0, 255, 0]], [[0, 0, 0], [0, 255, 0], [255, 0, 0]])):
        root = tmp_path / str(number)
        for stem in "ab":
            picture(root / "images" / f"{stem}.jpg")
            (root / "masks").mkdir(exist_ok=True)
            Image.new("RGB", (40, 30), (255, 0, 0)).save(root / "masks" / f"{stem}.png")
        (root / "classes.json").write_text(json.dumps({"names": ["x", "y", "z"], "palette": palette}))
        found.append(data_settings(load_any(root)))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"mask_colors"}
