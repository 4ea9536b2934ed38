# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exact pixel operations on low-resolution logits that never hold the (K, H, W) score tensor.

Both see the pixels of a full-size image through bilinear upsampling of the logits, in bands of rows that fit a cache:

- `upsample_argmax`: the label map, optionally with the winner's softmax probability;
- `upsample_cross_entropy`: the training loss, with its gradient formed in the same pass.

Shapes: B images, K classes, (h, w) points of the logits, (H, W) pixels; points and cells as in `bilinear_segformer`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from .bilinear_segformer import (
    BilinearAxis,
    Slab,
    bands,
    bands_backward,
    bilinear_axis,
    compute_dtype,
    finite_scores,
    image_slabs,
    must_trace,
    on_cpu,
    widen,
    widen_backward,
)
from .kernel_choice_segformer import choose
from .pruned_labels_segformer import label_where_it_pays

# An image with no more scores than this is labelled by the plain expression. Up to about 32 MiB the memory is at hand
# (see `onednn_segformer`), and one pass over each score costs less than many small calls.
_FEW_SCORES = (1 << 23) - (1 << 15)
# Scores of a slab that differ by no more than this many nats have exponentials that float32 can add up.
_LARGEST_RANGE = 150.0


# ---------------------------------------------------------------------------------------------------------- label maps


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], return_confidence: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Label map of bilinearly upsampled logits, without the upsampled scores.

    Equal to `F.interpolate(logits, size, mode="bilinear").argmax(1)` up to the rounding of ties; with one class, to
    `sigmoid(score) > 0.5`. Half-precision logits are interpolated in float32. A NaN counts as the lowest score, an
    infinity as a very large finite one. No gradient flows.

    On a CPU, a cell whose four points agree gets their label without a score being computed (bilinear interpolation is
    a convex combination); in other cells only classes that somewhere reach the best class's smallest corner compete;
    where that would not pay, the rows are scored in bands. Images of up to 32 MiB of scores take the plain expression,
    which is also what is traced while compiling or exporting.

    Args:
        logits: (B, K, h, w) scores of any floating-point type and memory format.
        size: (H, W) of the label map in pixels; larger than, equal to or smaller than (h, w).
        return_confidence: Also return the softmax (one class: sigmoid) probability of each pixel's label. This needs
            every class at every pixel and takes correspondingly longer.

    Returns:
        (B, H, W) int64 labels in [0, K), or in {0, 1} for one class; with `return_confidence` a tuple of these and
        (B, H, W) float32 probabilities.

    Raises:
        ValueError: If `logits` is not a floating-point (B, K, h, w) tensor or `size` not two positive numbers.
    """
    _check_logits(logits)
    if not _is_size(size):
        raise ValueError(f"size must be two positive numbers (height, width), got {size!r:.99}")
    logits, (height, width) = logits.detach(), size
    if must_trace(logits):
        labels, confidence = plain_upsample_argmax(logits, (height, width))
        return (labels, confidence) if return_confidence else labels
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        labels, confidence = choose("upsample_argmax", _label, logits, (height, width), return_confidence)
    return (labels, confidence) if return_confidence else labels


def _label(logits: Tensor, size: tuple[int, int], return_confidence: bool) -> tuple[Tensor, Tensor | None]:
    """Labels and, if wanted, confidences, by PyTorch's operations."""
    labels = torch.empty(len(logits), *size, dtype=torch.long, device=logits.device)
    if on_cpu(logits) and logits.shape[1] * labels[:1].numel() <= _FEW_SCORES:
        confidence = torch.empty(labels.shape) if return_confidence else None
        for image in range(len(logits)):
            part = slice(image, image + 1)
            _label_plainly(logits[part], labels[part], None if confidence is None else confidence[part])
        return labels, confidence
    rows = bilinear_axis(logits.shape[2], size[0], logits)
    _label_in_slabs(logits, rows, labels)
    return labels, _confidence(logits, rows, labels) if return_confidence else None


