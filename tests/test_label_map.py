# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Upsampling fused with argmax, against plain expressions in float64 and numpy brute force."""

import numpy as np
import pytest
import torch

from hf_segformer import engine
from hf_segformer.engine import label_map, pruned_labels
from hf_segformer.scores.label_map import upsample_argmax
from largest_tensor import LargestTensor
from score_maps import LAYOUTS, SIZES, by_engine, device_code, noise_logits, plain_scores, smooth_logits

code_path = device_code


def banded(logits, size, **options):
    """The label map, which the engine must have computed where it is on."""
    return by_engine("label_map_in_bands", upsample_argmax, logits, size, **options)


def assert_labels_match(labels: torch.Tensor, scores: torch.Tensor, tolerance: float = 1e-5) -> None:
    """The label's score is the maximum, up to rounding; so the label is the winner wherever the maximum is unique."""
    assert labels.dtype == torch.int64
    if scores.shape[1] == 1:
        clear = scores[:, 0].abs() > tolerance
        assert torch.equal(labels[clear], (scores[:, 0] > 0).long()[clear])
        return
    top, winners = scores.topk(2, dim=1)
    clear = top[:, 0] - top[:, 1] > tolerance
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear], winners[:, 0][clear])
    assert (top[:, 0] - scores.gather(1, labels[:, None])[:, 0]).max() <= tolerance


@pytest.fixture(autouse=True)
def no_plain_labels(monkeypatch):
    """Small images, too, go the way of large ones, unless a test says otherwise."""
    monkeypatch.setattr(label_map, "_FEW_SCORES", 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [smooth_logits, noise_logits])
@pytest.mark.parametrize("shape", SIZES)
def test_argmax_equals_the_plain_expression(shape, make, layout, code_path):
    classes, height, width, *size = shape
    logits = make(classes, height, width).contiguous(memory_format=layout)
    labels, confidence = banded(logits, tuple(size), return_confidence=True)
    scores = plain_scores(logits, tuple(size))
    assert_labels_match(labels, scores)
    assert torch.equal(labels, banded(logits, tuple(size)))
    with engine.off():
        textbook, probability = upsample_argmax(logits, tuple(size), return_confidence=True)
    assert_labels_match(textbook, scores)
    assert probability.dtype == torch.float32
    torch.testing.assert_close(confidence, probability, rtol=0, atol=1e-5)
    expected = scores.abs().sigmoid() if classes == 1 else scores.softmax(1).amax(1, keepdim=True)
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, expected[:, 0].float(), rtol=0, atol=1e-5)


@pytest.mark.engine
@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("make", [smooth_logits, noise_logits])
@pytest.mark.parametrize("shape", SIZES)
def test_pruned_and_banded_labels_agree(shape, make, pruned, monkeypatch):
    # Whatever the estimate says, so that each algorithm sees each kind of input.
    monkeypatch.setattr(pruned_labels, "_pruning_pays", lambda *arguments: pruned)
    classes, height, width, *size = shape
    logits = make(classes, height, width, seed=3)
    assert_labels_match(banded(logits, tuple(size)), plain_scores(logits, tuple(size)))


@pytest.mark.engine
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SIZES)
def test_few_scores_are_labelled_plainly(shape, layout, monkeypatch):
    classes, height, width, *size = shape
    logits = noise_logits(classes, height, width, seed=5).contiguous(memory_format=layout)
    logits[0, 0, 0, 0] = float("nan")
    expected, given = banded(logits, tuple(size)), logits.clone()
    monkeypatch.setattr(label_map, "_FEW_SCORES", 1 << 20)
    for name in ("_label_bands", "label_where_it_pays", "_confidence"):
        monkeypatch.setattr(label_map, name, None)
    labels = banded(logits, tuple(size))
    again, confidence = banded(logits, tuple(size), return_confidence=True)
    assert torch.equal(again, labels) and torch.equal(logits.nan_to_num(), given.nan_to_num())
    assert labels.dtype == torch.int64 and (labels == expected).float().mean() > 0.99
    scores = plain_scores(torch.nan_to_num(logits, nan=-1e30), tuple(size))
    assert_labels_match(labels[1:], scores[1:])
    probability = scores[:, :1].abs().sigmoid() if classes == 1 else scores.softmax(1).amax(1, keepdim=True)
    assert confidence.dtype == torch.float32
    assert torch.allclose(confidence[1:].double(), probability[1:, 0], rtol=0, atol=1e-5)
    assert torch.isfinite(confidence).all() and confidence.min() >= 0 and confidence.max() <= 1


