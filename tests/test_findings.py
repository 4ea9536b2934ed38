# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of pictures, boundary IoU and base lines against plain loops, and the files of the worst pictures."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from hf_segformer.data import SegmentationData, load_dataset
from hf_segformer.data.segmentation_data import MissingSplit, build_dataset
from hf_segformer.evaluation import base_lines
from hf_segformer.evaluation.base_lines import BaseLines
from hf_segformer.evaluation.boundary_iou import BoundaryIoU
from hf_segformer.evaluation.findings import Findings
from hf_segformer.evaluation.picture_scores import EvaluatedPicture, PictureScores, picture_score

K = 4


def maps(seed=0, height=23, width=31, ignored=0.1, classes=K):
    """A label map of blocks with ignored pixels, and a prediction that differs here and there."""
    random = np.random.default_rng(seed)
    label = random.integers(0, classes, (6, 5)).repeat(6, 0).repeat(7, 1)[:height, :width]
    prediction = np.where(
        random.random(label.shape) < 0.2, random.integers(0, classes, label.shape), np.roll(label, 1)
    )
    label = np.where(random.random(label.shape) < ignored, 255, label)
    label[3:9, 10:16] = 255
    return prediction.astype(np.uint8), label.astype(np.uint8)


# Boundary IoU


def near_outline(mask, distance):
    """Pixels of a mask within the distance of a pixel outside it, or outside the picture, one by one."""
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        window = [
            (0 <= y + dy < mask.shape[0] and 0 <= x + dx < mask.shape[1]) and mask[y + dy, x + dx]
            for dy in range(-distance, distance + 1)
            for dx in range(-distance, distance + 1)
        ]
        near[y, x] = not all(window)
    return near


@pytest.mark.parametrize(("classes", "ratio", "distance"), [(K, 0.02, 1), (K, 0.06, 2), (40_000, 0.06, 2)])
def test_boundary_iou_pixel_by_pixel(classes, ratio, distance):
    """Ignored pixels are in neither mask, so that both have an outline there."""
    metric, both, either = BoundaryIoU(classes, dilation_ratio=ratio), np.zeros(K), np.zeros(K)
    shift = classes - K
    for seed in range(3):
        prediction, label = maps(seed, 19 + seed, 27 - 3 * seed, ignored=0.02)
        assert max(round(ratio * math.hypot(*label.shape)), 1) == distance
        valid = label != 255
        metric.update(prediction.astype(int) + shift, np.where(valid, label.astype(int) + shift, 255))
        for k in range(K):
            truth, predicted = (near_outline((ids == k) & valid, distance) for ids in (label, prediction))
            both[k] += (truth & predicted).sum()
            either[k] += (truth | predicted).sum()
    scores = metric.compute()
    assert scores["per_category_boundary_iou"][shift:] == pytest.approx(both / either, abs=1e-12)
    assert scores["mean_boundary_iou"] == pytest.approx(np.mean(both / either))
    assert 0 < scores["mean_boundary_iou"] < 0.9


def test_boundary_iou_of_a_perfect_and_a_missing_class():
    _, label = maps()
    metric = BoundaryIoU(K + 1)
    metric.update(np.where(label == 255, 0, label), label)
    scores = metric.compute()
    assert scores["per_category_boundary_iou"][:K] == [1.0] * K and math.isnan(scores["per_category_boundary_iou"][K])
    assert scores["mean_boundary_iou"] == 1.0
    metric = BoundaryIoU(K)
    metric.update(label, np.full_like(label, 255))
    assert math.isnan(metric.compute()["mean_boundary_iou"])


def test_boundary_iou_sees_outlines_that_iou_hardly_does():
    """The larger a square, the more its IoU forgives an outline that is off by two pixels."""
    label = np.zeros((200, 200), np.uint8)
    label[40:160, 40:160] = 1
    prediction = np.zeros_like(label)
    prediction[42:158, 42:158] = 1
    metric = BoundaryIoU(2)
    metric.update(prediction, label)
    distance = round(0.02 * math.hypot(200, 200))
    outer, inner = 120**2 - (120 - 2 * distance) ** 2, 116**2 - (116 - 2 * distance) ** 2
    shared = 116**2 - (120 - 2 * distance) ** 2
    assert metric.compute()["per_category_boundary_iou"][1] == pytest.approx(shared / (outer + inner - shared))
    assert metric.compute()["per_category_boundary_iou"][1] < 0.6 < 0.9 < 116**2 / 120**2


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, math.nan])
def test_boundary_iou_refuses(ratio):
    with pytest.raises(ValueError, match=r"dilation_ratio must be in \(0, 1\), got"):
        BoundaryIoU(K, dilation_ratio=ratio)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 3\) and \(2, 3\)"):
        BoundaryIoU(K).update(np.zeros((3, 3), int), np.zeros((2, 3), int))


# Pictures