def plain_upsample_argmax(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Labels and confidences of `upsample_argmax` as the plain, traceable expression, which holds all scores.

    Args:
        logits: (B, K, h, w) scores.
        size: (H, W) of the label map in pixels.

    Returns:
        (B, H, W) int64 labels and (B, H, W) float32 probabilities of these labels.
    """
    scores = F.interpolate(finite_scores(logits), size=size, mode="bilinear", align_corners=False)
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).long(), scores[:, 0].abs().sigmoid().float()
    return scores.argmax(1), scores.log_softmax(1).amax(1).exp().float()


def _label_in_slabs(logits: Tensor, rows: BilinearAxis, labels: Tensor) -> None:
    """Fill the labels (B, H, W): where it pays by looking for candidates, elsewhere by scoring every class."""
    # With fewer classes, scoring them all is as cheap as looking for candidates.
    if not on_cpu(logits) or logits.shape[1] < 4:
        _label_bands(logits, rows, labels)
        return
    for image, slab in label_where_it_pays(logits, rows, labels):
        part = slice(image, image + 1)
        _label_bands(logits[part], rows, labels[part], slab.cells)


def _label_plainly(logits: Tensor, labels: Tensor, confidence: Tensor | None) -> None:
    """Fill the labels and confidences (1, H, W) of an image whose scores are so few that holding them does no harm."""
    # With many classes interpolation and argmax are several times faster where these are innermost.
    has_few_classes = logits.shape[1] < 16
    layout = torch.contiguous_format if has_few_classes else torch.channels_last
    scores = finite_scores(logits).contiguous(memory_format=layout)
    scores = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    if scores.shape[1] == 1:
        labels.copy_(scores[:, 0] > 0)
        if confidence is not None:
            confidence.copy_(scores[:, 0].abs_().sigmoid_())
        return
    if has_few_classes:
        best, _ = torch.max(scores, 1, out=(scores.new_empty(labels.shape), labels))
    else:
        torch.argmax(scores, 1, out=labels)
        best = scores.gather(1, labels[:, None])[:, 0]
    if confidence is not None:
        confidence.copy_(scores.sub_(best[:, None]).exp_().sum(1).reciprocal_())


def _label_bands(logits: Tensor, rows: BilinearAxis, labels: Tensor, cells: slice = slice(None)) -> None:
    """Fill the labels (B, H, W) of the given rows of cells by interpolating every score."""
    ranks = torch.arange(logits.shape[1], 0, -1, dtype=compute_dtype(logits), device=logits.device)[:, None, None]
    for images, slab in image_slabs(logits, rows, labels.shape[2], cells):
        wide = widen(finite_scores(logits[images, :, slab.points]), labels.shape[2])
        for band, scores in bands(wide, rows, slab):
            if len(ranks) == 1:
                labels[images, band] = scores[:, 0] > 0
            elif on_cpu(scores):
                # Index of the first largest. The CPU's argmax over a strided dimension is several times slower than
                # these four passes, each of which vectorises.
                winners = scores.eq_(scores.amax(1, keepdim=True)).mul_(ranks)
                labels[images, band] = len(ranks) - winners.amax(1)
            else:
                labels[images, band] = scores.argmax(1)


def _confidence(logits: Tensor, rows: BilinearAxis, labels: Tensor) -> Tensor:
    """Probability (B, H, W) of the given labels."""
    confidence = torch.empty(labels.shape, device=labels.device)
    for images, slab in image_slabs(logits, rows, labels.shape[2]):
        points, wanted, part = finite_scores(logits[images, :, slab.points]), labels[images, slab.pixels], slab.pixels
        powers = _as_powers_of_two(points)
        if powers is not None:
            _shares(powers, rows, slab, wanted, confidence[images, part])
            continue
        wide = widen(points, labels.shape[2], _softmax_layout(logits))
        confidence[images, part] = _losses(wide, rows, slab, wanted).neg_().exp_()
    return confidence


def _as_powers_of_two(points: Tensor) -> Tensor | None:
    """The points' binary logarithms, shifted to lie around zero; None where their powers could leave the range.

    Interpolation and softmax do not mind the shift, and a CPU's `exp2` takes a third of the time of its `exp`.
    """
    if not on_cpu(points) or points.shape[1] == 1:
        return None
    smallest, largest = (float(bound) for bound in points.aminmax())
    if largest - smallest > _LARGEST_RANGE:
        return None
    return (points - (largest + smallest) / 2).mul_(1 / log(2))


def _shares(powers: Tensor, rows: BilinearAxis, slab: Slab, labels: Tensor, out: Tensor) -> None:
    """Fill `out` (B, R, W) with the share of the labels (B, R, W) in the sum of all classes' powers of two."""
    wide = widen(powers, labels.shape[2], torch.channels_last)
    for band, scores in bands(wide, rows, slab):
        part = slice(band.start - slab.pixels.start, band.stop - slab.pixels.start)
        scores = scores.exp2_().permute(0, 2, 3, 1)  # (B, R, W, K), contiguous
        chosen = scores.gather(3, labels[:, part, :, None])
        torch.div(chosen[..., 0], scores.sum(3), out=out[:, part])


# ---------------------------------------------------------------------------------------------------------------- loss


def upsample_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255, average: str = "valid") -> Tensor:
    """Mean softmax cross-entropy of bilinearly upsampled logits, without the upsampled scores.

    Equal in value and gradient to `F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels)`,
    except that a batch without a valid pixel gives zero with zero gradients. With one class, the binary cross-entropy
    of the upsampled scores.

    Args:
        logits: (B, K, h, w) scores of any floating-point type; computed in float32 (float64 for float64).
        labels: (B, H, W) integer labels in [0, K), for one class integers or floats in [0, 1] (a soft mask), or
            `ignore_index`.
        ignore_index: Label of pixels that carry no loss. For one class, negative labels are ignored too.
        average: "valid" divides by the number of valid pixels, as `transformers` does; "all" by the number of pixels,
            as the original SegFormer code and mmsegmentation do.

    Returns:
        Scalar loss, float32 (float64 for float64 logits).

    Raises:
        ValueError: If `average` is unknown, the shapes do not fit, or (on a CPU) a label is out of range.
    """
    if average not in ("valid", "all"):
        raise ValueError(f'average must be "valid" or "all", got {average!r}')
    total, count = upsample_cross_entropy_sum(logits, labels, ignore_index)
    return total / (count.clamp(min=1) if average == "valid" else max(labels.numel(), 1))