@pytest.mark.engine
def test_pruning_is_chosen_by_the_share_of_mixed_cells(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # more of them make bands cheaper
    choices = []
    decide = pruned_labels._pruning_pays
    monkeypatch.setattr(
        pruned_labels, "_pruning_pays", lambda *arguments: choices.append(decide(*arguments)) or choices[-1]
    )
    upsample_argmax(smooth_logits(40, 64, 64, batch=1), (256, 256))
    assert all(choices)
    choices.clear()
    upsample_argmax(noise_logits(40, 64, 64, batch=1), (256, 256))
    assert not any(choices)


def test_argmax_equals_brute_force():
    logits, size = noise_logits(5, 4, 6, batch=1), (11, 9)
    expected = np.zeros(size, dtype=int)
    for row in range(size[0]):
        for column in range(size[1]):
            y = min(max((row + 0.5) * 4 / size[0] - 0.5, 0), 3)
            x = min(max((column + 0.5) * 6 / size[1] - 0.5, 0), 5)
            top, left = int(y), int(x)
            bottom, right, v, u = min(top + 1, 3), min(left + 1, 5), y - top, x - left
            scores = [
                (1 - v) * ((1 - u) * plane[top, left] + u * plane[top, right])
                + v * ((1 - u) * plane[bottom, left] + u * plane[bottom, right])
                for plane in logits[0].double().numpy()
            ]
            expected[row, column] = int(np.argmax(scores))
    np.testing.assert_array_equal(banded(logits, size)[0].numpy(), expected)


@pytest.mark.parametrize("pruned", [True, False])
def test_ties_go_to_the_first_class(pruned, monkeypatch):
    # Small integers and a power-of-two ratio: every score is exact, so ties are exact too.
    monkeypatch.setattr(pruned_labels, "_pruning_pays", lambda *arguments: pruned)
    logits = torch.randint(0, 2, (2, 6, 12, 10), generator=torch.Generator().manual_seed(0)).float()
    scores = plain_scores(logits, (48, 40)).numpy()
    assert (np.sort(scores, axis=1)[:, -1] == np.sort(scores, axis=1)[:, -2]).mean() > 0.1
    np.testing.assert_array_equal(banded(logits, (48, 40)).numpy(), scores.argmax(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_argmax_of_other_dtypes_is_that_of_their_values(dtype):
    logits = smooth_logits(9, 20, 15).to(dtype)
    scores = plain_scores(logits, (71, 64))
    labels, confidence = banded(logits, (71, 64), return_confidence=True)
    # The first of equal classes wins, and half precision has many equals: the plain scores must have them too.
    assert_labels_match(labels, scores, tolerance=1e-12 if dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(confidence, scores.softmax(1).amax(1).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 74.0, 149.9, 150.1, 1e4])
@pytest.mark.parametrize("offset", [0.0, -3.0])
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_confidence_at_any_spread_of_the_scores(classes, offset, spread):
    """Powers of two are added up where that cannot overflow, and the softmax is taken elsewhere."""
    logits = noise_logits(classes, 9, 7)
    smallest, largest = logits.aminmax()
    logits = ((logits - smallest) / (largest - smallest) + offset) * spread
    labels, confidence = banded(logits, (300, 301), return_confidence=True)
    expected = plain_scores(logits.double(), (300, 301)).softmax(1).gather(1, labels[:, None])[:, 0]
    # An interpolated score is known to a few units in the last place of the largest.
    torch.testing.assert_close(confidence.double(), expected, rtol=0, atol=max(1e-6 * spread * 4, 1e-6))


@pytest.mark.parametrize("make", [smooth_logits, noise_logits])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(value, make, code_path):
    logits = make(6, 20, 16)
    logits[:, 2] = float("-inf")
    logits[0, 4, 3:6, 5] = value
    labels, confidence = banded(logits, (77, 65), return_confidence=True)
    assert labels.min() >= 0 and labels.max() < 6
    assert torch.isfinite(confidence).all() and confidence.min() >= 0 and confidence.max() <= 1
    assert not (labels == 2).any(), "a class masked with -inf won"
    replaced = logits.nan_to_num(-1e9, posinf=1e9, neginf=-1e9)
    assert_labels_match(labels, plain_scores(replaced, (77, 65)))
    assert upsample_argmax(torch.full((1, 5, 8, 8), value), (16, 16)).eq(0).all()


def test_argmax_does_not_touch_gradients_or_its_input():
    logits = smooth_logits(5, 12, 12).requires_grad_()
    before = logits.detach().clone()
    expected = upsample_argmax(logits, (40, 40))
    assert not expected.requires_grad
    with torch.inference_mode():
        labels, confidence = upsample_argmax(logits * 1, (40, 40), return_confidence=True)
    assert torch.equal(labels, expected)
    assert not confidence.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(upsample_argmax(logits, (40, 40)), expected)
    assert torch.equal(logits, before)
    assert upsample_argmax(logits[:0], (40, 40)).shape == (0, 40, 40)


@pytest.mark.engine
@pytest.mark.parametrize("make", [smooth_logits, noise_logits])
def test_argmax_never_holds_the_scores(make, code_path):
    logits = make(30, 64, 64, batch=1)
    with LargestTensor() as largest:
        upsample_argmax(logits, (256, 256), return_confidence=True)
    assert largest.numel < 30 * 256 * 256 / 10
    with engine.off(), LargestTensor() as largest:
        upsample_argmax(logits, (256, 256))
    assert largest.numel == 30 * 256 * 256


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("classes", [1, 3, 9])
def test_argmax_compiles_and_exports(classes):
    class LabelMap(torch.nn.Module):
        def forward(self, logits):
            return upsample_argmax(logits, (37, 50), return_confidence=True)

    logits = smooth_logits(classes, 12, 13)
    expected, expected_confidence = upsample_argmax(logits, (37, 50), return_confidence=True)
    for traced in (
        torch.compile(LabelMap(), fullgraph=True, backend="eager"),
        torch.export.export(LabelMap(), (logits,)).module(),
        torch.jit.trace(LabelMap(), logits),
    ):
        labels, confidence = traced(logits + 0)
        assert torch.equal(labels, expected)
        torch.testing.assert_close(confidence, expected_confidence)
    assert upsample_argmax(logits.to("meta"), (37, 50)).shape == expected.shape
    with engine.off():
        assert torch.equal(upsample_argmax(logits, (37, 50)), expected)


@pytest.mark.parametrize(
    ("logits", "size", "message"),
    [
        (torch.zeros(3, 4, 4), (8, 8), r"logits must be .* got torch.float32 of shape \(3, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), (8, 8), "logits must be a floating-point tensor"),
        (torch.zeros(1, 3, 4, 4), (0, 8), r"size must be two positive numbers .* got \(0, 8\)"),
    ],
)
def test_argmax_refuses(logits, size, message):
    with pytest.raises(ValueError, match=message):
        upsample_argmax(logits, size)
