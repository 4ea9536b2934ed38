# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What the metrics take and refuse, and that the scores of `MeanIoU` are JSON as well as arrays."""

import json
import pickle

import numpy as np
import pytest
import torch
from test_metrics import LISTS, SCALARS, assert_same_scores, random_maps, scores_by_hand

from hf_segformer.evaluation.metrics import ConfusionMatrix


def test_scores_of_mean_iou_are_json_and_arrays():
    from hf_segformer.evaluation.metrics import MeanIoU

    predictions, labels = random_maps((4, 6, 5), 7, absent=(3,))
    expected = scores_by_hand(predictions, labels, 7)
    for metric in (MeanIoU(7), MeanIoU(7, nan_to_num=0)):
        scores = metric.compute(predictions=predictions, references=labels)
        read = json.loads(json.dumps(scores))
        assert set(read) == {*SCALARS, *LISTS} and type(read["per_category_iou"]) is list
        assert_same_scores(read, scores)
        iou = np.array(expected["per_category_iou"])
        if metric.nan_to_num == 0:
            iou = np.nan_to_num(iou)
        received = scores["per_category_iou"]
        np.testing.assert_allclose(received * 100, iou * 100)
        np.testing.assert_allclose(1 - received, 1 - iou)
        np.testing.assert_allclose(received[iou > 0.3], iou[iou > 0.3])
        np.testing.assert_allclose(
            [np.nanmean(received), received[2], *received[-2:]], [np.nanmean(iou), iou[2], *iou[-2:]]
        )
        assert received.dtype == np.float64 and received.shape == (7,) and type(received.tolist()) is list
        assert np.array_equal(np.isnan(received), np.isnan(iou)) and np.array_equal(received > 0.3, iou > 0.3)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(received)), iou)
        with pytest.raises(AttributeError):
            received.no_such_thing  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_map": {1: 2}}, "label_map is not supported: MeanIoU counts the ids as they come, so map them before"),
        ({"num_classes": 7}, "MeanIoU.compute has no setting 'num_classes': num_labels, ignore_index"),
        ({"num_labels": [7, 8]}, "num_labels is fixed when MeanIoU is built.*7, compute received"),
        ({"predictions": 3, "references": 3}, "predictions must be a batch of label maps, received int"),
        ({"predictions": [[0]]}, "references must be a batch of label maps, received NoneType"),
        ({"predictions": "ab", "references": "ab"}, "predictions must be a batch of label maps, received str"),
        ({"predictions": [[[0], [1, 2]]], "references": [[[0, 1]]]}, "predictions must be one array of class ids"),
        (
            {"predictions": [np.zeros(2, complex)], "references": [np.zeros(2, int)]},
            "predictions must be class ids.*complex",
        ),
        ({"predictions": [[2**70]], "references": [[0]]}, "predictions must be class ids of an integer dtype.*object"),
    ],
    ids=str,
)
def test_arguments_of_mean_iou(settings, message):
    from hf_segformer.evaluation.metrics import MeanIoU

    with pytest.raises(ValueError, match=message):
        MeanIoU(7).compute(**settings)
    assert MeanIoU(7).compute(label_map=None)["mean_iou"] is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((True,), "num_labels must be a positive integer, received True"),
        ((None,), "num_labels must be a positive integer, received None"),
        ((3, "255"), "ignore_index must be an integer or None, received '255'"),
        ((3, 2.5), "ignore_index must be an integer or None, received 2.5"),
        ((3, 255, "gpu"), "device must be one that PyTorch has here, received 'gpu'"),
    ],
)
def test_settings_of_a_matrix(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(*arguments)
    assert ConfusionMatrix(np.int64(3), np.int64(255)).num_labels == 3
    with pytest.raises(ValueError, match="other must be a ConfusionMatrix, received Tensor"):
        ConfusionMatrix(3).merge(torch.zeros(3, 3))


@pytest.mark.parametrize("wrong", ["masked", "sparse", "meta"])
def test_ids_that_are_not_there(wrong):
    labels = np.zeros((4, 5), int)
    ids = {
        "masked": lambda: np.ma.masked_array(labels, np.eye(4, 5)),
        "sparse": lambda: torch.tensor(labels).to_sparse(),
        "meta": lambda: torch.tensor(labels).to("meta"),
    }[wrong]()
    with pytest.raises(ValueError, match=r"^labels must (not be masked|be a dense tensor)"):
        ConfusionMatrix(3).update(labels, ids)