def upsample_cross_entropy_sum(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the softmax cross-entropy of bilinearly upsampled logits over the valid pixels, and their number.

    Sums and numbers can be added over ranks and micro-batches before the division. The gradient with respect to the
    logits is formed together with the loss, band by band, and kept at the logits' size; it cannot be differentiated
    again. While compiling or exporting, the plain expression is traced.

    Args:
        logits: (B, K, h, w) scores of any floating-point type; computed in float32 (float64 for float64).
        labels: (B, H, W) integer labels in [0, K), for one class integers or floats in [0, 1] (a soft mask), or
            `ignore_index`.
        ignore_index: Label of pixels that carry no loss. For one class, negative labels are ignored too.
        class_weights: Optional (K,) factor of the loss of each class's pixels (one class: (2,), for labels 0 and 1; in
            between, the factor in between). It does not change the count.

    Returns:
        Scalar sum of the losses, float32 (float64 for float64 logits), and scalar int64 number of valid pixels.

    Raises:
        ValueError: If the shapes do not fit, or (on a CPU, where looking is cheap) a label is out of range.
    """
    _check_logits(logits)
    _check_loss_arguments(logits, labels, ignore_index, class_weights)
    if labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(
            f"labels must be integers of shape (batch, height, width) for logits of shape {tuple(logits.shape)}, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    check_label_dtype(labels, logits.shape[1])
    labels = labels if labels.is_floating_point() else labels.long()
    if must_trace(logits):
        return plain_upsample_cross_entropy_sum(logits, labels, ignore_index, class_weights)
    if on_cpu(labels):
        check_labels(labels, logits.shape[1], ignore_index)
    count = _valid(labels, logits.shape[1], ignore_index).sum()
    if torch.is_grad_enabled() and logits.requires_grad:
        return _UpsampleCrossEntropy.apply(logits, labels, ignore_index, class_weights), count
    return _loss_and_gradient(logits.detach(), labels, ignore_index, class_weights, False)[0], count


def plain_upsample_cross_entropy_sum(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`upsample_cross_entropy_sum` as the plain, traceable expression, which holds all scores and their gradient.

    Args:
        logits: (B, K, h, w) scores.
        labels: (B, H, W) int64 labels, for one class floats too.
        ignore_index: Label of pixels that carry no loss.
        class_weights: Optional (K,) factors, (2,) for one class.

    Returns:
        Scalar sum of the losses and scalar int64 number of valid pixels.
    """
    scores = logits.to(compute_dtype(logits))
    scores = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    target, weights, valid = _target_and_weights(labels, logits, ignore_index, class_weights)
    if logits.shape[1] == 1:
        losses = F.binary_cross_entropy_with_logits(scores[:, 0], target.to(scores.dtype), reduction="none")
    else:
        losses = F.cross_entropy(scores, target, reduction="none")
    return (losses * weights).sum(), valid.sum()


