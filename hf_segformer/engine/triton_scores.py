# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for a GPU that see full-size pixels through bilinear upsampling of the logits.

- `upsample_argmax`: label map and confidence of upsampled logits;
- `upsample_cross_entropy`: loss of upsampled logits and its gradient.

They take the arguments of the plain functions in whose place `kernel_choice` calls them; it decides when.
Arithmetic is in float32. No kernel uses atomics, so each gives the same bits every time.

Shapes: B images, K classes, (h, w) points of the logits, (H, W) pixels.

Block sizes are fixed, so that nothing is tuned at run time: a warp's loads and stores lie side by side, and what a
thread holds fits the registers with room to spare.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..scores.bilinear import finite_scores

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:
    triton = tl = None

    def jit(function):
        return function


# Pixels of a row, one a thread, in the kernels that look at every class.
_PIXELS = 128
# Points of a row in the gradient's kernel: one warp, so that its four warps take different classes.
_POINTS = 32


# --------------------------------------------------------------------------------------------- bilinear interpolation


@jit
def interpolate(pixel, scale, points):
    """Points before and after each pixel, and the share of the latter, as `F.interpolate` computes them."""
    position = tl.maximum((pixel + 0.5) * scale - 0.5, 0.0)
    lower = tl.minimum(position.to(tl.int32), points - 1)
    return lower, tl.minimum(lower + 1, points - 1), position - lower


@jit
def lerp(first, second, share):
    return (1 - share) * first + share * second


@jit
def block_of_row(width, BLOCK: tl.constexpr):
    """Columns of a program, and the index of what it takes besides: the first axis of the grid counts both."""
    blocks = (width + BLOCK - 1) // BLOCK
    return (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK), tl.program_id(0) // blocks


@jit
def _pixels(scores, classes, h, w, y_scale, x_scale, BLOCK: tl.constexpr):
    """Columns, row and image of a program's pixels, the scores of its first class, and `_score`'s other arguments."""
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    above, below, v = interpolate(y, y_scale, h)
    left, right, u = interpolate(x, x_scale, w)
    return x, y, image, scores + image * classes * h * w, above * w, below * w, left, right, v, u


@jit
def _score(plane, above, below, left, right, v, u):
    """Interpolated scores of one class at a row of pixels."""
    above, below = plane + above, plane + below
    upper = lerp(tl.load(above + left), tl.load(above + right), u)
    return lerp(upper, lerp(tl.load(below + left), tl.load(below + right), u), v)


@jit
def _add_exponential(total, best, score):
    """Sum of exp(score - best) with one more score, which may be a new best.

    One of the two terms is 1; the other is the exponential of minus their distance, so that none overflows.
    """
    ratio = tl.exp(-tl.abs(score - best))
    return tl.where(score > best, total * ratio + 1, total + ratio)


# ---------------------------------------------------------------------------------------------------------- label maps


