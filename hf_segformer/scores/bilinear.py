# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Bilinear upsampling (`align_corners=False`) of score maps in bands of rows, and its transpose.

Shapes: B images, K classes, (h, w) points of the low-resolution scores, (H, W) pixels. The pixels between four
neighbouring points form a cell. Rows of cells are counted from 0 (above the first row of points) to h (below the
last), columns likewise. The scores are those of `F.interpolate`, but only a band of pixel rows is held at a time: a
slab of rows of points is interpolated along the columns, then the bands of pixel rows between them one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tracing import must_trace

# Elements of the working buffers on a CPU, found by `python -m hf_segformer.benchmark.constants`: a band of scores
# stays in the caches, and is long enough to share among threads. No buffer holds more than this share of all scores,
# however small the image.
_BAND_ELEMENTS = 1 << 19
_SLAB_ELEMENTS = 1 << 20
_LARGEST_SHARE = 1 / 50
# A device with dear launches takes few large bands instead: the rows of an image in this many parts.
_DEVICE_BANDS = 16


class BilinearAxis(NamedTuple):
    """Bilinear geometry of one axis: which points each pixel lies between, and which pixels each cell holds."""

    lower: Tensor  # (pixels,) index of the point at or before each pixel
    upper: Tensor  # (pixels,) index of the point after it
    weight: Tensor  # (pixels,) share of the upper point
    taps: list[tuple[int, int, float]]  # (pixels,) the same three as numbers
    starts: list[int]  # (points + 2,) first pixel of each cell, then the number of pixels
    filled: Tensor  # (points + 1,) whether the cell holds a pixel at all
    members: Tensor  # (patch, points + 1) pixels of each cell, the last one repeated where a cell holds fewer
    member_weight: Tensor  # (patch, points + 1) `weight` of those pixels


def bilinear_axis(points: int, pixels: int, logits: Tensor) -> BilinearAxis:
    """Geometry of an axis with that many points and pixels, in the precision and on the device of the logits."""
    # The arithmetic and precision of F.interpolate, so that the weights agree with its own.
    position = (torch.arange(pixels, dtype=compute_dtype(logits)) + 0.5) * (points / pixels) - 0.5
    below = position.floor().clamp_(-1, points - 1)
    weight = torch.where((below < 0) | (below >= points - 1), 0, position - below)
    cell = below.long() + 1
    starts = torch.searchsorted(cell, torch.arange(points + 2))
    counts = starts.diff()
    offsets = torch.arange(int(counts.max()))[:, None]
    members = torch.minimum(starts[:-1] + offsets, (starts[1:] - 1).clamp_(min=0))
    lower, upper = (cell - 1).clamp_(min=0), cell.clamp(max=points - 1)
    taps = list(zip(lower.tolist(), upper.tolist(), weight.tolist(), strict=True))
    lower, upper, weight = (tensor.to(logits.device) for tensor in (lower, upper, weight))
    return BilinearAxis(lower, upper, weight, taps, starts.tolist(), counts > 0, members, weight[members])


class Slab(NamedTuple):
    """Neighbouring rows of cells, the rows of pixels in them, and the rows of points around them."""

    cells: slice
    pixels: slice
    points: slice


def slabs(rows: BilinearAxis, height: int, cells: slice = slice(None)) -> Iterator[Slab]:
    """Slabs of `height` rows of cells that together hold the pixels of the given rows of cells."""
    points = len(rows.starts) - 2
    first, last, _ = cells.indices(points + 1)
    for start in range(first, last, height):
        stop = min(start + height, last)
        if rows.starts[start] < rows.starts[stop]:
            pixels = slice(rows.starts[start], rows.starts[stop])
            yield Slab(slice(start, stop), pixels, slice(max(start - 1, 0), min(stop, points)))


