# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exact pixel operations on low-resolution logits that never hold the (K, H, W) score tensor.

Both operations see the pixels of a full-size image through bilinear upsampling (`align_corners=False`) of the logits, as
`F.interpolate` defines it, and visit them in bands of rows that fit the processor's cache:

- `upsample_argmax`: the label map, optionally with the winner's softmax probability;
- `upsample_cross_entropy`: the training loss, with its gradient formed in the same pass.

Shapes: B images, K classes, h x w points of the logits, H x W pixels. Pixels lie between points; the pixels between four
neighbouring points form a cell. Rows of cells are counted from 0 (above the first row of points) to h (below the last).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of the working buffers on a CPU, found by timing: a band of scores stays in the second-level caches of two
# cores. No buffer holds more than this share of all scores, however small the image.
_BAND_ELEMENTS = 1 << 18
_SLAB_ELEMENTS = 1 << 20
_LARGEST_SHARE = 1 / 50
# Rows of cells whose labels are decided together.
_PRUNED_ROWS = 32
# A device with dear launches takes few large bands instead: an image's rows in this many parts.
_DEVICE_BANDS = 16


# ----------------------------------------------------------------------------------------------- geometry of upsampling


class _Axis(NamedTuple):
    """Bilinear geometry of one axis: which points each pixel lies between, and which pixels each cell holds."""

    lower: Tensor  # (pixels,) index of the point at or before each pixel
    upper: Tensor  # (pixels,) index of the point after it
    weight: Tensor  # (pixels,) share of the upper point
    taps: list[tuple[int, int, float]]  # (pixels,) the same three as numbers
    starts: list[int]  # (points + 2,) first pixel of each cell, then the number of pixels
    filled: Tensor  # (points + 1,) whether the cell holds a pixel at all
    members: Tensor  # (patch, points + 1) pixels of each cell, the last one repeated where a cell holds fewer
    member_weight: Tensor  # (patch, points + 1) `weight` of those pixels


def _axis(points: int, pixels: int, dtype: torch.dtype, device: torch.device) -> _Axis:
    # The arithmetic and precision of F.interpolate, so that the weights agree with its own.
    position = (torch.arange(pixels, dtype=dtype, device=device) + 0.5) * (points / pixels) - 0.5
    below = position.floor().clamp_(-1, points - 1)
    weight = torch.where((below < 0) | (below >= points - 1), 0, position - below)
    cell = below.long() + 1
    starts = torch.searchsorted(cell, torch.arange(points + 2, device=device))
    counts = starts.diff()
    offsets = torch.arange(int(counts.max()), device=device)[:, None]
    members = torch.minimum(starts[:-1] + offsets, (starts[1:] - 1).clamp_(min=0))
    lower, upper = (cell - 1).clamp_(min=0), cell.clamp(max=points - 1)
    taps = list(zip(lower.tolist(), upper.tolist(), weight.tolist(), strict=True))
    return _Axis(lower, upper, weight, taps, starts.tolist(), counts > 0, members, weight[members])


class _Slab(NamedTuple):
    """Neighbouring rows of cells, their rows of pixels, and the rows of points around them (half-open ranges)."""

    cells: tuple[int, int]
    pixels: tuple[int, int]
    points: tuple[int, int]


def _slabs(rows: _Axis, height: int, first: int = 0, last: int | None = None) -> Iterator[_Slab]:
    points = len(rows.starts) - 2
    last = points + 1 if last is None else last
    for start in range(first, last, height):
        stop = min(start + height, last)
        pixels = (rows.starts[start], rows.starts[stop])
        if pixels[0] < pixels[1]:
            yield _Slab((start, stop), pixels, (max(start - 1, 0), min(stop, points)))