def test_scores_of_a_picture():
    prediction, label = maps(1)
    label[label == 2] = 0  # a class that is only predicted counts against the others alone
    score = picture_score(EvaluatedPicture(7, "a.png", prediction, label), K, 255)
    valid, ious = label != 255, []
    for k in sorted(set(label[valid].tolist())):
        truth, predicted = (label == k) & valid, (prediction == k) & valid
        ious.append((truth & predicted).sum() / (truth | predicted).sum())
    assert len(ious) == 3 and score.mean_iou == pytest.approx(np.mean(ious))
    assert score.pixel_accuracy == pytest.approx((prediction == label)[valid].mean())
    assert (score.row, score.file_name, score.labelled_pixels) == (7, "a.png", valid.sum())


def test_the_worst_pictures_are_kept(tmp_path):
    scores, expected = PictureScores(K, keep=3), {}
    for index in (4, 0, 3, 1, 2, 5):
        prediction, label = maps(index)
        if index == 3:
            label[:] = 255
        expected[index] = picture_score(EvaluatedPicture(index, f"{index}, {index}.png", prediction, label), K, 255)
        scores.update(EvaluatedPicture(index, f"{index}, {index}.png", prediction, label))
        scores.update(EvaluatedPicture(index + 10, "the same", prediction, label))
    labelled = sorted((score.mean_iou, index) for index, score in expected.items() if index != 3)
    (lowest, first), (_, second) = labelled[:2]
    assert [score.row for score, _ in scores.worst] == [first, first + 10, second]
    assert scores.worst[0][0].mean_iou == lowest and np.array_equal(scores.worst[0][1], maps(first)[0])
    assert scores.mean_iou == pytest.approx(np.mean([iou for iou, _ in labelled]))
    scores.write(tmp_path / "pictures.csv")
    rows = list(csv.DictReader((tmp_path / "pictures.csv").open(newline="")))
    assert list(rows[0]) == ["file_name", "mean_iou", "pixel_accuracy", "labelled_pixels"] and len(rows) == 12
    assert rows[0]["file_name"] == "4, 4.png" and float(rows[0]["mean_iou"]) == expected[4].mean_iou
    assert rows[4] == {"file_name": "3, 3.png", "mean_iou": "", "pixel_accuracy": "", "labelled_pixels": "0"}


# Base lines


@pytest.fixture
def data(tmp_path):
    """Pictures of several sizes; the last training annotation is damaged, and no label is left at the upper left."""
    rows = {}
    for split, count in (("train", 5), ("validation", 3)):
        names = [f"../{split} {index}\n.png" for index in range(count)]
        images, labels = [], []
        for index in range(count):
            prediction, label = maps(index + 50 * (split != "train"), 23 + 4 * index, 31 - 3 * index, ignored=0.0)
            label[:2, :2] = 255
            images.append(tmp_path / f"{split}{index}.png")
            labels.append(tmp_path / f"{split}{index}_label.png")
            Image.fromarray(np.stack([prediction] * 3, 2)).save(images[-1])
            Image.fromarray(label).save(labels[-1])
        rows[split] = build_dataset(list(map(str, images)), list(map(str, labels)), names)
    labels = tmp_path / "train4_label.png"
    labels.write_bytes(labels.read_bytes()[:-40])
    names, palette = tuple(f"class {k}" for k in range(K)), tuple((50 * k, 0, 200 - 50 * k) for k in range(K))
    return SegmentationData(rows["train"], rows["validation"], names, palette, name="blocks")


def labels_of(rows, count):
    return [np.asarray(Image.open(row["annotation"]["path"])) for row in list(rows)[:count]]


def undecoded(rows):
    from hf_segformer.data import undecoded

    return undecoded(rows)


def test_base_lines_pixel_by_pixel(data):
    lines = BaseLines.of_training_set(data, Accelerator(cpu=True))
    training = labels_of(undecoded(data.train), 4)
    totals = [sum((label == k).sum() for label in training) for k in range(K)]
    assert lines.commonest == int(np.argmax(totals)) and (lines.pictures, lines.of) == (4, 5)
    expected = np.zeros((128, 128), int)
    for y in range(128):
        for x in range(128):
            found = [
                label[int((y + 0.5) * label.shape[0] / 128), int((x + 0.5) * label.shape[1] / 128)]
                for label in training
            ]
            votes = [found.count(k) for k in range(K)]
            expected[y, x] = np.argmax(votes) if any(votes) else lines.commonest
    assert np.array_equal(lines.mean_map, expected) and expected[0, 0] == lines.commonest
    assert len(np.unique(expected)) == K
    validation = labels_of(undecoded(data.validation), 3)
    hits = total = 0
    for label in validation:
        lines.update(label)
        rows, columns = (((np.arange(side) + 0.5) * 128 / side).astype(int) for side in label.shape)
        prediction = expected[rows[:, None], columns]
        hits += (prediction == label)[label != 255].sum()
        total += (label != 255).sum()
    made_from, scores = lines.compute()["base_lines_made_from"], lines.compute()["base_lines"]
    assert made_from == {"training_annotations": 4, "of": 5} and set(scores) == {"commonest_class", "mean_label_map"}
    assert scores["mean_label_map"]["overall_accuracy"] == pytest.approx(hits / total)
    share = sum((label == lines.commonest).sum() for label in validation) / total
    always = scores["commonest_class"]
    assert always["class"] == f"class {lines.commonest}" and always["overall_accuracy"] == pytest.approx(share)
    assert always["mean_iou"] == pytest.approx(share / K) and always["mean_accuracy"] == pytest.approx(1 / K)


