# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label maps on a CPU by looking only at the classes that can win.

Bilinear interpolation is a convex combination: a cell whose four points agree on the class has that class everywhere,
and in any other cell only a class that somewhere reaches the best class's smallest corner can win.

Shapes: K classes, (n, w) points, (H, W) pixels, M cells, P rows and Q columns of pixels in a cell; points and cells as
in `scores.bilinear`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from ..scores.bilinear import BilinearAxis, Slab, bilinear_axis, buffer_elements, finite_scores, slabs

# Most rows of cells whose labels are decided together on a CPU, the largest share of all scores that their points may
# be, and elements of the corners looked at in one step: each step makes as many calls as some cell has candidates.
# Found, like the costs below, by `benchmark.py --post_processing`, which times cells of one and of many candidates.
_PRUNED_ROWS = 128
_PRUNED_SHARE = 1 / 20
_PRUNED_ELEMENTS = 1 << 20
# Fewest elements for which PyTorch's elementwise operations on a CPU use several threads, less one.
_SERIAL_PIXELS = (1 << 15) - 1


def label_where_it_pays(logits: Tensor, rows: BilinearAxis, labels: Tensor) -> Iterator[tuple[int, Slab]]:
    """Fill the labels of all slabs in which looking for candidates promises to be faster than scoring every class.

    Args:
        logits: (B, K, h, w).
        rows: Geometry of the rows.
        labels: Takes the result, (B, H, W) int64.

    Yields:
        Index of the image and slab, for each that is left to be labelled.
    """
    columns = bilinear_axis(logits.shape[3], labels.shape[2], logits)
    # A share of the scores, in rows: the number of classes cancels.
    height = int(_PRUNED_SHARE * labels.shape[1] * labels.shape[2] / logits.shape[3])
    for image, slab in product(range(len(logits)), slabs(rows, min(max(height, 8), _PRUNED_ROWS))):
        if not _label_slab(logits[image : image + 1], rows, columns, slab, labels[image]):
            yield image, slab


def _label_slab(logits: Tensor, rows: BilinearAxis, columns: BilinearAxis, slab: Slab, labels: Tensor) -> bool:
    """Fill a slab of one image's labels (H, W) by the pruned algorithm; False where bands promise to be faster."""
    points = finite_scores(logits[:, :, slab.points])[0].permute(1, 2, 0).contiguous()
    winners = points.argmax(2)
    y, x = _mixed_cells(winners, rows, columns, slab)
    if not _pruning_pays(points, y, x, slab, labels.shape[1]):
        return False
    nearest = winners.gather(1, columns.lower.expand(len(winners), -1))
    torch.index_select(nearest, 0, rows.lower[slab.pixels] - slab.points.start, out=labels[slab.pixels])
    # Operations on so few pixels run in one thread: for so little work, waiting for another costs more than it saves.
    area = rows.members.shape[0] * columns.members.shape[0]
    corners = 4 * points.shape[2]
    step = min(buffer_elements(_PRUNED_ELEMENTS, points.shape[2] * labels.numel()) // corners, _SERIAL_PIXELS // area)
    step = max(step, 1)
    for start in range(0, len(y), step):
        y_part, x_part = y[start : start + step], x[start : start + step]
        order, patch = _best_classes(
            _corners(points, y_part, x_part, slab),
            rows.member_weight.index_select(1, y_part),
            columns.member_weight.index_select(1, x_part),
        )
        row_starts = rows.members.index_select(1, y_part[order]) * labels.shape[1]
        pixels = row_starts[:, None] + columns.members.index_select(1, x_part[order])
        labels.view(-1).scatter_(0, pixels.view(-1), patch.view(-1).long())
    return True


def _mixed_cells(winners: Tensor, rows: BilinearAxis, columns: BilinearAxis, slab: Slab) -> tuple[Tensor, Tensor]:
    """Row and column of the slab's cells that hold pixels and whose four points (n, w) differ in their winner."""
    last_row, last_column = (count - 1 for count in winners.shape)
    y = torch.arange(slab.cells.start - 1, slab.cells.stop) - slab.points.start
    x = torch.arange(-1, last_column + 2)
    padded = winners.index_select(0, y.clamp_(0, last_row)).index_select(1, x.clamp_(0, last_column))
    along_x, along_y = padded[:, :-1] != padded[:, 1:], padded[:-1] != padded[1:]
    mixed = along_x[:-1] | along_x[1:] | along_y[:, :-1]
    mixed &= rows.filled[slab.cells, None] & columns.filled
    y, x = mixed.nonzero(as_tuple=True)
    return y + slab.cells.start, x


def _corners(points: Tensor, y: Tensor, x: Tensor, slab: Slab) -> Tensor:
    """Scores of the four points around each of M cells: (n, w, K) to (4, M, K), upper left to lower right."""
    height, width, classes = points.shape
    above = (y - 1 - slab.points.start).clamp_(min=0) * width
    below = (y - slab.points.start).clamp_(max=height - 1) * width
    left, right = (x - 1).clamp_(min=0), x.clamp(max=width - 1)
    index = torch.cat((above + left, above + right, below + left, below + right))
    return points.view(-1, classes).index_select(0, index).view(4, -1, classes)


def _candidates(corners: Tensor) -> Tensor:
    """Classes that may win in each cell, (M, K) bool: those that reach the best class's smallest corner somewhere."""
    return corners.amax(0) >= corners.amin(0).amax(1, keepdim=True)


def _pruning_pays(points: Tensor, y: Tensor, x: Tensor, slab: Slab, width: int) -> bool:
    """Whether scoring the candidates of the mixed cells promises to be faster than scoring every class everywhere."""
    if not len(y):
        return True
    classes, cells = points.shape[2], (slab.cells.stop - slab.cells.start) * (points.shape[1] + 1)
    pixels = (slab.pixels.stop - slab.pixels.start) * width / cells
    # Nanoseconds, fitted on one core to `benchmark.py --post_processing`. Bands: for each class, per pixel, and per
    # pixel of a row of points. Pruning: for each mixed cell, itself, per class to find its candidates, and per
    # candidate with its pixels. More threads help bands alone.
    bands = cells * classes * (0.6 * pixels + 4.3 * pixels**0.5) / torch.get_num_threads() ** 0.7
    search = len(y) * (230 + 12 * classes)
    if search > bands:
        return False
    sample = slice(None, None, max(len(y) // 64, 1))
    candidates = _candidates(_corners(points, y[sample], x[sample], slab)).sum(1, dtype=torch.float32).mean()
    return search + len(y) * float(candidates) * (100 + 1.6 * pixels) < bands


def _best_classes(corners: Tensor, y_weight: Tensor, x_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Label every pixel of M mixed cells.

    Args:
        corners: (4, M, K) scores of the points around each cell.
        y_weight: (P, M) share of the lower points, for each of the cell's P rows of pixels.
        x_weight: (Q, M) share of the right points, for each of the cell's Q columns of pixels.

    Returns:
        The order (M,) in which the cells were visited, and their labels (P, Q, M) in that order, as floats.
    """
    cell, candidate = _candidates(corners).nonzero(as_tuple=True)
    counts = torch.bincount(cell, minlength=corners.shape[1])
    # With the cells sorted by their number of candidates, those that have a j-th one are a prefix.
    order = counts.argsort(descending=True)
    prefixes = torch.bincount(counts).flip(0).cumsum(0).flip(0)[1:].tolist()
    first, base, flat = (counts.cumsum(0) - counts)[order], order * corners.shape[2], corners.view(4, -1)
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