def _slab_height(rows: _Axis, classes: int, width: int, device: torch.device) -> int:
    if device.type != "cpu":
        return -(-len(rows.starts) // _DEVICE_BANDS)
    row = classes * width
    return min(max(_elements(_SLAB_ELEMENTS, row * len(rows.taps)) // row, 4), 32)


def _elements(most: int, scores: int) -> int:
    return int(min(most, scores * _LARGEST_SHARE))


def _widen(points: Tensor, width: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Interpolate along the columns only: (B, K, n, w) to (B, K, n, W)."""
    # On a CPU the channels-last kernel is several times faster than the contiguous one, even with the copies around it.
    if points.is_cpu:
        points = points.contiguous(memory_format=torch.channels_last)
    wide = F.interpolate(points, size=(points.shape[2], width), mode="bilinear", align_corners=False)
    if layout == torch.channels_last or len(wide) > 1:
        return wide.contiguous(memory_format=layout)
    # Written as the transposition of a matrix, for which copying has a fast path.
    matrix = wide[0].permute(1, 2, 0).flatten(0, 1)
    return matrix.t().contiguous().view(wide.shape)


def _widen_backward(gradient: Tensor, width: int) -> Tensor:
    """Transpose of `_widen`: (B, K, n, W) to (B, K, n, w)."""
    batch, classes, height, wide = gradient.shape
    if gradient.is_cpu and batch == 1 and gradient.is_contiguous():
        matrix = gradient.view(classes, -1).t().contiguous()
        gradient = matrix.view(1, height, wide, classes).permute(0, 3, 1, 2)
    return torch.ops.aten.upsample_bilinear2d_backward(
        gradient, [height, wide], [batch, classes, height, width], False, None, None
    )


def _bands(wide: Tensor, rows: _Axis, slab: _Slab) -> Iterator[tuple[slice, Tensor]]:
    """Scores of a few rows of pixels at a time, (B, K, R, W), in a buffer that the next band overwrites."""
    count, first = slab.pixels[1] - slab.pixels[0], slab.points[0]
    row = wide[:, :, 0].numel()
    height = min(max(_elements(_BAND_ELEMENTS, row * len(rows.taps)) // row, 1), count) if wide.is_cpu else count
    buffer = torch.empty_like(wide[:, :, :1].expand(-1, -1, height, -1), memory_format=_layout_of(wide))
    for start in range(*slab.pixels, height):
        band = slice(start, min(start + height, slab.pixels[1]))
        scores = buffer[:, :, : band.stop - start]
        if wide.is_cpu:
            # The rows of pixels between two rows of points share them: no copies, and few calls.
            for (lower, upper), run in groupby(range(start, band.stop), lambda row: rows.taps[row][:2]):
                part = list(run)
                part = slice(part[0], part[-1] + 1)
                below, above = wide.narrow(2, lower - first, 1), wide.narrow(2, upper - first, 1)
                out = scores[:, :, part.start - start : part.stop - start]
                torch.lerp(below, above, rows.weight[part, None], out=out)
        else:
            below, above = (wide.index_select(2, index[band] - first) for index in (rows.lower, rows.upper))
            torch.lerp(below, above, rows.weight[band, None], out=scores)
        yield band, scores


def _bands_backward(wide_gradient: Tensor, gradient: Tensor, rows: _Axis, slab: _Slab, band: slice) -> None:
    """Transpose of `_bands`: add the gradient of one band's scores to that of the rows of points around it."""
    first = slab.points[0]
    if wide_gradient.is_cpu:
        point_rows = wide_gradient.unbind(2)
        for row, (lower, upper, weight) in zip(gradient.unbind(2), rows.taps[band], strict=True):
            point_rows[lower - first].add_(row, alpha=1 - weight)
            point_rows[upper - first].add_(row, alpha=weight)
    else:
        share = gradient * rows.weight[band, None]
        wide_gradient.index_add_(2, rows.upper[band] - first, share)
        wide_gradient.index_add_(2, rows.lower[band] - first, gradient - share)


def _layout_of(scores: Tensor) -> torch.memory_format:
    return torch.contiguous_format if scores.is_contiguous() else torch.channels_last


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _must_trace(logits: Tensor) -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or logits.is_meta


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be a floating-point tensor of shape (batch, classes, height, width), "
            f"got {logits.dtype} of shape {tuple(logits.shape)}"
        )


# ---------------------------------------------------------------------------------------------------------- label maps


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], return_confidence: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Label map of bilinearly upsampled logits, without the upsampled scores.

    Equal to `F.interpolate(logits, size, mode="bilinear").argmax(1)` up to the rounding of ties; with one class, to
    `sigmoid(score) > 0.5`. Half-precision logits are interpolated in float32. A NaN counts as the lowest score, an
    infinity as a very large finite one. No gradient flows.

    On a CPU, a cell whose four points agree gets their label without a score being computed (bilinear interpolation is a
    convex combination), and in other cells only classes that reach the best class's smallest corner value are compared;
    where most cells are mixed, the rows are computed in bands instead. While compiling or exporting, the plain expression
    is traced.

    Args:
        logits: (B, K, h, w) scores of any floating-point type and memory format.
        size: (H, W) of the label map in pixels; larger than, equal to or smaller than (h, w).
        return_confidence: Also return the softmax (one class: sigmoid) probability of each pixel's label. This needs every
            class at every pixel and takes correspondingly longer.

    Returns:
        (B, H, W) int64 labels in [0, K), or in {0, 1} for one class; with `return_confidence` a tuple of these and
        (B, H, W) float32 probabilities.

    Raises:
        ValueError: If `logits` is not a floating-point (B, K, h, w) tensor or `size` not two positive numbers.
    """
    _check_logits(logits)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be two positive numbers (height, width), got {tuple(size)}")
    logits, (height, width) = logits.detach(), size
    if _must_trace(logits):
        labels, confidence = plain_upsample_argmax(logits, (height, width))
        return (labels, confidence) if return_confidence else labels
    labels = torch.empty(len(logits), height, width, dtype=torch.long, device=logits.device)
    confidence = torch.empty(labels.shape, device=logits.device) if return_confidence else None
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        dtype = _compute_dtype(logits)
        rows = _axis(logits.shape[2], height, dtype, logits.device)
        columns = _axis(logits.shape[3], width, dtype, logits.device)
        if logits.device.type != "cpu":
            _label_bands(logits, rows, labels, confidence)
        else:
            for index in range(len(logits)):
                part = slice(index, index + 1)
                _label_image(
                    logits[part], rows, columns, labels[part], None if confidence is None else confidence[part]
                )
    return labels if confidence is None else (labels, confidence)


def plain_upsample_argmax(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Labels and confidences of `upsample_argmax` as the plain, traceable expression, which holds all scores.

    Args:
        logits: (B, K, h, w) scores.
        size: (H, W) of the label map in pixels.

    Returns:
        (B, H, W) int64 labels and (B, H, W) float32 probabilities of these labels.
    """
    scores = _finite(logits.to(_compute_dtype(logits)))
    scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).long(), scores[:, 0].abs().sigmoid().float()
    return scores.argmax(1), scores.log_softmax(1).amax(1).exp().float()


def _finite(scores: Tensor) -> Tensor:
    # Differences of two such bounds must not overflow.
    bound = torch.finfo(scores.dtype).max / 4
    return torch.nan_to_num(scores, nan=-bound, posinf=bound, neginf=-bound)


def _finite_rows(logits: Tensor, points: tuple[int, int]) -> Tensor:
    scores = logits[:, :, points[0] : points[1]].to(_compute_dtype(logits))
    return scores if scores.is_cpu and torch.isfinite(scores.sum()) else _finite(scores)


def _first_argmax(scores: Tensor, ranks: Tensor) -> Tensor:
    """Index of the largest score along dimension 1, the first of equals, as a float; overwrites the scores."""
    # Four passes that vectorise over the pixels; argmax over a strided dimension is an order of magnitude slower.
    return len(ranks) - scores.eq_(scores.amax(1, keepdim=True)).mul_(ranks).amax(1)


def _ranks(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], 0, -1, dtype=_compute_dtype(logits), device=logits.device)[:, None, None]


