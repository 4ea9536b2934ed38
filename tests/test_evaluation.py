# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation on any number of processes, by any protocol, on corrupted images; and the files it writes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from example_scripts import kept_process, launch
from hf_segformer import SegformerImageProcessor
from hf_segformer.data import draw_scene, load_dataset
from hf_segformer.evaluation.inference import segment
from hf_segformer.evaluation.loop import evaluate
from hf_segformer.evaluation.metrics import ConfusionMatrix
from hf_segformer.evaluation.protocols import Protocol
from hf_segformer.evaluation.robustness import (
    Corruption,
    average_scores,
    chosen_corruptions,
    robustness_plot,
    robustness_table,
)
from lively_models import lively_model
from scene_folder import example_module

IMAGES = 7  # which neither the batch size nor three processes divide
CLASSES = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven validation pictures of different sizes and one for training."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "classes.json").write_text(json.dumps({"names": [f"class {index}" for index in range(CLASSES)]}))
    for split, count in (("train", 1), ("val", IMAGES)):
        for kind in ("images", "annotations"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            image, label = draw_scene(index)
            height, width = (90, 110) if index < 3 else (81 + 5 * index, 123 - 3 * index)
            label = np.where(label < CLASSES, label, 255)
            Image.fromarray(image[:height, :width]).save(root / split / "images" / f"{index}.png")
            Image.fromarray(label[:height, :width].astype(np.uint8)).save(
                root / split / "annotations" / f"{index}.png"
            )
    return root


@pytest.fixture
def data(folder):
    return load_dataset("folder", folder)


@pytest.fixture
def model(tiny_config, randomize):
    return lively_model(tiny_config(num_labels=CLASSES), randomize)


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    SegformerImageProcessor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(capsys, *arguments):
    """evaluate.py in this process; its output on standard output."""
    capsys.readouterr()
    threads = ["--num_workers", "0", "--num_threads", "1"]
    with kept_process():
        example_module("evaluate").main([*map(str, arguments), *threads])
    return capsys.readouterr().out


def plain_matrix(predictions, data):
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for row, prediction in zip(data.validation, predictions, strict=True):
        label = np.asarray(row["annotation"])
        assert prediction.shape == label.shape
        np.add.at(matrix, (label[label != 255].astype(int), prediction[label != 255].astype(int)), 1)
    return matrix


PROTOCOLS = {
    "processor": None,
    "aligned, ms+flip": Protocol.named("aligned-512", "nvlabs", scale=(190, 90)),
    "slide": Protocol.named("slide", crop_size=64),
}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_confusion_matrix_of_each_protocol(name, batch_size, model, data):
    accelerator, protocol, seen = Accelerator(cpu=True), PROTOCOLS[name], []
    matrix = evaluate(
        model.train(),
        SegformerImageProcessor(),
        data,
        accelerator,
        batch_size=batch_size,
        protocol=protocol,
        on_prediction=lambda file_name, label_map: seen.append(file_name),
    )
    assert model.training
    predictions = [segment(model, SegformerImageProcessor(), row["image"], protocol) for row in data.validation]
    expected = plain_matrix(predictions, data)
    assert (expected.sum(0) > 0).sum() >= 3
    assert abs(matrix.matrix.numpy() - expected).sum() <= 4  # a batch may round a tie otherwise than one image
    assert matrix.matrix.sum() == expected.sum()
    assert seen == [row["file_name"] for row in data.validation]


def test_number_of_processes_does_not_show(saved, folder, data, tmp_path, capsys):
    results, found = {}, {}
    for processes in (1, 3):  # test_examples.py has two
        out = tmp_path / str(processes)
        arguments = ["--model", saved, "--dataset", "folder", "--data_root", folder, "--batch_size", 2, "--protocol"]
        arguments += ["slide", "--crop_size", 64, "--overlap", "gaussian", "--output_dir", out, "--plots"]
        arguments += ["--boundary_iou"]
        arguments += ["--save_predictions", out / "labels", "--submission", out / "server"]
        if processes == 1:
            printed = run(capsys, *arguments)
        else:
            printed = launch("evaluate.py", *arguments, "--num_workers", 0, processes=processes).stdout
        assert "windows 64x64, stride 48x48" in printed and "class 3" in printed and f"({IMAGES} images" in printed
        results[processes] = json.loads((out / "metrics.json").read_text())
        found[processes] = {path.name: path.read_bytes() for path in (out / "worst").iterdir()}
        found[processes] |= {
            "csv": (out / "pictures.csv").read_text(),
            "printed": printed[printed.index("mean of the") :],
        }
        assert (out / "confusion_matrix.png").stat().st_size > 0 and (out / "per_class_iou.png").stat().st_size > 0
    assert results[1] == results[3] and found[1] == found[3]
    assert results[1]["mean_boundary_iou"] > 0 and len(found[1]) == 6 + 2
    predictions = {}
    for processes in (1, 3):
        for kind in ("labels", "server"):
            paths = sorted((tmp_path / str(processes) / kind).iterdir())
            assert [path.name for path in paths] == [f"{index}.png" for index in range(IMAGES)]
            predictions[processes, kind] = [np.asarray(Image.open(path)) for path in paths]
    for key in predictions:
        assert all(map(np.array_equal, predictions[key], predictions[1, "labels"])), key
    matrix = ConfusionMatrix(CLASSES)
    matrix.matrix += torch.tensor(plain_matrix(predictions[1, "labels"], data))
    assert matrix.compute()["per_category_iou"] == results[3]["per_category_iou"]
    assert matrix.compute()["mean_accuracy"] == results[3]["mean_accuracy"]
    assert results[1]["protocol"]["crop_size"] == [64, 64]


def test_a_stream_is_refused(model, data):
    streamed = dataclasses.replace(data, validation=data.validation.to_iterable_dataset())
    with pytest.raises(ValueError, match="validation of 'folder' is streamed"):
        evaluate(model, SegformerImageProcessor(), streamed, Accelerator(cpu=True))


# Corruptions.


def test_corrupted_images_are_evaluated(saved, folder, model, data, tmp_path, capsys):
    arguments = ["--model", saved, "--dataset", "folder", "--data_root", folder, "--corruption", "gaussian_noise"]
    printed = run(capsys, *arguments, "--output_dir", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    noise = metrics["robustness"]["mean_iou"]["gaussian_noise"]
    assert list(noise) == ["1", "2", "3"]
    assert metrics["robustness"]["clean"] == metrics["mean_iou"]
    assert metrics["robustness"]["average"]["mean"] == pytest.approx(np.mean(list(noise.values())))
    assert (tmp_path / "out" / "robustness.md").read_text() in printed
    assert len(np.unique(np.asarray(Image.open(tmp_path / "out" / "robustness.png").convert("L")))) > 10
    matrix = ConfusionMatrix(CLASSES)
    for index, row in enumerate(data.validation):
        corrupted = Corruption("gaussian_noise", 2)(np.asarray(row["image"]), index)
        assert not np.array_equal(corrupted, np.asarray(row["image"]))
        matrix.update(segment(model, SegformerImageProcessor(), corrupted), np.asarray(row["annotation"]))
    assert noise["2"] == pytest.approx(matrix.compute()["mean_iou"], abs=1e-4)


def test_what_the_paper_averages():
    chosen = chosen_corruptions("all", "all")
    levels = {name: [c.severity for c in chosen if c.name == name] for name in {c.name for c in chosen}}
    assert len(levels) == 16
    for name, severities in levels.items():
        assert severities == ([1, 2, 3] if name.endswith("noise") else [1, 2, 3, 4, 5]), name
    assert chosen_corruptions("fog", "4") == [Corruption("fog", 4)]
    assert len(chosen_corruptions("all", "2")) == 16
    for name, severity in (("rain", "all"), ("fog", "6"), ("fog", "0")):
        with pytest.raises(ValueError, match="must be all or"):
            chosen_corruptions(name, severity)


def test_robustness_report(tmp_path):
    scores = {"gaussian_noise": {1: 0.6, 2: 0.5, 3: 0.1}, "fog": {1: 0.7, 5: 0.5}}
    assert average_scores(scores) == pytest.approx({"gaussian_noise": 0.4, "fog": 0.6, "mean": 0.5})
    lines = robustness_table(0.8, scores).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    assert cells[0] == ["corruption", *(f"severity {level}" for level in (1, 2, 3, 5)), "mean", "of clean"]
    assert cells[2] == ["none", "", "", "", "", "80.00", "100.00"]
    assert cells[3] == ["gaussian_noise", "60.00", "50.00", "10.00", "", "40.00", "50.00"]
    assert cells[5] == ["**mean**", "", "", "", "", "50.00", "62.50"]
    robustness_plot(0.8, scores, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "<svg" in text