class _UpsampleCrossEntropy(torch.autograd.Function):
    """`_cross_entropy` whose gradient is computed in the forward pass, while a band's softmax is at hand."""

    @staticmethod
    def forward(ctx, logits, labels, ignore_index, class_weights):
        # In float32 even for half-precision logits: the gradient of a sum over pixels is scaled down only afterwards.
        total, gradient = _loss_and_gradient(logits, labels, ignore_index, class_weights, True)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    def backward(ctx, grad_output):
        # Gradients are recorded only when the backward pass itself shall be differentiated.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "upsample_cross_entropy has no second derivative; plain_upsample_cross_entropy_sum has one"
            )
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_output).to(ctx.dtype), None, None, None


def _loss_and_gradient(logits: Tensor, *arguments) -> tuple[Tensor, Tensor | None]:
    """`_cross_entropy`, by a kernel where there is one for it."""
    with torch.autocast(logits.device.type, enabled=False):
        if logits.shape[1] == 1:
            return _cross_entropy(logits, *arguments)
        return choose("upsample_cross_entropy", _cross_entropy, logits, *arguments, by_time=False)


def _cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses and, if wanted, its gradient with respect to the logits, by PyTorch's operations."""
    dtype, width = compute_dtype(logits), labels.shape[2]
    total = torch.zeros((), dtype=dtype, device=logits.device)
    gradient = torch.zeros_like(logits, dtype=dtype) if wants_gradient else None
    rows, columns = (
        bilinear_axis(logits.shape[2], labels.shape[1], logits),
        bilinear_axis(logits.shape[3], width, logits),
    )
    for images, slab in image_slabs(logits, rows, width):
        target, weights, _ = _target_and_weights(labels[images, slab.pixels], logits, ignore_index, class_weights)
        wide = widen(logits[images, :, slab.points].to(dtype), width, _softmax_layout(logits))
        if gradient is None:
            losses = _losses(wide, rows, slab, target)
        else:
            losses, wide_gradient = _losses_and_gradient(wide, rows, slab, target, weights)
            gradient[images, :, slab.points] += widen_backward(wide_gradient, columns)
        total += (losses * weights).sum()
    return total, gradient


def _losses(wide: Tensor, rows: BilinearAxis, slab: Slab, target: Tensor) -> Tensor:
    """Losses (B, R, W) of a slab's R rows of pixels at the given target (B, R, W)."""
    losses = torch.empty_like(target, dtype=wide.dtype)
    for band, scores in bands(wide, rows, slab):
        part = slice(band.start - slab.pixels.start, band.stop - slab.pixels.start)
        wanted = target[:, None, part]
        if scores.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(scores, wanted.to(scores.dtype), reduction="none")
        else:
            loss = -_over_classes(torch.log_softmax, scores).gather(1, wanted)
        losses[:, part] = loss[:, 0]
    return losses


