# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""metrics.py against counting pixel by pixel."""

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import EvalPrediction

import hf_segformer.metrics
from hf_segformer.evaluation.metrics import (
    ConfusionMatrix,
    atomic_file,
    build_compute_metrics,
    preprocess_logits_for_metrics,
    write_metrics,
)

REPOSITORY = Path(__file__).resolve().parent.parent
SCALARS = ("mean_iou", "mean_accuracy", "overall_accuracy")
LISTS = ("per_category_iou", "per_category_accuracy")

# The pairs of the documentation of evaluate's mean_iou, and what it gives for them.
DOCUMENTED_PREDICTIONS = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
DOCUMENTED_LABELS = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
DOCUMENTED_IOU = [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1]


def counted_by_hand(predictions, labels, num_labels, ignore_index=255):
    matrix = np.zeros((num_labels, num_labels), np.int64)
    for prediction, label in zip(np.ravel(predictions).tolist(), np.ravel(labels).tolist(), strict=True):
        if label != ignore_index:
            matrix[label, prediction] += 1
    return matrix


def scores_by_hand(predictions, labels, num_labels, ignore_index=255):
    """mmsegmentation's definitions on sets of pixels, without a confusion matrix."""
    predictions, labels = np.ravel(predictions), np.ravel(labels)
    predictions, labels = predictions[labels != ignore_index], labels[labels != ignore_index]
    iou, accuracy, dice, precision = [], [], [], []
    for label in range(num_labels):
        hits = np.sum((predictions == label) & (labels == label))
        union = np.sum((predictions == label) | (labels == label))
        truth, predicted = np.sum(labels == label), np.sum(predictions == label)
        iou.append(hits / union if union else np.nan)
        accuracy.append(hits / truth if truth else np.nan)
        dice.append(2 * hits / (truth + predicted) if union else np.nan)
        precision.append(hits / predicted if predicted else np.nan)
    return {
        "mean_iou": np.nanmean(iou),
        "mean_accuracy": np.nanmean(accuracy),
        "overall_accuracy": np.mean(predictions == labels),
        "mean_dice": np.nanmean(dice),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
        "per_category_dice": dice,
        "per_category_precision": precision,
    }


def random_maps(shape, num_labels, seed=0, absent=()):
    """Predictions and labels that agree more often for some classes than for others, with ignored pixels."""
    rng = np.random.default_rng(seed)
    ids = np.setdiff1d(np.arange(num_labels), absent)
    labels = rng.choice(ids, shape, p=np.arange(1, len(ids) + 1) / np.arange(1, len(ids) + 1).sum())
    predictions = np.where(rng.random(shape) < 0.6, labels, rng.choice(ids, shape))
    return predictions, np.where(rng.random(shape) < 0.1, 255, labels)


@pytest.mark.parametrize("num_labels", [1, 2, 7, 40])
@pytest.mark.parametrize("as_array", [True, False], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "dtypes", [(np.uint8, np.uint8), (np.int64, np.uint8), (np.uint16, np.int32), (np.int16, np.int64)]
)
def test_matrix_and_scores_equal_counting_by_hand(num_labels, as_array, dtypes):
    predictions, labels = random_maps((2, 13, 17), num_labels, absent=(2, 5) if num_labels > 6 else ())
    if num_labels > 6:
        predictions[0, :2] = 2  # predicted, absent from the truth
    expected = scores_by_hand(predictions, labels, num_labels)
    arrays = predictions.astype(dtypes[0]), labels.astype(dtypes[1])
    matrix = ConfusionMatrix(num_labels)
    matrix.update(*(arrays if as_array else map(torch.from_numpy, arrays)))

    assert matrix.matrix.dtype == torch.int64
    np.testing.assert_array_equal(matrix.matrix, counted_by_hand(predictions, labels, num_labels))
    scores = matrix.compute(dice=True, fscore=True)
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-12, err_msg=name)
        assert type(scores[name]) is (list if name.startswith("per_category") else float)
    assert scores["per_category_recall"] == pytest.approx(scores["per_category_accuracy"], nan_ok=True)
    agree = ~np.isnan(scores["per_category_fscore"])
    np.testing.assert_allclose(
        np.array(scores["per_category_fscore"])[agree], np.array(expected["per_category_dice"])[agree]
    )