def test_base_lines_read_a_bounded_number_of_pictures(data, monkeypatch):
    read = []
    real = base_lines.check_sample
    monkeypatch.setattr(base_lines, "check_sample", lambda row, *rest: read.append(rest[2]) or real(row, *rest))
    monkeypatch.setattr(base_lines, "PICTURES", 3)
    lines = BaseLines.of_training_set(data, Accelerator(cpu=True))
    assert sorted(read) == [0, 2, 4] and (lines.pictures, lines.of) == (2, 5)
    # As many processes as there are: each reads its share, and reading more than there are reads all.
    monkeypatch.setattr(base_lines, "PICTURES", 300)
    read.clear()
    BaseLines.of_training_set(data, Accelerator(cpu=True))
    assert sorted(read) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["streamed", "missing", "unlabelled"])
def test_without_training_pictures_there_are_no_base_lines(kind, data, tmp_path):
    train = data.train.to_iterable_dataset() if kind == "streamed" else MissingSplit("there is no training split")
    if kind == "unlabelled":
        Image.fromarray(np.full((23, 31), 255, np.uint8)).save(tmp_path / "train0_label.png")
        train = data.train.select([0])
    findings = Findings(dataclasses.replace(data, train=train), Accelerator(cpu=True))
    prediction, label = maps()
    findings.update(EvaluatedPicture(0, "a.png", prediction, label))
    assert findings.base_lines is None and "base_lines" not in findings.metrics()
    assert "base line" not in findings.report() and "worst pictures by mIoU: a.png" in findings.report()


# What is written


def test_files_of_the_worst_pictures(data, tmp_path):
    """Names from files neither lead out of the folder nor break lines; what an earlier evaluation left is replaced."""
    findings, folder = Findings(data, Accelerator(cpu=True), boundary_iou=True), tmp_path / "out"
    for index, (row, label) in enumerate(zip(data.validation, labels_of(undecoded(data.validation), 3), strict=True)):
        findings.update(EvaluatedPicture(index, row["file_name"], np.roll(label, index, 1) % K, label))
    for name in ("3.png", "4.png", "6.png", "mine.png"):
        (folder / "worst").mkdir(parents=True, exist_ok=True)
        (folder / "worst" / name).write_bytes(b"of before")
    findings.write(folder)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["out/pictures.csv", *(f"out/worst/{name}" for name in ("1.png", "2.png", "3.png", "mine.png"))]
    for place in (1, 2, 3):
        with Image.open(folder / "worst" / f"{place}.png") as panel:
            assert len(np.unique(np.asarray(panel.convert("L")))) > 10
    lines = findings.report().splitlines()
    assert lines[0].startswith("mean of the pictures' mIoU ") and "boundary mIoU" in lines[0]
    assert lines[1] == "base lines without looking (from 4 of 5 training annotations):" and len(lines) == 5
    assert lines[4].startswith("worst pictures by mIoU: ") and r"validation 2\n.png" in lines[4]
    metrics = findings.metrics()
    assert 0 < metrics["mean_boundary_iou"] < 1
    assert [entry["panel"] for entry in metrics["worst"]] == ["worst/1.png", "worst/2.png", "worst/3.png"]
    assert metrics["worst"][0]["mean_iou"] == min(score.mean_iou for score in findings.pictures.scores)
    assert "/" not in "".join(entry["file_name"] for entry in metrics["worst"]), "folders of the machine"
    findings.remove_panels(folder)
    assert [path.name for path in (folder / "worst").iterdir()] == ["mine.png"]
    json.dumps(metrics, allow_nan=False)


def test_nothing_is_labelled(data, tmp_path):
    findings = Findings(data, Accelerator(cpu=True))
    findings.update(EvaluatedPicture(0, "a.png", np.zeros((4, 4), int), np.full((4, 4), 255)))
    findings.write(tmp_path / "out")
    assert "no picture is labelled" in findings.report() and not (tmp_path / "out" / "worst").exists()


def test_ignored_class_of_the_data_set():
    """An ignore_index that is a class is left out here as in the confusion matrix, and said to be so once only."""
    with pytest.warns(UserWarning, match="ignore_index 0 is also the id of class"):
        data = dataclasses.replace(load_dataset("scenes", num_train=1, num_validation=1, size=64), ignore_index=0)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        findings = Findings(data, Accelerator(cpu=True), boundary_iou=True)
    label = np.asarray(data.validation[0]["annotation"])
    findings.update(EvaluatedPicture(0, "a", label, label))
    assert findings.metrics()["mean_boundary_iou"] == findings.metrics()["mean_picture_iou"] == 1.0
    assert findings.pictures.scores[0].labelled_pixels == (label != 0).sum()