def _label_bands(
    logits: Tensor,
    rows: _Axis,
    labels: Tensor | None,
    confidence: Tensor | None,
    cells: tuple[int, int | None] = (0, None),
) -> None:
    """Fill the label map, the confidence map or both, by interpolating every score of the given rows of cells."""
    width = (labels if confidence is None else confidence).shape[2]
    height = _slab_height(rows, logits.shape[1], width, logits.device)
    ranks = _ranks(logits)
    for slab in _slabs(rows, height, *cells):
        wide = _widen(_finite_rows(logits, slab.points), width)
        for band, scores in _bands(wide, rows, slab):
            if scores.shape[1] == 1:
                if confidence is not None:
                    confidence[:, band] = scores[:, 0].abs().sigmoid()
                if labels is not None:
                    labels[:, band] = scores[:, 0] > 0
                continue
            if confidence is not None:
                confidence[:, band] = torch.log_softmax(scores, 1).amax(1).exp_()
            if labels is not None:
                labels[:, band] = _first_argmax(scores, ranks) if scores.is_cpu else scores.argmax(1)


def _label_image(logits: Tensor, rows: _Axis, columns: _Axis, labels: Tensor, confidence: Tensor | None) -> None:
    """Fill one image's maps, each part of it by the pruned algorithm or in bands, whichever is estimated faster."""
    if logits.shape[1] < 4:
        return _label_bands(logits, rows, labels, confidence)
    for slab in _slabs(rows, _PRUNED_ROWS):
        if _label_slab(logits, rows, columns, slab, labels[0]):
            if confidence is not None:
                _label_bands(logits, rows, None, confidence, slab.cells)
        else:
            _label_bands(logits, rows, labels, confidence, slab.cells)


