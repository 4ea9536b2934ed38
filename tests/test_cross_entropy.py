# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Upsampling fused with cross-entropy, against plain expressions in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from hf_segformer import engine
from hf_segformer.scores.cross_entropy import upsample_cross_entropy, upsample_cross_entropy_sum
from largest_tensor import LargestTensor
from score_maps import LAYOUTS, SIZES, by_engine, device_code, noise_logits, plain_scores, random_labels

code_path = device_code


def banded(logits, labels, **options):
    """The mean loss, which the engine must have computed where it is on."""
    return by_engine("cross_entropy_in_bands", upsample_cross_entropy, logits, labels, **options)


def banded_sum(logits, labels, *arguments, **options):
    """Sum and number, likewise."""
    return by_engine("cross_entropy_in_bands", upsample_cross_entropy_sum, logits, labels, *arguments, **options)


def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over valid pixels."""
    scores = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    if logits.shape[1] > 1:
        return F.cross_entropy(scores, labels, ignore_index=255)
    valid = labels != 255
    return F.binary_cross_entropy_with_logits(scores[:, 0][valid], labels[valid].to(scores.dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SIZES)
def test_loss_and_gradient_equal_autograd(shape, layout, code_path):
    classes, height, width, *size = shape
    logits = noise_logits(classes, height, width).double().contiguous(memory_format=layout).requires_grad_()
    labels = random_labels(2, classes, *size)
    expected = plain_loss(logits, labels)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = banded(logits, labels)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    tolerance = {"rtol": 0, "atol": 1e-10 * expected_gradient.abs().max()}
    torch.testing.assert_close(logits.grad, expected_gradient, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(banded(logits, labels), loss, rtol=1e-12, atol=0)
    with engine.off():
        textbook = upsample_cross_entropy(logits, labels)
    torch.testing.assert_close(textbook, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*torch.autograd.grad(textbook, logits), expected_gradient, **tolerance)


@pytest.mark.parametrize("classes", [1, 3])
def test_loss_gradcheck(classes):
    logits = noise_logits(classes, 3, 4, batch=1).double().requires_grad_()
    labels = random_labels(1, classes, 7, 6)
    weights = torch.tensor([0.5, 2.0, 3.0][: max(classes, 2)], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: upsample_cross_entropy_sum(x, labels, class_weights=weights)[0], logits)


@pytest.mark.parametrize("classes", [1, 6, 40])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)]
)
def test_loss_in_lower_precision(dtype, tolerance, classes):
    # Only the gradient's final rounding to the logits' type may be seen; the computation is float32.
    logits = (noise_logits(classes, 17, 15) * 3).to(dtype).requires_grad_()
    labels = random_labels(2, classes, 60, 61)
    reference = logits.detach().double().requires_grad_()
    expected = plain_loss(reference, labels)
    expected.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = banded(logits, labels)
    (loss * 2**16).backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=0)
    error = (logits.grad.double() / 2**16 - reference.grad).abs().max()
    assert error <= tolerance * reference.grad.abs().max()


@pytest.mark.parametrize("classes", [1, 5, 40])
def test_batch_without_a_valid_pixel(classes):
    logits = noise_logits(classes, 6, 6).requires_grad_()
    labels = torch.full((2, 20, 20), 255)
    loss = upsample_cross_entropy(logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.eq(0).all()
    assert upsample_cross_entropy_sum(logits, labels)[1].item() == 0


@pytest.mark.parametrize("ignore_index", [255, 0, -100])
def test_averages_count_and_class_weights(ignore_index):
    logits = noise_logits(5, 9, 7).double().requires_grad_()
    labels = random_labels(2, 5, 30, 22)
    labels[labels == 255] = ignore_index
    weights = torch.tensor([0.1, 1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    scores = F.interpolate(logits, size=(30, 22), mode="bilinear")
    expected = F.cross_entropy(scores, labels, weight=weights, ignore_index=ignore_index, reduction="sum")
    total, count = banded_sum(logits, labels, ignore_index, class_weights=weights)
    assert count.dtype == torch.int64
    assert count.item() == (labels != ignore_index).sum().item()
    torch.testing.assert_close(total, expected)
    for mine, plain in zip(torch.autograd.grad(total, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(mine, plain)
    with engine.off():
        plain, plain_count = upsample_cross_entropy_sum(logits, labels, ignore_index, class_weights=weights)
    torch.testing.assert_close(plain, expected)
    assert torch.equal(plain_count, count)
    everywhere = F.cross_entropy(scores, labels, ignore_index=ignore_index, reduction="none").mean()
    torch.testing.assert_close(upsample_cross_entropy(logits, labels, ignore_index, average="all"), everywhere)


def test_binary_loss_averages_over_valid_pixels():
    logits = noise_logits(1, 8, 8).double()
    labels = random_labels(2, 1, 32, 32)
    labels[0, :5] = -1
    valid = (labels == 0) | (labels == 1)
    scores = plain_scores(logits, (32, 32))[:, 0]
    expected = F.binary_cross_entropy_with_logits(scores[valid], labels[valid].double())
    torch.testing.assert_close(upsample_cross_entropy(logits, labels), expected)


def test_loss_of_probabilities_that_underflow(code_path):
    logits = (noise_logits(4, 8, 8) * 300).requires_grad_()
    labels = random_labels(2, 4, 20, 20)
    loss = banded(logits, labels)
    torch.testing.assert_close(loss, plain_loss(logits, labels))
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_loss_in_the_autograd_graph():
    logits = noise_logits(5, 8, 8).requires_grad_()
    labels = random_labels(2, 5, 32, 32)
    loss = upsample_cross_entropy(logits * 2, labels)
    (once,) = torch.autograd.grad(loss * 3, logits, retain_graph=True)
    (again,) = torch.autograd.grad(loss * 3, logits)
    (expected,) = torch.autograd.grad(plain_loss(logits * 2, labels) * 3, logits)
    torch.testing.assert_close(once, expected)
    assert torch.equal(once, again)
    for reentrant in (True, False):
        logits.grad = None
        checkpoint(upsample_cross_entropy, logits * 2, labels, use_reentrant=reentrant).mul(3).backward()
        torch.testing.assert_close(logits.grad, expected)
    assert not upsample_cross_entropy(logits.detach(), labels).requires_grad


@pytest.mark.engine
def test_the_second_derivative_is_the_textbooks_alone():
    logits, labels = noise_logits(5, 8, 8).requires_grad_(), random_labels(2, 5, 32, 32)
    with pytest.raises(RuntimeError, match=r"no second derivative; within hf_segformer\.engine\.off\(\) it has one"):
        torch.autograd.grad(upsample_cross_entropy(logits, labels), logits, create_graph=True)
    second = []
    for loss in (upsample_cross_entropy, plain_loss):
        with engine.off():
            (gradient,) = torch.autograd.grad(loss(logits, labels), logits, create_graph=True)
        second += torch.autograd.grad(gradient.square().sum(), logits)
    torch.testing.assert_close(*second)


@pytest.mark.engine
@pytest.mark.parametrize("classes", [6, 40])
def test_loss_never_holds_the_scores(classes, code_path):
    logits = noise_logits(classes, 64, 64, batch=1).requires_grad_()
    labels = random_labels(1, classes, 256, 256)
    with LargestTensor() as largest:
        upsample_cross_entropy(logits, labels).backward()
    assert logits.grad is not None
    with engine.off(), LargestTensor() as largest_of_all:
        upsample_cross_entropy(logits, labels)
    assert largest_of_all.numel >= classes * 256 * 256
    # Class by class a label map is as large as the scores of one class.
    assert largest.numel < max(classes / 10, 1.01) * 256 * 256


@pytest.mark.parametrize("classes", [1, 5])
def test_loss_compiles(classes):
    logits = noise_logits(classes, 9, 7).requires_grad_()
    labels = random_labels(2, classes, 30, 22)
    (expected,) = torch.autograd.grad(upsample_cross_entropy(logits, labels), logits)
    compiled = torch.compile(upsample_cross_entropy, fullgraph=True, backend="aot_eager")
    loss = compiled(logits, labels)
    torch.testing.assert_close(loss, upsample_cross_entropy(logits, labels))
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (5, 5, r"labels must lie in \[0, 4\] \(the logits have 5 classes\) .* 255, got 5"),
        (5, -1, r"got -1"),
        (1, 2, r"labels must lie in \[0, 1\] \(the logits have 1 class\) .* got 2"),
    ],
)
def test_loss_refuses_labels_out_of_range(classes, label, message):
    labels = random_labels(1, classes, 8, 8)
    labels[0, 3, 4] = label
    with pytest.raises(ValueError, match=message):
        upsample_cross_entropy(torch.zeros(1, classes, 4, 4), labels)


def test_loss_refuses_shapes_types_and_averages():
    logits = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"got torch.int64 of shape \(1, 8, 8\)"):
        upsample_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(2, 8, 8\)"):
        upsample_cross_entropy(logits, torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match=r"average must be .* got 'batch'"):
        upsample_cross_entropy(logits, torch.zeros(2, 8, 8, dtype=torch.long), average="batch")
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    torch.testing.assert_close(upsample_cross_entropy(logits, labels), torch.tensor(3.0).log())
