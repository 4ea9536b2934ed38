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

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of the working buffers on a CPU, found by timing: a band of scores stays in the second-level cache.
_BAND_ELEMENTS = 1 << 17
_SLAB_ELEMENTS = 1 << 19
# Rows of cells whose labels are decided together, and the most cells of them in one step.
_PRUNED_ROWS = 32
_PRUNED_CELLS = 2048
# A device with dear launches takes few large bands instead: an image's rows in this many parts.
_DEVICE_BANDS = 16


# ----------------------------------------------------------------------------------------------- geometry of upsampling


class _Axis(NamedTuple):
    """Bilinear geometry of one axis: which points each pixel lies between, and which pixels each cell holds."""

    lower: Tensor  # (pixels,) index of the point at or before each pixel
    upper: Tensor  # (pixels,) index of the point after it
    weight: Tensor  # (pixels,) share of the upper point
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
    return _Axis(lower, upper, weight, starts.tolist(), counts > 0, members, weight[members])


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
    return min(max(_SLAB_ELEMENTS // (classes * width), 4), 32)


def _widen(points: Tensor, width: int) -> Tensor:
    """Interpolate along the columns only: (B, K, n, w) to (B, K, n, W), contiguous."""
    # On a CPU the channels-last kernel is several times faster than the contiguous one, even with the copies around it.
    if points.is_cpu:
        points = points.contiguous(memory_format=torch.channels_last)
    wide = F.interpolate(points, size=(points.shape[2], width), mode="bilinear", align_corners=False)
    return _classes_first(wide)


def _classes_first(scores: Tensor) -> Tensor:
    """A contiguous copy of (B, K, n, W)."""
    if len(scores) != 1 or not scores.is_contiguous(memory_format=torch.channels_last):
        return scores.clone(memory_format=torch.contiguous_format)
    # Written as the transposition of a matrix, for which copying has a fast path.
    matrix = scores[0].permute(1, 2, 0).flatten(0, 1)
    return matrix.t().contiguous().view(scores.shape)


def _widen_backward(gradient: Tensor, width: int) -> Tensor:
    """Transpose of `_widen`: (B, K, n, W) to (B, K, n, w)."""
    batch, classes, height, wide = gradient.shape
    if gradient.is_cpu and batch == 1:
        matrix = gradient.view(classes, -1).t().contiguous()
        gradient = matrix.view(1, height, wide, classes).permute(0, 3, 1, 2)
    return torch.ops.aten.upsample_bilinear2d_backward(
        gradient, [height, wide], [batch, classes, height, width], False, None, None
    )


def _row_by_row(scores_of_one_row: int, device: torch.device) -> bool:
    # A scalar weight is fastest, but each row is then a call of its own, which only a long row repays.
    return device.type == "cpu" and scores_of_one_row >= 1 << 13


def _bands(wide: Tensor, rows: _Axis, slab: _Slab) -> Iterator[tuple[slice, Tensor]]:
    """Scores of a few rows of pixels at a time, (B, K, rows, W), in a buffer that the next band overwrites."""
    batch, classes, _, width = wide.shape
    row = batch * classes * width
    height = max(_BAND_ELEMENTS // row, 1) if wide.device.type == "cpu" else slab.pixels[1] - slab.pixels[0]
    buffer = wide.new_empty(batch, classes, height, width)
    lower, upper = rows.lower - slab.points[0], rows.upper - slab.points[0]
    for start in range(*slab.pixels, height):
        band = slice(start, min(start + height, slab.pixels[1]))
        scores = buffer[:, :, : band.stop - start]
        if _row_by_row(row, wide.device):
            taps = zip(lower[band].tolist(), upper[band].tolist(), rows.weight[band].tolist(), strict=True)
            for index, (below, above, weight) in enumerate(taps):
                torch.lerp(wide[:, :, below], wide[:, :, above], weight, out=scores[:, :, index])
        else:
            below, above = wide.index_select(2, lower[band]), wide.index_select(2, upper[band])
            torch.lerp(below, above, rows.weight[band, None], out=scores)
        yield band, scores


def _bands_backward(wide_gradient: Tensor, gradient: Tensor, rows: _Axis, slab: _Slab, band: slice) -> None:
    """Transpose of `_bands`: add the gradient of one band's scores to that of the rows of points around it."""
    lower, upper, weight = rows.lower[band] - slab.points[0], rows.upper[band] - slab.points[0], rows.weight[band]
    if _row_by_row(gradient[:, :, 0].numel(), gradient.device):
        for index, (below, above, share) in enumerate(
            zip(lower.tolist(), upper.tolist(), weight.tolist(), strict=True)
        ):
            wide_gradient[:, :, below].add_(gradient[:, :, index], alpha=1 - share)
            wide_gradient[:, :, above].add_(gradient[:, :, index], alpha=share)
    else:
        above = gradient * weight[:, None]
        wide_gradient.index_add_(2, upper, above)
        wide_gradient.index_add_(2, lower, gradient - above)


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
    scores = _finite_rows(logits, slab.points).contiguous(memory_format=torch.channels_last)
    winners = _first_argmax(_classes_first(scores), _ranks(logits))[0].long()
    y, x = _mixed_cells(winners, rows, columns, slab)
    points = scores[0].permute(1, 2, 0).contiguous()
    if not _pruning_pays(points, y, x, slab, labels.shape[1]):
        return False
    band = slice(*slab.pixels)
    below = rows.lower[band] - slab.points[0]
    nearest = winners.gather(1, columns.lower.expand(len(winners), -1))
    torch.index_select(nearest, 0, below, out=labels[band])
    step = max(min(_PRUNED_CELLS, _SLAB_ELEMENTS // (4 * points.shape[2])), 1)
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
    cells = (slab.cells[1] - slab.cells[0]) * (points.shape[1] + 1)
    pixels, classes = (slab.pixels[1] - slab.pixels[0]) * width / cells, points.shape[2]
    # Nanoseconds on one core: per score in a band; per corner set and class, per pixel written, per candidate's score.
    bands = 0.75 * classes * pixels * cells
    least = len(y) * (6 * classes + pixels * 3.5)
    if least > bands:
        return False
    step = max(len(y) // 64, 1)
    candidates = _candidates(_corners(points, y[::step], x[::step], slab)).sum(1, dtype=torch.float32).mean()
    return least + len(y) * pixels * 0.7 * float(candidates) < bands


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
    dtype = _compute_dtype(logits)
    rows = _axis(logits.shape[2], labels.shape[1], dtype, logits.device)
    # One image at a time is enough work for a CPU and halves its buffers.
    step = 1 if logits.device.type == "cpu" else max(len(logits), 1)
    height = _slab_height(rows, logits.shape[1], labels.shape[2], logits.device)
    losses = [torch.zeros((), dtype=dtype, device=logits.device)]
    for index in range(0, len(logits), step):
        images = slice(index, index + step)
        for slab in _slabs(rows, height):
            points = slice(*slab.points)
            wide = _widen(logits[images, :, points].to(dtype), labels.shape[2])
            wide_gradient = None if gradient is None else torch.zeros_like(wide)
            for band, scores in _bands(wide, rows, slab):
                target = labels[images, band]
                valid = _valid(target, logits.shape[1], ignore_index)
                weights = _pixel_weights(target, valid, class_weights, dtype)
                loss, scores_gradient = _band_loss(scores, target * valid, weights, gradient is not None)
                losses.append(loss)
                if wide_gradient is not None:
                    _bands_backward(wide_gradient, scores_gradient, rows, slab, band)
            if wide_gradient is not None:
                gradient[images, :, points] += _widen_backward(wide_gradient, logits.shape[3])
    return torch.stack(losses).sum()


def _band_loss(
    scores: Tensor, target: Tensor, weights: Tensor, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Weighted sum of the losses of scores (B, K, R, W) at target (B, R, W), and its gradient with respect to them."""
    target = target[:, None]
    if scores.shape[1] == 1:
        losses = F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="none")
        gradient = scores.sigmoid().sub_(target) if need_gradient else None
    elif need_gradient:
        gradient = torch.softmax(scores, 1)
        chosen = gradient.gather(1, target)
        losses = -chosen.log()
        if not scores.is_cpu or float(chosen.min()) < torch.finfo(scores.dtype).tiny:
            # The probability has underflowed; its logarithm has not. (Elsewhere looking would cost a wait.)
            losses = -torch.log_softmax(scores, 1).gather(1, target)
        gradient.scatter_(1, target, chosen - 1)
    else:
        losses, gradient = -torch.log_softmax(scores, 1).gather(1, target), None
    if gradient is not None:
        gradient *= weights[:, None]
    return (losses[:, 0] * weights).sum(), gradient


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