def test_classes_that_are_absent_or_only_predicted():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([0, 0, 2, 1]), np.array([0, 0, 0, 255]))
    scores = matrix.compute()
    np.testing.assert_array_equal(scores["per_category_iou"], [2 / 3, np.nan, 0, np.nan])
    np.testing.assert_array_equal(scores["per_category_accuracy"], [2 / 3, np.nan, np.nan, np.nan])
    assert scores["mean_iou"] == pytest.approx(1 / 3) and scores["mean_accuracy"] == pytest.approx(2 / 3)
    assert set(scores) == {*SCALARS, *LISTS}


def test_nothing_counted_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = ConfusionMatrix(3).compute(dice=True, fscore=True)
    assert all(np.isnan(scores[name]).all() for name in scores)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("num_batches", [1, 3, 11])
def test_any_split_gives_the_same_matrix(monkeypatch, chunk, num_batches):
    monkeypatch.setattr(hf_segformer.metrics, "_CHUNK", chunk)
    predictions, labels = random_maps((11, 5, 3), 6)
    parts = [ConfusionMatrix(6) for _ in range(2)]
    order = np.random.default_rng(num_batches).permutation(11)
    for i, indices in enumerate(np.array_split(order, num_batches)):
        parts[i % 2].update(predictions[indices], labels[indices])
    expected = counted_by_hand(predictions, labels, 6)
    np.testing.assert_array_equal((parts[0] + parts[1]).matrix, expected)
    assert not np.array_equal(parts[0].matrix, expected) or num_batches == 1  # + left its operands alone
    parts[1].merge(parts[0])
    np.testing.assert_array_equal(parts[1].matrix, expected)
    np.testing.assert_array_equal(parts[1].reduce().matrix, expected)  # one process
    parts[1].reset()
    assert parts[1].matrix.sum() == 0


def test_arrays_that_torch_does_not_take_as_they_are():
    predictions, labels = random_maps((9, 8), 5)
    read_only = labels.astype(np.uint8)
    read_only.flags.writeable = False
    matrix = ConfusionMatrix(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix.update(predictions[:, ::-1].astype(">u2")[:, ::-1], read_only)
        matrix.update(np.asfortranarray(predictions), labels)
        matrix.update(torch.from_numpy(predictions).T, torch.from_numpy(labels).T)
        matrix.update(np.zeros((0, 4), int), np.zeros((0, 4), int))
    np.testing.assert_array_equal(matrix.matrix, 3 * counted_by_hand(predictions, labels, 5))


@pytest.mark.parametrize("ignore_index", [255, -100, 65535, None])
def test_predictions_on_ignored_pixels_do_not_matter(ignore_index):
    labels = np.array([[0, 1], [2, 2 if ignore_index is None else ignore_index]])
    matrix = ConfusionMatrix(3, ignore_index)
    matrix.update(np.array([[0, 2], [2, 2 if ignore_index is None else 99]]), labels)
    np.testing.assert_array_equal(matrix.matrix, [[1, 0, 0], [0, 0, 1], [0, 0, 1 + (ignore_index is None)]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_counting_on_the_gpu():
    predictions, labels = random_maps((3, 700, 900), 19)
    matrix = ConfusionMatrix(19, device="cuda")
    matrix.update(torch.from_numpy(predictions).cuda(), torch.from_numpy(labels).byte())
    expected = ConfusionMatrix(19)
    expected.update(predictions, labels)
    assert matrix.matrix.is_cuda and torch.equal(matrix.matrix.cpu(), expected.matrix)
    assert matrix.compute()["mean_iou"] == expected.compute()["mean_iou"]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0, 19], r"labels must lie in \[0, 3\) or be ignore_index=255, received 19$"),
        ([0, 1], [-1, 0], r"labels must lie in \[0, 3\) or be ignore_index=255, received -1$"),
        ([0, 3], [0, 1], r"predictions must lie in \[0, 3\), received 3$"),
        ([-2, 0], [0, 1], r"predictions must lie in \[0, 3\), received -2$"),
        ([0, 1], [[0, 1]], r"same shape, received \(2,\) and \(1, 2\)"),
        ([0.0, 1.0], [0, 1], "predictions must be class ids of an integer dtype, received float64"),
        ([0, 1], torch.tensor([0.0, 1.0]), "labels must be class ids of an integer dtype, received torch.float32"),
    ],
)
def test_wrong_input_is_named_and_counts_nothing(monkeypatch, predictions, labels, message):
    monkeypatch.setattr(hf_segformer.metrics, "_CHUNK", 1)  # the first chunk is fine, a later one is not
    matrix = ConfusionMatrix(3)
    as_given = (ids if isinstance(ids, torch.Tensor) else np.array(ids) for ids in (predictions, labels))
    with pytest.raises(ValueError, match=message):
        matrix.update(*as_given)
    assert matrix.matrix.sum() == 0


