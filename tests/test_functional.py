# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Upsampling fused with argmax and with cross-entropy, against plain expressions in float64 and numpy brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from hf_segformer import bilinear_segformer, functional_segformer, pruned_labels_segformer
from hf_segformer.functional_segformer import (
    plain_upsample_argmax,
    plain_upsample_cross_entropy_sum,
    upsample_argmax,
    upsample_cross_entropy,
    upsample_cross_entropy_sum,
)
from largest_tensor import LargestTensor

# (classes, height, width, label height, label width): non-multiple, odd, integer ratio, identity, smaller, one axis
# larger and one smaller, several slabs, a single point.
SIZES = [
    (7, 13, 9, 50, 37),
    (5, 16, 12, 64, 48),
    (7, 13, 9, 13, 9),
    (5, 20, 30, 11, 13),
    (4, 20, 10, 7, 41),
    (6, 9, 20, 61, 20),
    (4, 70, 8, 141, 31),
    (40, 6, 5, 33, 29),
    (3, 11, 7, 29, 30),
    (2, 5, 7, 10, 7),
    (1, 9, 8, 33, 31),
    (5, 1, 1, 5, 4),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def smooth_logits(classes: int, height: int, width: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Blobs a few points wide: uniform cells, mixed cells with few candidates, and some with many."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, classes, -(-height // 4), -(-width // 4), generator=generator) * 4
    fine = torch.randn(batch, classes, height, width, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bilinear") + 0.2 * fine


def noise_logits(classes: int, height: int, width: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, classes, height, width, generator=torch.Generator().manual_seed(seed))


def plain_scores(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits.double(), size=size, mode="bilinear", align_corners=False)


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


def random_labels(batch: int, classes: int, height: int, width: int, ignored: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, max(classes, 2), (batch, height, width), generator=generator)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < ignored, 255)


def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over valid pixels."""
    scores = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    if logits.shape[1] > 1:
        return F.cross_entropy(scores, labels, ignore_index=255)
    valid = labels != 255
    return F.binary_cross_entropy_with_logits(scores[:, 0][valid], labels[valid].to(scores.dtype))


@pytest.fixture(autouse=True)
def no_plain_labels(monkeypatch):
    """Small images, too, go the way of large ones, unless a test says otherwise."""
    monkeypatch.setattr(functional_segformer, "_FEW_SCORES", 0)


@pytest.fixture(params=["cpu", "device"])
def code_path(request, monkeypatch):
    """Also run, on the CPU, the code that other devices get."""
    if request.param == "device":
        for module in (bilinear_segformer, functional_segformer):
            monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
    return request.param


# ---------------------------------------------------------------------------------------------------------- label maps


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [smooth_logits, noise_logits])
@pytest.mark.parametrize("shape", SIZES)
def test_argmax_equals_the_plain_expression(shape, make, layout, code_path):
    classes, height, width, *size = shape
    logits = make(classes, height, width).contiguous(memory_format=layout)
    labels, confidence = upsample_argmax(logits, tuple(size), return_confidence=True)
    scores = plain_scores(logits, tuple(size))
    assert_labels_match(labels, scores)
    assert torch.equal(labels, upsample_argmax(logits, tuple(size)))
    expected = scores.abs().sigmoid() if classes == 1 else scores.softmax(1).amax(1, keepdim=True)
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, expected[:, 0].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("make", [smooth_logits, noise_logits])
@pytest.mark.parametrize("shape", SIZES)
def test_pruned_and_banded_labels_agree(shape, make, pruned, monkeypatch):
    # Whatever the estimate says, so that each algorithm sees each kind of input.
    monkeypatch.setattr(pruned_labels_segformer, "_pruning_pays", lambda *arguments: pruned)
    classes, height, width, *size = shape
    logits = make(classes, height, width, seed=3)
    assert_labels_match(upsample_argmax(logits, tuple(size)), plain_scores(logits, tuple(size)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SIZES)
def test_few_scores_are_labelled_plainly(shape, layout, monkeypatch):
    classes, height, width, *size = shape
    logits = noise_logits(classes, height, width, seed=5).contiguous(memory_format=layout)
    logits[0, 0, 0, 0] = float("nan")
    expected, given = upsample_argmax(logits, tuple(size)), logits.clone()
    monkeypatch.setattr(functional_segformer, "_FEW_SCORES", 1 << 20)
    for name in ("_label_bands", "label_where_it_pays", "_confidence"):
        monkeypatch.setattr(functional_segformer, name, None)
    labels = upsample_argmax(logits, tuple(size))
    again, confidence = upsample_argmax(logits, tuple(size), return_confidence=True)
    assert torch.equal(again, labels) and torch.equal(logits.nan_to_num(), given.nan_to_num())
    assert labels.dtype == torch.int64 and (labels == expected).float().mean() > 0.99
    scores = plain_scores(torch.nan_to_num(logits, nan=-1e30), tuple(size))
    assert_labels_match(labels[1:], scores[1:])
    probability = scores[:, :1].abs().sigmoid() if classes == 1 else scores.softmax(1).amax(1, keepdim=True)
    assert confidence.dtype == torch.float32
    assert torch.allclose(confidence[1:].double(), probability[1:, 0], rtol=0, atol=1e-5)
    assert torch.isfinite(confidence).all() and confidence.min() >= 0 and confidence.max() <= 1


def test_pruning_is_chosen_by_the_share_of_mixed_cells(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # more of them make bands cheaper
    choices = []
    decide = pruned_labels_segformer._pruning_pays
    monkeypatch.setattr(
        pruned_labels_segformer, "_pruning_pays", lambda *arguments: choices.append(decide(*arguments)) or choices[-1]
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
    np.testing.assert_array_equal(upsample_argmax(logits, size)[0].numpy(), expected)


@pytest.mark.parametrize("pruned", [True, False])
def test_ties_go_to_the_first_class(pruned, monkeypatch):
    # Small integers and a power-of-two ratio: every score is exact, so ties are exact too.
    monkeypatch.setattr(pruned_labels_segformer, "_pruning_pays", lambda *arguments: pruned)
    logits = torch.randint(0, 2, (2, 6, 12, 10), generator=torch.Generator().manual_seed(0)).float()
    scores = plain_scores(logits, (48, 40)).numpy()
    assert (np.sort(scores, axis=1)[:, -1] == np.sort(scores, axis=1)[:, -2]).mean() > 0.1
    np.testing.assert_array_equal(upsample_argmax(logits, (48, 40)).numpy(), scores.argmax(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_argmax_of_other_dtypes_is_that_of_their_values(dtype):
    logits = smooth_logits(9, 20, 15).to(dtype)
    scores = plain_scores(logits, (71, 64))
    labels, confidence = upsample_argmax(logits, (71, 64), return_confidence=True)
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
    labels, confidence = upsample_argmax(logits, (300, 301), return_confidence=True)
    expected = plain_scores(logits.double(), (300, 301)).softmax(1).gather(1, labels[:, None])[:, 0]
    # An interpolated score is known to a few units in the last place of the largest.
    torch.testing.assert_close(confidence.double(), expected, rtol=0, atol=max(1e-6 * spread * 4, 1e-6))


@pytest.mark.parametrize("make", [smooth_logits, noise_logits])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(value, make, code_path):
    logits = make(6, 20, 16)
    logits[:, 2] = float("-inf")
    logits[0, 4, 3:6, 5] = value
    labels, confidence = upsample_argmax(logits, (77, 65), return_confidence=True)
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


@pytest.mark.parametrize("make", [smooth_logits, noise_logits])
def test_argmax_never_holds_the_scores(make, code_path):
    logits = make(30, 64, 64, batch=1)
    with LargestTensor() as largest:
        upsample_argmax(logits, (256, 256), return_confidence=True)
    assert largest.numel < 30 * 256 * 256 / 10


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
    labels, confidence = plain_upsample_argmax(logits, (37, 50))
    assert torch.equal(labels, expected)


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


# ---------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SIZES)
def test_loss_and_gradient_equal_autograd(shape, layout, code_path):
    classes, height, width, *size = shape
    logits = noise_logits(classes, height, width).double().contiguous(memory_format=layout).requires_grad_()
    labels = random_labels(2, classes, *size)
    expected = plain_loss(logits, labels)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = upsample_cross_entropy(logits, labels)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.grad, expected_gradient, rtol=0, atol=1e-10 * expected_gradient.abs().max())
    with torch.no_grad():
        torch.testing.assert_close(upsample_cross_entropy(logits, labels), loss, rtol=1e-12, atol=0)


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
        loss = upsample_cross_entropy(logits, labels)
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
    total, count = upsample_cross_entropy_sum(logits, labels, ignore_index, class_weights=weights)
    assert count.dtype == torch.int64
    assert count.item() == (labels != ignore_index).sum().item()
    torch.testing.assert_close(total, expected)
    for mine, plain in zip(torch.autograd.grad(total, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(mine, plain)
    plain, plain_count = plain_upsample_cross_entropy_sum(logits, labels, ignore_index, class_weights=weights)
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
    loss = upsample_cross_entropy(logits, labels)
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
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(upsample_cross_entropy(logits, labels), logits, create_graph=True)
    assert not upsample_cross_entropy(logits.detach(), labels).requires_grad


@pytest.mark.parametrize("classes", [6, 40])
def test_loss_never_holds_the_scores(classes, code_path):
    logits = noise_logits(classes, 64, 64, batch=1).requires_grad_()
    labels = random_labels(1, classes, 256, 256)
    with LargestTensor() as largest:
        upsample_cross_entropy(logits, labels).backward()
    assert logits.grad is not None
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