def upsample_argmax(logits: Tensor, size: tuple[int, int], return_confidence: bool) -> tuple[Tensor, Tensor | None]:
    """Labels and, if wanted, confidences of `scores.label_map.upsample_argmax`.

    Args:
        logits: (B, K, h, w) of any memory format.
        size: (H, W).
        return_confidence: Whether to compute the confidences.

    Returns:
        (B, H, W) int64 labels, and (B, H, W) float32 confidences or None.
    """
    # In this layout a warp's loads of a class lie side by side; the copy has a fraction of the pixels' scores.
    scores, (height, width) = finite_scores(logits).contiguous(), size
    batch, classes, h, w = scores.shape
    labels = torch.empty((batch, height, width), dtype=torch.long, device=logits.device)
    confidence = torch.empty(labels.shape, device=logits.device) if return_confidence else None
    _upsample_argmax_kernel[(-(-width // _PIXELS), height, batch)](
        *(scores, labels, confidence if return_confidence else scores),
        *(classes, h, w, height, width, h / height, w / width),
        ONE_CLASS=classes == 1,
        HAS_CONFIDENCE=return_confidence,
        BLOCK=_PIXELS,
    )
    return labels, confidence


@jit
def _upsample_argmax_kernel(
    scores,
    labels,
    confidence,
    classes,
    h,
    w,
    height,
    width,
    y_scale,
    x_scale,
    ONE_CLASS: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    x, y, image, plane, above, below, left, right, v, u = _pixels(scores, classes, h, w, y_scale, x_scale, BLOCK)
    best = _score(plane, above, below, left, right, v, u)
    label = tl.full((BLOCK,), 0, tl.int64)
    total = tl.full((BLOCK,), 1, tl.float32)
    if ONE_CLASS:
        label = (best > 0).to(tl.int64)
        total = 1 + tl.exp(-tl.abs(best))
    else:
        for index in range(1, classes):
            plane += h * w
            score = _score(plane, above, below, left, right, v, u)
            better = score > best  # of equals the first stays
            if HAS_CONFIDENCE:
                total = _add_exponential(total, best, score)
            label = tl.where(better, index, label)
            best = tl.where(better, score, best)
    offset = (image * height + y) * width + x
    tl.store(labels + offset, label, mask=x < width)
    if HAS_CONFIDENCE:
        tl.store(confidence + offset, 1 / total, mask=x < width)


# ---------------------------------------------------------------------------------------------------------------- loss


def upsample_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses of `scores.cross_entropy.upsample_cross_entropy_sum`, and its gradient.

    A label out of range makes the loss NaN.

    Args:
        logits: (B, K, h, w) of any memory format, two classes or more, not float64.
        labels: (B, H, W) int64.
        ignore_index: Label of pixels without loss.
        class_weights: (K,) or None.
        wants_gradient: Whether to compute the gradient.

    Returns:
        Scalar float32 loss, and (B, K, h, w) float32 gradient or None.
    """
    scores, labels = logits.detach().float().contiguous(), labels.contiguous()
    batch, classes, h, w = scores.shape
    height, width = labels.shape[1:]
    losses, normalizers = torch.empty((2, *labels.shape), device=logits.device)
    weights = scores if class_weights is None else class_weights.detach().to(scores).contiguous()
    geometry = (classes, h, w, height, width, h / height, w / width)
    _upsample_cross_entropy_kernel[(-(-width // _PIXELS), height, batch)](
        *(scores, labels, weights, losses, normalizers, ignore_index, *geometry),
        HAS_WEIGHTS=class_weights is not None,
        BLOCK=_PIXELS,
    )
    total = losses.sum()
    if not wants_gradient:
        return total, None
    gradient = torch.empty_like(scores)
    # Few classes would leave a larger block's threads without work; many share the loads of labels and normalizers.
    block = 16 if classes > 64 else 4
    _cross_entropy_gradient_kernel[(-(-w // _POINTS) * -(-classes // block), h, batch)](
        *(scores, labels, weights, normalizers, gradient, ignore_index, *geometry),
        *(height / h, width / w, *_support(height, width, h, w)),
        HAS_WEIGHTS=class_weights is not None,
        BLOCK_K=block,
        BLOCK_X=_POINTS,
    )
    return total, gradient


def _support(height: int, width: int, h: int, w: int) -> Sequence[int]:
    """Rows and columns of pixels to visit for each point: those nearer than one point, and one more at either end."""
    return -(-2 * height // h) + 2, -(-2 * width // w) + 2


@jit
def _upsample_cross_entropy_kernel(
    scores,
    labels,
    weights,
    losses,
    normalizers,
    ignore_index,
    classes,
    h,
    w,
    height,
    width,
    y_scale,
    x_scale,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    x, y, image, plane, above, below, left, right, v, u = _pixels(scores, classes, h, w, y_scale, x_scale, BLOCK)
    is_pixel = x < width
    offset = (image * height + y) * width + x
    label = tl.load(labels + offset, mask=is_pixel, other=0)
    best = _score(plane, above, below, left, right, v, u)
    total = tl.full((BLOCK,), 1, tl.float32)
    # What a label out of range leaves: an error that shows, where an address out of range might not.
    wanted = tl.where(label == 0, best, float("nan"))
    for index in range(1, classes):
        plane += h * w
        score = _score(plane, above, below, left, right, v, u)
        wanted = tl.where(label == index, score, wanted)
        total = _add_exponential(total, best, score)
        best = tl.where(score > best, score, best)
    normalizer = best + tl.log(total)
    loss = normalizer - wanted
    if HAS_WEIGHTS:
        loss *= tl.load(weights + label, mask=is_pixel & (label >= 0) & (label < classes), other=0)
    loss = tl.where(label == ignore_index, 0.0, loss)
    tl.store(losses + offset, loss, mask=is_pixel)
    tl.store(normalizers + offset, normalizer, mask=is_pixel)


@jit
def _neighbours(row, x, w, mask):
    """Values of a row at the points before x, at x and after it."""
    before = tl.load(row + tl.maximum(x - 1, 0)[None, :], mask=mask, other=0)
    after = tl.load(row + tl.minimum(x + 1, w - 1)[None, :], mask=mask, other=0)
    return before, tl.load(row + x[None, :], mask=mask, other=0), after


@jit
def _share_of(pixel, point, scale, points):
    """Whether a point is the one before a pixel, the share of the one after, and the point's own share or 0."""
    lower, upper, share = interpolate(pixel, scale, points)
    own = tl.where(lower == point, 1 - share, 0.0) + tl.where(upper == point, share, 0.0)
    return lower == point, share, own


@jit
def _between(comes_first, share, before, here, after):
    """Interpolation between a point and the one after or, for pixels before it, the one before."""
    return lerp(tl.where(comes_first, here, before), tl.where(comes_first, after, here), share)


@jit
def _cross_entropy_gradient_kernel(
    scores,
    labels,
    weights,
    normalizers,
    gradient,
    ignore_index,
    classes,
    h,
    w,
    height,
    width,
    y_scale,
    x_scale,
    y_pixels,
    x_pixels,
    y_support,
    x_support,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Each program owns some points of a row, for some classes, and gathers what the pixels around them give."""
    x, group = block_of_row(w, BLOCK_X)
    index = (group * BLOCK_K + tl.arange(0, BLOCK_K))[:, None]
    y, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    mask, plane = (index < classes) & (x < w)[None, :], (image * classes + index) * h * w
    a_before, a_here, a_after = _neighbours(scores + plane + tl.maximum(y - 1, 0) * w, x, w, mask)
    b_before, b_here, b_after = _neighbours(scores + plane + y * w, x, w, mask)
    c_before, c_here, c_after = _neighbours(scores + plane + tl.minimum(y + 1, h - 1) * w, x, w, mask)
    # First pixel that may lie nearer than one point. If rounding makes it one too early, its weight below is 0.
    first_y = tl.floor((y - 0.5) * y_pixels - 0.5).to(tl.int32)
    first_x = tl.floor((x - 0.5) * x_pixels - 0.5).to(tl.int32)
    total = tl.full((BLOCK_K, BLOCK_X), 0, tl.float32)
    for pixel_y in range(tl.maximum(first_y, 0), tl.minimum(first_y + y_support, height)):
        comes_first, v, y_weight = _share_of(pixel_y, y, y_scale, h)
        before = _between(comes_first, v, a_before, b_before, c_before)
        here = _between(comes_first, v, a_here, b_here, c_here)
        after = _between(comes_first, v, a_after, b_after, c_after)
        for step in range(x_support):
            pixel_x = first_x + step
            comes_first_x, u, weight = _share_of(pixel_x, x, x_scale, w)
            weight = tl.where((pixel_x >= 0) & (pixel_x < width), weight * y_weight, 0.0)
            counts, offset = weight > 0, (image * height + pixel_y) * width + pixel_x
            label = tl.load(labels + offset, mask=counts, other=0)
            # Where the weight is 0 the score is not the pixel's: infinity makes its probability 0 as well.
            normalizer = tl.load(normalizers + offset, mask=counts, other=float("inf"))
            if HAS_WEIGHTS:
                weight *= tl.load(weights + label, mask=counts & (label >= 0) & (label < classes), other=0)
            weight = tl.where(label == ignore_index, 0.0, weight)
            score = _between(comes_first_x[None, :], u[None, :], before, here, after)
            wanted = tl.where(label[None, :] == index, 1.0, 0.0)
            total += weight[None, :] * (tl.exp(score - normalizer[None, :]) - wanted)
    tl.store(gradient + plane + y * w + x[None, :], total, mask=mask)