def test_many_wrong_labels_are_abridged():
    with pytest.raises(ValueError, match=r"received 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 30 more$"):
        ConfusionMatrix(3).update(np.zeros(40, int), np.arange(3, 43))


@pytest.mark.parametrize("num_labels", [0, -1, 2.0, "3"])
def test_wrong_number_of_labels(num_labels):
    with pytest.raises(ValueError, match=r"num_labels must be a positive integer, received"):
        ConfusionMatrix(num_labels)


def test_merging_unlike_matrices_is_refused():
    with pytest.raises(ValueError, match=r"num_labels must be equal .* 3 and 4"):
        ConfusionMatrix(3) + ConfusionMatrix(4)
    with pytest.raises(ValueError, match=r"ignore_index must be equal .* 255 and None"):
        ConfusionMatrix(3).merge(ConfusionMatrix(3, None))


def test_a_class_as_ignore_index_warns_that_iou_becomes_recall():
    predictions, labels = np.array([1, 1, 1, 0]), np.array([0, 0, 1, 1])
    with pytest.warns(UserWarning, match=r"ignore_index=0 is one of the 2 classes.*recall"):
        matrix = ConfusionMatrix(2, ignore_index=0)
    matrix.update(predictions, labels)
    assert matrix.compute()["per_category_iou"][1] == 0.5  # the recall; the IoU is 1/4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConfusionMatrix(2, ignore_index=2), ConfusionMatrix(2, ignore_index=-100), ConfusionMatrix(2, None)


def test_table():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 255]))
    assert matrix.table(["sky", "traffic light", "car"]).splitlines() == [
        "class             IoU %     Acc %  pixels %",
        "-------------------------------------------",
        "sky              100.00    100.00     33.33",
        "traffic light     50.00     50.00     66.67",
        "car                0.00         -      0.00",
        "-------------------------------------------",
        "mean              50.00     75.00",
        "overall                     66.67",
    ]
    with pytest.raises(ValueError, match="class_names must name all 3 classes, received 2 names"):
        matrix.table(["sky", "car"])


# ---- evaluate.Metric