def _losses_and_gradient(
    wide: Tensor, rows: BilinearAxis, slab: Slab, target: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`_losses`, and the gradient of their weighted sum with respect to `wide`."""
    wide_gradient, chosen = torch.zeros_like(wide), torch.empty_like(target, dtype=wide.dtype)
    for band, scores in bands(wide, rows, slab):
        part = slice(band.start - slab.pixels.start, band.stop - slab.pixels.start)
        wanted = target[:, None, part]
        if scores.shape[1] == 1:
            gradient = scores.sigmoid().sub_(wanted)
        else:
            gradient = _over_classes(torch.softmax, scores)
            probability = gradient.gather(1, wanted)
            chosen[:, part] = probability[:, 0]
            gradient.scatter_(1, wanted, probability - 1)
        gradient *= weights[:, None, part]
        bands_backward(wide_gradient, gradient, rows, slab, band)
    # A probability that has underflowed has lost its logarithm. (To look, another device would have to be waited for.)
    if wide.shape[1] == 1 or not on_cpu(wide) or float(chosen.min()) < torch.finfo(wide.dtype).tiny:
        return _losses(wide, rows, slab, target), wide_gradient
    return chosen.log_().neg_(), wide_gradient


def _softmax_layout(logits: Tensor) -> torch.memory_format:
    # The CPU's softmax wants many classes innermost, few outermost.
    return torch.channels_last if on_cpu(logits) and logits.shape[1] >= 32 else torch.contiguous_format


def _over_classes(function: Callable[..., Tensor], scores: Tensor) -> Tensor:
    """Apply softmax or log_softmax along dimension 1 in the scores' own layout (they would copy to contiguous)."""
    if scores.is_contiguous():
        return function(scores, 1)
    return function(scores.permute(0, 2, 3, 1), 3).permute(0, 3, 1, 2)


def _valid(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    valid = labels != ignore_index
    return valid & (labels >= 0) if classes == 1 else valid


def _target_and_weights(
    labels: Tensor, logits: Tensor, ignore_index: int, class_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels with zeros where they are ignored, the factor of each pixel's loss, and whether it counts."""
    valid = _valid(labels, logits.shape[1], ignore_index)
    target, weights = labels * valid, valid.to(compute_dtype(logits))
    return target, weights if class_weights is None else weights * weight_of(target, class_weights.to(weights)), valid


def weight_of(target: Tensor, class_weights: Tensor) -> Tensor:
    """Weight of each pixel's class; that of a soft label lies between those of 0 and 1.

    Args:
        target: Labels of any shape, none of them ignored.
        class_weights: (K,), or (2,) for soft labels.
    """
    if target.is_floating_point():
        return torch.lerp(*class_weights, target.to(class_weights))
    return class_weights[target]


def check_label_dtype(labels: Tensor, classes: int) -> None:
    """Check that labels are integers, or belong to one logit.

    Raises:
        ValueError: Soft masks for several classes.
    """
    if labels.is_floating_point() and classes > 1:
        raise ValueError(
            f"labels must be of an integer dtype for logits of {classes} classes, each a class index (float masks are "
            f"labels for a model with num_labels=1), got {labels.dtype} of shape {tuple(labels.shape)}"
        )


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Check that labels are in range.

    Raises:
        ValueError: A label is no class and is not ignored.
    """
    last = max(classes - 1, 1)
    if not labels.numel() or (bool(labels.max() <= last) and bool(labels.min() >= 0)):
        return
    wrong = ~((labels >= 0) & (labels <= last)) & (labels != ignore_index)  # a NaN is neither
    if classes == 1:
        wrong &= ~(labels < 0)
    if wrong.any():
        raise ValueError(
            f"labels must lie in [0, {last}] (the logits have {classes} class{'es' * (classes > 1)}) or equal "
            f"ignore_index {ignore_index}, got {labels[wrong][0].item()}"
        )


def _check_logits(logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(
            "logits must be a floating-point tensor of shape (batch, classes, height, width), got "
            f"{_described(logits)}"
        )
    if not must_trace(logits) and 0 in logits.shape[1:]:
        raise ValueError(f"logits must have at least one class and one point, got {_described(logits)}")


def _check_loss_arguments(logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> None:
    if not isinstance(labels, Tensor) or labels.is_complex():
        raise ValueError(f"labels must be a tensor of integers (batch, height, width), got {_described(labels)}")
    if not must_trace(logits) and 0 in labels.shape[1:]:
        raise ValueError(f"labels must have at least one pixel, got {_described(labels)}")
    if not isinstance(ignore_index, int):
        raise ValueError(f"ignore_index must be a whole number, got {ignore_index!r:.99}")
    weights = max(logits.shape[1], 2)
    if class_weights is not None and getattr(class_weights, "shape", None) != (weights,):
        raise ValueError(f"class_weights must be a tensor of shape ({weights},), got {_described(class_weights)}")


def _is_size(size: object) -> bool:
    try:
        return (
            len(size) == 2
            and min(size) >= 1
            and max(size) < 2**31
            and not any(isinstance(side, float) for side in size)
        )
    except TypeError:
        return False


def _described(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.99}"