def image_slabs(
    logits: Tensor, rows: BilinearAxis, width: int, cells: slice = slice(None)
) -> Iterator[tuple[slice, Slab]]:
    """Images and slabs to work on at a time: one image and a cache's worth of rows on a CPU, large parts elsewhere."""
    images, height = max(len(logits), 1), -(-len(rows.starts) // _DEVICE_BANDS)
    if on_cpu(logits):
        row = logits.shape[1] * width
        images, height = 1, min(max(buffer_elements(_SLAB_ELEMENTS, row * len(rows.taps)) // row, 4), 32)
    for start in range(0, len(logits), images):
        for slab in slabs(rows, height, cells):
            yield slice(start, start + images), slab


def buffer_elements(most: int, scores: int) -> int:
    """Elements that a working buffer may have, at most `most`, for an image with so many scores."""
    return int(min(most, scores * _LARGEST_SHARE))


def widen(points: Tensor, width: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Interpolate along the columns only: (B, K, n, w) to (B, K, n, W)."""
    if on_cpu(points):
        # The channels-last kernel is several times faster than the contiguous one, even with the copies around it.
        rows = rows_as_images(points.permute(0, 2, 3, 1).contiguous().flatten(0, 1))
        wide = F.interpolate(rows, size=(1, width), mode="bilinear", align_corners=False)
        wide = wide.permute(0, 2, 3, 1).view(len(points), points.shape[2], width, -1).permute(0, 3, 1, 2)
    else:
        wide = F.interpolate(points, size=(points.shape[2], width), mode="bilinear", align_corners=False)
    if layout == torch.channels_last or len(wide) > 1:
        return wide.contiguous(memory_format=layout)
    # Written as the transposition of a matrix, for which copying has a fast path.
    return wide[0].permute(1, 2, 0).flatten(0, 1).t().contiguous().view(wide.shape)


def widen_backward(gradient: Tensor, columns: BilinearAxis) -> Tensor:
    """Transpose of `widen`: (B, K, n, W) to (B, K, n, w)."""
    batch, classes, height, width = gradient.shape
    points = [batch, classes, height, len(columns.starts) - 2]
    if not on_cpu(gradient):
        # Unlike the backward of F.interpolate, this has a deterministic variant there.
        share = gradient * columns.weight
        narrow = gradient.new_zeros(points).index_add_(3, columns.upper, share)
        return narrow.index_add_(3, columns.lower, gradient - share)
    if gradient.is_contiguous():
        matrix = gradient.view(classes, -1).t().contiguous()
        gradient = matrix.view(1, height, width, classes).permute(0, 3, 1, 2)
    rows = rows_as_images(gradient.permute(0, 2, 3, 1).contiguous().flatten(0, 1))
    sizes = [1, width], [batch * height, classes, 1, points[3]]
    narrow = torch.ops.aten.upsample_bilinear2d_backward(rows, *sizes, False, None, None)
    return narrow.permute(0, 2, 3, 1).reshape(batch, height, -1, classes).permute(0, 3, 1, 2)


def rows_as_images(rows: Tensor) -> Tensor:
    """Rows of points (n, w, K) as (n, K, 1, w): the CPU's kernels share images among threads, not rows."""
    return rows[:, None].permute(0, 3, 1, 2)


def bands(wide: Tensor, rows: BilinearAxis, slab: Slab) -> Iterator[tuple[slice, Tensor]]:
    """Scores of a few rows of pixels at a time, (B, K, R, W), in a buffer that the next band overwrites."""
    height, row, first = slab.pixels.stop - slab.pixels.start, wide[:, :, 0].numel(), slab.points.start
    if on_cpu(wide):
        height = min(height, max(buffer_elements(_BAND_ELEMENTS, row * len(rows.taps)) // row, 1))
    layout = torch.contiguous_format if wide.is_contiguous() else torch.channels_last
    buffer = torch.empty_like(wide[:, :, :1].expand(-1, -1, height, -1), memory_format=layout)
    for start in range(slab.pixels.start, slab.pixels.stop, height):
        band = slice(start, min(start + height, slab.pixels.stop))
        scores = buffer[:, :, : band.stop - start]
        if on_cpu(wide):
            # The rows of pixels between two rows of points share them: no copies, and few calls.
            for (lower, upper), run in groupby(range(start, band.stop), lambda row: rows.taps[row][:2]):
                part = list(run)
                below, above = wide.narrow(2, lower - first, 1), wide.narrow(2, upper - first, 1)
                out = scores.narrow(2, part[0] - start, len(part))
                torch.lerp(below, above, rows.weight[part[0] : part[-1] + 1, None], out=out)
        else:
            below, above = (wide.index_select(2, index[band] - first) for index in (rows.lower, rows.upper))
            torch.lerp(below, above, rows.weight[band, None], out=scores)
        yield band, scores


def bands_backward(wide_gradient: Tensor, gradient: Tensor, rows: BilinearAxis, slab: Slab, band: slice) -> None:
    """Transpose of `bands`: add the gradient of one band's scores to that of the rows of points around it."""
    first = slab.points.start
    if on_cpu(gradient):
        point_rows = wide_gradient.unbind(2)
        for row, (lower, upper, weight) in zip(gradient.unbind(2), rows.taps[band], strict=True):
            point_rows[lower - first].add_(row, alpha=1 - weight)
            point_rows[upper - first].add_(row, alpha=weight)
    else:
        share = gradient * rows.weight[band, None]
        wide_gradient.index_add_(2, rows.upper[band] - first, share)
        wide_gradient.index_add_(2, rows.lower[band] - first, gradient - share)


def on_cpu(tensor: Tensor) -> bool:
    """Whether many small calls are cheap and looking at values costs no wait."""
    return tensor.device.type == "cpu"


def compute_dtype(logits: Tensor) -> torch.dtype:
    """Precision of every computation on the logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def finite_scores(logits: Tensor) -> Tensor:
    """The logits in the precision of the computation, without NaN and infinities."""
    scores = logits.to(compute_dtype(logits))
    if not must_trace(scores) and on_cpu(scores) and torch.isfinite(scores.sum()):
        return scores
    # Differences of two such bounds must not overflow.
    bound = torch.finfo(scores.dtype).max / 4
    return torch.nan_to_num(scores, nan=-bound, posinf=bound, neginf=-bound)
