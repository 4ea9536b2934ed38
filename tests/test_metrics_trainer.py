# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""metrics.py inside a real `transformers.Trainer`, and over several processes, against counting pixel by pixel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments
from transformers.models.segformer.configuration_segformer import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

from hf_segformer.evaluation.metrics import build_compute_metrics, preprocess_logits_for_metrics

SCALARS = ("mean_iou", "mean_accuracy", "overall_accuracy")
REPOSITORY = Path(__file__).resolve().parent.parent


def scores_by_hand(predictions, labels, num_labels):
    """mmsegmentation's definitions on sets of pixels; all classes occur in truth and prediction."""
    predictions, labels = predictions[labels != 255], labels[labels != 255]
    both = [((predictions == i) & (labels == i)).sum() for i in range(num_labels)]
    either = [((predictions == i) | (labels == i)).sum() for i in range(num_labels)]
    iou = np.array(both) / np.array(either)
    accuracy = np.array(both) / np.bincount(labels, minlength=num_labels)
    scores = {
        "mean_iou": iou.mean(),
        "mean_accuracy": accuracy.mean(),
        "overall_accuracy": (predictions == labels).mean(),
    }
    return scores | {"per_category_iou": iou, "per_category_accuracy": accuracy}


def tiny_model(num_labels=5):
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=num_labels,
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=8,
        num_attention_heads=[1] * 4,
    )
    model = SegformerForSemanticSegmentation(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def samples(sizes, num_labels=5):
    generator = torch.Generator().manual_seed(1)
    result = []
    for height, width in sizes:
        labels = torch.randint(0, num_labels, (height, width), generator=generator)
        labels[torch.rand(height, width, generator=generator) < 0.2] = 255
        result.append({"pixel_values": torch.randn(3, height, width, generator=generator), "labels": labels})
    return result


def expected_scores(model, dataset, num_labels=5):
    """Whole images one by one: logits upsampled in float64, argmax, counted pixel by pixel."""
    predictions, labels = [], []
    with torch.no_grad():
        for sample in dataset:
            logits = model(sample["pixel_values"][None]).logits.double()
            scores = F.interpolate(logits, size=sample["labels"].shape, mode="bilinear", align_corners=False)
            maps = scores.argmax(1) if scores.shape[1] > 1 else scores[:, 0] > 0
            predictions.append(maps.long().flatten())
            labels.append(sample["labels"].flatten())
    return scores_by_hand(torch.cat(predictions).numpy(), torch.cat(labels).numpy(), num_labels)


def evaluate_with_trainer(model, dataset, folder, compute_metrics, **arguments):
    arguments = TrainingArguments(
        folder, use_cpu=True, report_to=[], remove_unused_columns=False, disable_tqdm=True, **arguments
    )
    trainer = Trainer(
        model,
        arguments,
        eval_dataset=dataset,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )
    return trainer.evaluate()


@pytest.mark.parametrize("batch_eval_metrics", [False, True])
def test_trainer_evaluates_label_maps(batch_eval_metrics, tmp_path):
    model, dataset = tiny_model(), samples([(44, 36)] * 5)
    names = ["road", "car", "sky", "tree", "pole"]
    compute_metrics, gathered = build_compute_metrics(5, class_names=names), []

    def spy(evaluation, compute_result=True):
        gathered.append(
            (tuple(evaluation.predictions.shape), str(evaluation.predictions.dtype).removeprefix("torch."))
        )
        return compute_metrics(evaluation, compute_result=compute_result)

    arguments = {"per_device_eval_batch_size": 2, "batch_eval_metrics": batch_eval_metrics}
    expected = expected_scores(model, dataset)
    for _ in range(2):  # the second evaluation starts from nothing
        scores = evaluate_with_trainer(model, dataset, tmp_path, spy, **arguments)
        for name in SCALARS:
            assert scores[f"eval_{name}"] == pytest.approx(expected[name], abs=2e-4)
        for i, name in enumerate(names):
            assert scores[f"eval_iou_{name}"] == pytest.approx(expected["per_category_iou"][i], abs=1e-3)
            assert scores[f"eval_accuracy_{name}"] == pytest.approx(expected["per_category_accuracy"][i], abs=1e-3)
        assert not [name for name, value in scores.items() if not isinstance(value, (int, float))]
    # Label maps of one byte per pixel are all that is ever gathered, never (N, K, ...) logits.
    batches = [2, 2, 1] if batch_eval_metrics else [5]
    assert gathered == [((n, 44, 36), "uint8") for n in batches] * 2


@pytest.mark.parametrize("arguments", [{"batch_eval_metrics": True}, {"eval_do_concat_batches": False}], ids=str)
def test_trainer_with_images_of_different_sizes_and_a_single_logit(arguments, tmp_path):
    model, dataset = tiny_model(1), samples([(40, 56), (56, 40), (33, 47)], 2)
    compute_metrics = build_compute_metrics(1, class_names=["background", "crack"])
    scores = evaluate_with_trainer(
        model, dataset, tmp_path, compute_metrics, per_device_eval_batch_size=1, **arguments
    )
    expected = expected_scores(model, dataset, 2)
    assert scores["eval_mean_iou"] == pytest.approx(expected["mean_iou"], abs=3e-4)
    assert scores["eval_iou_crack"] == pytest.approx(expected["per_category_iou"][1], abs=6e-4)


# On one of several processes: the part of the maps that is its own, then all ways of adding up.
WORKER = """
import json, sys
import numpy as np, torch
from accelerate import Accelerator
from hf_segformer.evaluation.metrics import ConfusionMatrix

tests_folder, folder = sys.argv[1:]
accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
arrays = np.load(f"{folder}/maps.npz")
maps = [(arrays[f"prediction{i}"], arrays[f"label{i}"]) for i in range(rank, 7, world)]
matrix = ConfusionMatrix(6)
for prediction, label in maps:
    matrix.update(prediction, label)
own = matrix.matrix.clone()
totals = [matrix.reduce(accelerator), matrix.reduce(), matrix.reduce(accelerator)]
assert torch.equal(matrix.matrix, own)
assert all(torch.equal(total.matrix, totals[0].matrix) for total in totals)
matrix.matrix += 2**53 + 1  # exact where float64 is not
assert (matrix.reduce(accelerator).matrix - totals[0].matrix == world * (2**53 + 1)).all()
result = {"world": world, "backend": torch.distributed.get_backend(), "matrix": totals[0].matrix.tolist()}

if world == 2:
    from hf_segformer.evaluation.metrics import MeanIoU

    metric = MeanIoU(6, num_process=world, process_id=rank)
    metric.add_batch(predictions=[prediction for prediction, _ in maps], references=[label for _, label in maps])
    scores = metric.compute()
    assert (scores is None) == (rank != 0)
    result["evaluate"] = scores and scores["mean_iou"]
    sys.path.insert(0, tests_folder)
    import test_metrics_trainer as tests

    for batch_eval_metrics in (False, True):
        result[f"trainer_{batch_eval_metrics}"] = tests.evaluate_with_trainer(
            tests.tiny_model(), tests.samples([(44, 36)] * 5), folder, tests.build_compute_metrics(5),
            per_device_eval_batch_size=1, batch_eval_metrics=batch_eval_metrics,
        )["eval_mean_iou"]
with open(f"{folder}/rank{rank}.json", "w") as file:
    json.dump(result, file)
accelerator.end_training()
"""


@pytest.mark.parametrize("num_processes", [pytest.param(2, marks=pytest.mark.long), 3])  # neither divides the 7 maps
def test_several_processes_give_the_identical_result(num_processes, tmp_path):
    rng = np.random.default_rng(0)
    labels = [rng.choice([*range(6), 255], (3 + i, 20 - i)) for i in range(7)]
    predictions = [np.where(rng.random(label.shape) < 0.5, label, i % 6) for i, label in enumerate(labels)]
    arrays = {f"label{i}": label for i, label in enumerate(labels)}
    arrays |= {f"prediction{i}": prediction for i, prediction in enumerate(predictions)}
    np.savez(tmp_path / "maps.npz", **arrays)
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    # The launcher starts several processes only for GPUs; the variable moves them to the CPU, with gloo between them.
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [*launch, str(tmp_path / "worker.py"), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]

    predictions, labels = (np.concatenate([array.ravel() for array in arrays]) for arrays in (predictions, labels))
    expected = np.zeros((6, 6), int)
    np.add.at(expected, (labels[labels != 255], predictions[labels != 255]), 1)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(num_processes)]
    for result in results:
        assert (result["world"], result["backend"]) == (num_processes, "gloo")
        np.testing.assert_array_equal(result["matrix"], expected)
    if num_processes == 2:
        assert results[0]["evaluate"] == pytest.approx(scores_by_hand(predictions, labels, 6)["mean_iou"])
        expected = expected_scores(tiny_model(), samples([(44, 36)] * 5))["mean_iou"]
        trainers = [
            result[f"trainer_{batch_eval_metrics}"] for result in results for batch_eval_metrics in (False, True)
        ]
        assert trainers == pytest.approx([expected] * 4, abs=2e-4)