def _label_slab(logits: Tensor, rows: _Axis, columns: _Axis, slab: _Slab, labels: Tensor) -> bool:
    """Fill a slab of one image's labels (H, W) by the pruned algorithm; False where bands promise to be faster."""
    points = _finite_rows(logits, slab.points)[0].permute(1, 2, 0).contiguous()
    winners = points.argmax(2)
    y, x = _mixed_cells(winners, rows, columns, slab)
    if not _pruning_pays(points, y, x, slab, labels.shape[1]):
        return False
    band = slice(*slab.pixels)
    below = rows.lower[band] - slab.points[0]
    nearest = winners.gather(1, columns.lower.expand(len(winners), -1))
    torch.index_select(nearest, 0, below, out=labels[band])
    classes = points.shape[2]
    step = max(_elements(_SLAB_ELEMENTS // 2, classes * labels.numel()) // (4 * classes), 1)
    for start in range(0, len(y), step):
        y_part, x_part = y[start : start + step], x[start : start + step]
        order, patch = _best_classes(
            _corners(points, y_part, x_part, slab),
            rows.member_weight.index_select(1, y_part),
            columns.member_weight.index_select(1, x_part),
        )
        top = rows.members.index_select(1, y_part[order]) * labels.shape[1]
        pixels = top[:, None] + columns.members.index_select(1, x_part[order])
        labels.view(-1).scatter_(0, pixels.view(-1), patch.view(-1).long())
    return True


def _mixed_cells(winners: Tensor, rows: _Axis, columns: _Axis, slab: _Slab) -> tuple[Tensor, Tensor]:
    """Row and column of the slab's cells that hold pixels and whose four points (n, w) differ in their winner."""
    points, width = len(rows.starts) - 2, winners.shape[1]
    y = torch.arange(slab.cells[0] - 1, slab.cells[1]).clamp_(0, points - 1) - slab.points[0]
    x = torch.arange(-1, width + 1).clamp_(0, width - 1)
    padded = winners.index_select(0, y).index_select(1, x)
    along_x = padded[:, :-1] != padded[:, 1:]
    along_y = padded[:-1] != padded[1:]
    mixed = along_x[:-1] | along_x[1:] | along_y[:, :-1]
    mixed &= rows.filled[slab.cells[0] : slab.cells[1], None] & columns.filled
    y, x = mixed.nonzero(as_tuple=True)
    return y + slab.cells[0], x


def _corners(points: Tensor, y: Tensor, x: Tensor, slab: _Slab) -> Tensor:
    """Scores of the four points around each of M cells: (n, w, K) to (4, M, K), upper left to lower right."""
    height, width, classes = points.shape
    above = (y - 1 - slab.points[0]).clamp_(min=0) * width
    below = (y - slab.points[0]).clamp_(max=height - 1) * width
    left, right = (x - 1).clamp_(min=0), x.clamp(max=width - 1)
    flat = torch.cat((above + left, above + right, below + left, below + right))
    return points.view(-1, classes).index_select(0, flat).view(4, -1, classes)


def _candidates(corners: Tensor) -> Tensor:
    """Classes that may win in each cell, (M, K) bool: those that reach the best class's smallest corner somewhere."""
    assured = corners.amin(0).amax(1, keepdim=True)
    return corners.amax(0) >= assured


def _pruning_pays(points: Tensor, y: Tensor, x: Tensor, slab: _Slab, width: int) -> bool:
    """Whether scoring the candidates of the mixed cells promises to be faster than scoring every class everywhere."""
    if not len(y):
        return True
    classes, cells = points.shape[2], (slab.cells[1] - slab.cells[0]) * (points.shape[1] + 1)
    pixels = (slab.pixels[1] - slab.pixels[0]) * width / cells
    # Nanoseconds, fitted on one core. Bands: for each class, per pixel, and per pixel column of the row of points.
    # Pruning: for each mixed cell, itself, per class to find its candidates, and per candidate with its pixels.
    bands = cells * classes * (0.6 * pixels + 4.3 * pixels**0.5)
    search = len(y) * (230 + 10 * classes)
    if search > bands:
        return False
    step = max(len(y) // 64, 1)
    candidates = _candidates(_corners(points, y[::step], x[::step], slab)).sum(1, dtype=torch.float32).mean()
    return search + len(y) * float(candidates) * (85 + 1.35 * pixels) < bands


def _best_classes(corners: Tensor, y_weight: Tensor, x_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Label every pixel of M mixed cells.

    Args:
        corners: (4, M, K) scores of the points around each cell.
        y_weight: (P, M) share of the lower points, for each of the cell's P rows of pixels.
        x_weight: (Q, M) share of the right points, for each of the cell's Q columns of pixels.

    Returns:
        The order (M,) in which the cells were visited, and their labels (P, Q, M) in that order, as floats.
    """
    classes = corners.shape[2]
    cell, candidate = _candidates(corners).nonzero(as_tuple=True)
    counts = torch.bincount(cell, minlength=corners.shape[1])
    first = counts.cumsum(0) - counts
    # With the cells sorted by their number of candidates, those that have a j-th one are a prefix.
    order = counts.argsort(descending=True)
    prefixes = torch.bincount(counts).flip(0).cumsum(0).flip(0)[1:].tolist()
    first, flat = first[order], corners.view(4, -1)
    base = order * classes
    y_weight, x_weight = y_weight.index_select(1, order)[:, None], x_weight.index_select(1, order)
    for turn, count in enumerate(prefixes):
        index = candidate.index_select(0, first[:count] + turn)
        corner = flat.index_select(1, base[:count] + index)
        upper = torch.lerp(corner[0], corner[1], x_weight[:, :count])
        lower = torch.lerp(corner[2], corner[3], x_weight[:, :count])
        scores = torch.lerp(upper, lower, y_weight[..., :count])
        index = index.to(scores.dtype)
        if turn == 0:
            best, labels = scores, index.expand_as(scores).contiguous()
            continue
        leader, label = best[..., :count], labels[..., :count]
        # A comparison written as a float vectorises, a boolean mask does not; lerp is exact at 0 and 1.
        better = torch.gt(scores, leader, out=torch.empty_like(scores))
        torch.maximum(leader, scores, out=leader)
        label.lerp_(index, better)
    return order, labels


# ---------------------------------------------------------------------------------------------------------------- loss


def upsample_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255, average: str = "valid") -> Tensor:
    """Mean softmax cross-entropy of bilinearly upsampled logits, without the upsampled scores.

    Equal in value and gradient to `F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels)`,
    except that a batch with no valid pixel gives zero with zero gradients. With one class, the binary cross-entropy of the
    upsampled scores over the valid pixels.

    Args:
        logits: (B, K, h, w) scores of any floating-point type; computed in float32 (float64 for float64).
        labels: (B, H, W) integer labels in [0, K), in {0, 1} for one class, or `ignore_index`.
        ignore_index: Label of pixels that carry no loss. For one class, negative labels are ignored too.
        average: "valid" divides by the number of valid pixels, as `transformers` does; "all" by the number of pixels, as
            the original SegFormer code and mmsegmentation do.

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

    The sum and the number can be added over ranks and micro-batches before the division. The gradient with respect to the
    logits is formed together with the loss, band by band, and kept at the logits' size; it can be differentiated only
    once. While compiling or exporting, the plain expression is traced.

    Args:
        logits: (B, K, h, w) scores of any floating-point type; computed in float32 (float64 for float64).
        labels: (B, H, W) integer labels in [0, K), in {0, 1} for one class, or `ignore_index`.
        ignore_index: Label of pixels that carry no loss. For one class, negative labels are ignored too.
        class_weights: Optional (K,) factor of the loss of each class's pixels (K = 1: (2,), for labels 0 and 1). It does
            not change the count.

    Returns:
        Scalar sum of the losses, float32 (float64 for float64 logits), and scalar int64 number of valid pixels.

    Raises:
        ValueError: If the shapes do not fit, or (on a CPU, where looking is cheap) a label is out of range.
    """
    _check_logits(logits)
    if labels.ndim != 3 or len(labels) != len(logits) or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape (batch, height, width) for logits of shape {tuple(logits.shape)}, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = labels.long()
    if _must_trace(logits):
        return plain_upsample_cross_entropy_sum(logits, labels, ignore_index, class_weights)
    if labels.is_cpu:
        _check_labels(labels, logits.shape[1], ignore_index)
    count = _valid(labels, logits.shape[1], ignore_index).sum()
    if torch.is_grad_enabled() and logits.requires_grad:
        return _UpsampleCrossEntropy.apply(logits, labels, ignore_index, class_weights), count
    with torch.autocast(logits.device.type, enabled=False):
        return _cross_entropy(logits.detach(), labels, ignore_index, class_weights, None), count


def plain_upsample_cross_entropy_sum(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`upsample_cross_entropy_sum` as the plain, traceable expression, which holds all scores and their gradient.

    Args:
        logits: (B, K, h, w) scores.
        labels: (B, H, W) int64 labels.
        ignore_index: Label of pixels that carry no loss.
        class_weights: Optional (K,) factors, (2,) for one class.

    Returns:
        Scalar sum of the losses and scalar int64 number of valid pixels.
    """
    scores = logits.to(_compute_dtype(logits))
    scores = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    valid = _valid(labels, logits.shape[1], ignore_index)
    weights = _pixel_weights(labels, valid, class_weights, scores.dtype)
    if logits.shape[1] == 1:
        target = (labels * valid).to(scores.dtype)
        losses = F.binary_cross_entropy_with_logits(scores[:, 0], target, reduction="none")
    else:
        losses = F.cross_entropy(scores, labels * valid, reduction="none")
    return (losses * weights).sum(), valid.sum()


class _UpsampleCrossEntropy(torch.autograd.Function):
    """`_cross_entropy` whose gradient is computed in the forward pass, while a band's softmax is at hand."""

    @staticmethod
    def forward(ctx, logits, labels, ignore_index, class_weights):
        # In float32 even for half-precision logits: the gradient of a sum over pixels is scaled down only afterwards.
        gradient = torch.zeros_like(logits, dtype=_compute_dtype(logits))
        with torch.autocast(logits.device.type, enabled=False):
            total = _cross_entropy(logits, labels, ignore_index, class_weights, gradient)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_output).to(ctx.dtype), None, None, None


def _cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None, gradient: Tensor | None
) -> Tensor:
    """Sum of the losses; its gradient with respect to the logits is added to `gradient`."""
    dtype, width = _compute_dtype(logits), labels.shape[2]
    rows = _axis(logits.shape[2], labels.shape[1], dtype, logits.device)
    height = _slab_height(rows, logits.shape[1], width, logits.device)
    # The CPU's softmax wants many classes innermost and few outermost.
    last = logits.is_cpu and logits.shape[1] >= 32
    layout = torch.channels_last if last else torch.contiguous_format
    # One image at a time is enough work for a CPU and keeps its buffers small.
    step = 1 if logits.is_cpu else max(len(logits), 1)
    total = torch.zeros((), dtype=dtype, device=logits.device)
    for index in range(0, len(logits), step):
        images = slice(index, index + step)
        for slab in _slabs(rows, height):
            points, pixels = slice(*slab.points), slice(*slab.pixels)
            target = labels[images, pixels]
            valid = _valid(target, logits.shape[1], ignore_index)
            weights = _pixel_weights(target, valid, class_weights, dtype)
            target = (target * valid)[:, None]
            wide = _widen(logits[images, :, points].to(dtype), width, layout)
            if gradient is None:
                losses = _slab_losses(wide, rows, slab, target)
            else:
                losses, wide_gradient = _slab_losses_and_gradient(wide, rows, slab, target, weights)
                gradient[images, :, points] += _widen_backward(wide_gradient, logits.shape[3])
            total += (losses[:, 0] * weights).sum()
    return total


def _slab_losses(wide: Tensor, rows: _Axis, slab: _Slab, target: Tensor) -> Tensor:
    """Losses (B, 1, R, W) of a slab's R rows of pixels with the given target (B, 1, R, W)."""
    losses = torch.empty_like(target, dtype=wide.dtype)
    for band, scores in _bands(wide, rows, slab):
        part = slice(band.start - slab.pixels[0], band.stop - slab.pixels[0])
        if scores.shape[1] == 1:
            wanted = target[:, :, part].to(scores.dtype)
            losses[:, :, part] = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        else:
            losses[:, :, part] = -_over_classes(torch.log_softmax, scores).gather(1, target[:, :, part])
    return losses


def _slab_losses_and_gradient(
    wide: Tensor, rows: _Axis, slab: _Slab, target: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`_slab_losses`, and the gradient of their weighted sum with respect to `wide`."""
    wide_gradient, chosen = torch.zeros_like(wide), torch.empty_like(target, dtype=wide.dtype)
    for band, scores in _bands(wide, rows, slab):
        part = slice(band.start - slab.pixels[0], band.stop - slab.pixels[0])
        wanted = target[:, :, part]
        if scores.shape[1] == 1:
            gradient = scores.sigmoid().sub_(wanted)
        else:
            gradient = _over_classes(torch.softmax, scores)
            probability = gradient.gather(1, wanted)
            chosen[:, :, part] = probability
            gradient.scatter_(1, wanted, probability - 1)
        gradient *= weights[:, None, part]
        _bands_backward(wide_gradient, gradient, rows, slab, band)
    # The logarithm of a probability that has underflowed needs the scores again. (On other devices, looking would mean
    # waiting for them.)
    if wide.shape[1] == 1 or not wide.is_cpu or float(chosen.min()) < torch.finfo(wide.dtype).tiny:
        return _slab_losses(wide, rows, slab, target), wide_gradient
    return chosen.log_().neg_(), wide_gradient


def _over_classes(function: Callable[..., Tensor], scores: Tensor) -> Tensor:
    """Apply softmax or log_softmax along dimension 1 without changing the layout (it would copy to contiguous)."""
    if scores.is_contiguous():
        return function(scores, 1)
    return function(scores.permute(0, 2, 3, 1), 3).permute(0, 3, 1, 2)


def _valid(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    valid = labels != ignore_index
    return valid & (labels >= 0) if classes == 1 else valid


def _pixel_weights(labels: Tensor, valid: Tensor, class_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    if class_weights is None:
        return valid.to(dtype)
    return class_weights.to(labels.device, dtype)[labels * valid] * valid


def _check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    if not labels.numel():
        return
    last = max(classes - 1, 1)
    lowest, highest = (int(bound) for bound in labels.aminmax())
    if highest <= last and (lowest >= 0 or classes == 1):
        return
    wrong = _valid(labels, classes, ignore_index) & ((labels < 0) | (labels > last))
    if wrong.any():
        raise ValueError(
            f"labels must lie in [0, {last}] for {classes} class{'es' * (classes > 1)} or equal "
            f"ignore_index={ignore_index}, got {int(labels[wrong][0])}"
        )