def test_importing_the_module_imports_no_heavy_package():
    program = (
        "import sys, hf_segformer.metrics\n"
        "heavy = {'evaluate', 'datasets', 'matplotlib', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_mean_iou_is_a_metric_of_evaluate_made_on_access():
    import evaluate

    from hf_segformer.evaluation.metrics import MeanIoU

    assert issubclass(MeanIoU, evaluate.Metric) and MeanIoU is hf_segformer.metrics.MeanIoU and MeanIoU.__doc__
    with pytest.raises(AttributeError, match="no attribute 'MeanIOU'"):
        hf_segformer.metrics.MeanIOU  # noqa: B018


def assert_same_scores(received, expected):
    for name in (*SCALARS, *LISTS):
        np.testing.assert_allclose(received[name], expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("way", ["compute", "add_batch", "add", "arrays", "map", "combine"])
def test_mean_iou_by_every_way_of_adding(way, tmp_path):
    import evaluate

    from hf_segformer.evaluation.metrics import MeanIoU

    metric = MeanIoU(10, cache_dir=str(tmp_path))
    pairs = [*zip(map(np.array, DOCUMENTED_PREDICTIONS), map(np.array, DOCUMENTED_LABELS), strict=True)]
    last = {}
    if way == "compute":
        last = {"predictions": DOCUMENTED_PREDICTIONS, "references": DOCUMENTED_LABELS}
    elif way == "add_batch":
        metric.add_batch(predictions=[p for p, _ in pairs], references=[label for _, label in pairs])
    elif way == "add":
        for prediction, label in pairs:
            metric.add(prediction=prediction, reference=label)
    elif way == "arrays":
        metric.add_batch(
            predictions=torch.tensor(DOCUMENTED_PREDICTIONS[:2]), references=np.array(DOCUMENTED_LABELS[:2])
        )
        metric.add_batch(predictions=pairs[2][0][None], references=pairs[2][1][None])
    elif way == "map":
        for prediction, label in pairs:
            metric.add_batch(predictions=prediction, references=label)
    else:
        combined = evaluate.combine([metric, MeanIoU(10)])
        for prediction, label in pairs:
            combined.add(prediction=prediction, reference=label)
    assert len(metric) == (0 if way == "compute" else 3)
    scores = metric.compute(**last, num_labels=10, ignore_index=255, reduce_labels=False)
    assert [scores[name] for name in SCALARS] == pytest.approx([0.47750, 0.59167, 0.52632], abs=5e-6)
    np.testing.assert_allclose(scores["per_category_iou"].tolist(), DOCUMENTED_IOU)
    assert len(metric) == 0 and np.isnan(metric.compute()["mean_iou"])  # compute forgets
    assert not list(tmp_path.iterdir())  # and nothing went to disk
    assert metric.name == "mean_iou"


def test_mean_iou_settings():
    from hf_segformer.evaluation.metrics import MeanIoU

    predictions, labels = random_maps((4, 6, 5), 7, absent=(3,))
    stored = np.where(labels == 255, 0, labels + 1)  # as the files of ADE20K
    stored[0, 0, 0] = 255
    expected = scores_by_hand(predictions, np.where(stored == 255, 255, labels), 7)
    metric = MeanIoU(7, reduce_labels=True)
    assert_same_scores(metric.compute(predictions=predictions, references=stored.astype(np.uint8)), expected)
    scores = MeanIoU(7, nan_to_num=-1).compute(predictions=predictions, references=labels)
    assert scores["per_category_iou"][3] == -1
    for name, value in {"num_labels": 8, "ignore_index": 0, "reduce_labels": False}.items():
        with pytest.raises(ValueError, match=f"{name} is fixed when MeanIoU is built"):
            metric.compute(**{name: value})
    with pytest.raises(ValueError, match="must be equally many, received 1 predictions and 2 references"):
        metric.add_batch(predictions=[predictions[0]], references=[labels[0], labels[1]])
    with pytest.raises(ValueError, match="references must be class ids of an integer dtype"):
        metric.add(prediction=predictions[0], reference=labels[0] / 2)
    with pytest.raises(ValueError, match="reduce_labels=True turns label 0 into ignore_index"):
        MeanIoU(7, ignore_index=None, reduce_labels=True)
    with pytest.raises(ValueError, match="num_process=2 needs an initialized process group"):
        MeanIoU(7, num_process=2, process_id=1).compute()
    with pytest.warns(UserWarning, match="recall"):
        MeanIoU(7, ignore_index=0)


def test_mean_iou_is_pickled_and_merged_and_stays_small():
    from hf_segformer.evaluation.metrics import MeanIoU

    predictions, labels = random_maps((6, 50, 40), 5)
    parts = [MeanIoU(5) for _ in range(2)]
    empty = len(pickle.dumps(parts[0]))
    for part, rows in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
        part.add_batch(predictions=predictions[rows], references=labels[rows])
    assert len(pickle.dumps(parts[1])) <= empty + 16  # as large as before: no predictions inside
    merged = pickle.loads(pickle.dumps(parts[0])).merge(parts[1])
    assert len(merged) == 6
    assert_same_scores(merged.compute(), scores_by_hand(predictions, labels, 5))


# ---- what transformers.Trainer is given (test_metrics_trainer.py runs it)


@pytest.mark.parametrize(
    ("num_labels", "dtype"), [(1, torch.uint8), (3, torch.uint8), (256, torch.uint8), (300, torch.int32)]
)
def test_preprocess_logits(num_labels, dtype):
    logits = torch.randn(2, num_labels, 5, 7, generator=torch.Generator().manual_seed(2))
    scores = F.interpolate(logits.double(), size=(19, 31), mode="bilinear", align_corners=False)
    expected = scores.argmax(1) if num_labels > 1 else (scores[:, 0] > 0).long()
    labels = torch.zeros(2, 19, 31, dtype=torch.int64)
    for given in (logits, (logits, torch.zeros(1))):
        label_maps = preprocess_logits_for_metrics(given, labels)
        assert label_maps.dtype == dtype and label_maps.shape == (2, 19, 31)
        assert (label_maps.long() == expected).float().mean() > 0.999
    assert preprocess_logits_for_metrics(logits, None).shape == (2, 5, 7)


def test_padding_of_trainer_is_ignored_with_any_ignore_index():
    predictions, labels = random_maps((2, 6, 5), 4)
    labels[labels == 255] = 3
    padded = np.full((2, 9, 5), -100)
    padded[:, :6] = labels
    padded_predictions = np.full((2, 9, 5), 156, np.uint8)  # what -100 becomes in uint8
    padded_predictions[:, :6] = predictions
    for ignore_index in (255, -100, None):
        scores = build_compute_metrics(4, ignore_index)(EvalPrediction(padded_predictions, padded))
        assert scores["mean_iou"] == pytest.approx(scores_by_hand(predictions, labels, 4, -1)["mean_iou"])
    assert set(scores) == set(SCALARS)


def test_logits_instead_of_label_maps_are_explained():
    with pytest.raises(
        ValueError, match=r"shape \(8, 9\) .* received \(3, 2, 2\): give Trainer preprocess_logits_for"
    ):
        build_compute_metrics(3)(EvalPrediction(np.zeros((2, 3, 2, 2), np.float32), np.zeros((2, 8, 9), int)))
    with pytest.raises(ValueError, match="class_names must name all 3 classes, received 2 names"):
        build_compute_metrics(3, class_names=["a", "b"])


# ---- files


def test_write_metrics(tmp_path):
    path = tmp_path / "new folder" / "metrics.json"
    metrics = {
        "mean_iou": np.float32(0.5),
        "per_category_iou": [0.25, float("nan")],
        3: torch.tensor([1, 2]),
        "é": None,
    }
    metrics["nested"] = {"arrays": (np.array([1.5, np.inf]), np.int64(7)), "text": "ok"}
    write_metrics(metrics, path)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "mean_iou": 0.5,
        "per_category_iou": [0.25, None],
        "3": [1, 2],
        "é": None,
        "nested": {"arrays": [[1.5, None], 7], "text": "ok"},
    }
    with pytest.raises(TypeError):
        write_metrics({"bad": object()}, path)
    assert path.read_text(encoding="utf-8") == text and [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_atomic_file_keeps_the_old_content_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half of the new")
        file.flush()
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with atomic_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
