# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Shapes become pixels by one rule, whatever tool they come from.

Edges: pixel (i, j) covers i..i+1 and j..j+1. It belongs to a polygon when its centre (i + 0.5, j + 0.5) lies inside,
where a ring that crosses itself is read even-odd: a point is inside when a ray from it crosses the ring an odd number
of times. A centre exactly on an edge belongs to the polygon on its right, on a level edge to the one below. So
polygons that share an edge leave no gap between them and share no pixel.

Holes are taken out of the polygon they belong to, and of no other shape. The parts of one shape are united.

Overlaps: shapes are drawn in the order of the file, those with a larger `order` later (CVAT's z_order), and each
covers what lies below it. Formats whose files say nothing about it (COCO) have shapes with fewer pixels on top of
larger ones, and of equal ones the later (`Picture.small_on_top`).

Points may lie outside the picture: what lies outside is cut off, nothing is moved to the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .annotated import IGNORED, Bitmap, Polygon, Runs, Shape
from .rle import pixels_of

VERSION = 1  # of the rule, for what is kept of earlier starts


def draw_shapes(
    shapes: Sequence[Shape],
    size: tuple[int, int],
    num_classes: int,
    relative: bool = False,
    small_on_top: bool = False,
) -> np.ndarray:
    """Draw the shapes of a picture.

    Args:
        shapes: The shapes, in the order of the file.
        size: (width, height).
        num_classes: Labels are in 0..num_classes-1 or `IGNORED`.
        relative: Whether coordinates are shares of width and height.
        small_on_top: Whether shapes with fewer pixels lie on top.

    Returns:
        uint8 (height, width), uint16 for more than 254 classes: 0 where there is no shape, label + 1 where there is
        one, and the largest value where the topmost shape is ignored; see `stored_value`.
    """
    width, height = size
    dtype = stored_dtype(num_classes)
    drawn = [(shape, *_area(shape, width, height, relative)) for shape in shapes]
    if small_on_top:
        drawn.sort(key=lambda item: -np.count_nonzero(item[1]))
    else:
        drawn.sort(key=lambda item: item[0].order)
    values: np.ndarray = np.zeros((height, width), dtype)
    for shape, pixels, left, top in drawn:
        box = values[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        box[pixels] = stored_value(shape.label, num_classes)
    return values


def stored_dtype(num_classes: int) -> type:
    """Return the type of drawn values."""
    return np.uint8 if num_classes <= 254 else np.uint16


def stored_value(label: int, num_classes: int) -> int:
    """Return the value that a shape's label is drawn with."""
    return np.iinfo(stored_dtype(num_classes)).max if label == IGNORED else label + 1


def _area(shape: Shape, width: int, height: int, relative: bool) -> tuple[np.ndarray, int, int]:
    """Return a shape's pixels, and the column and row of their upper left corner."""
    parts = [_part(part, width, height, relative) for part in shape.parts]
    if len(parts) == 1:
        return parts[0]
    parts = [part for part in parts if part[0].size] or [(np.zeros((0, 0), bool), 0, 0)]
    left, top = min(part[1] for part in parts), min(part[2] for part in parts)
    right, bottom = (max(part[axis] + part[0].shape[2 - axis] for part in parts) for axis in (1, 2))
    united = np.zeros((bottom - top, right - left), bool)
    for pixels, x, y in parts:
        united[y - top : y - top + pixels.shape[0], x - left : x - left + pixels.shape[1]] |= pixels
    return united, left, top


def _part(part: Polygon | Runs | Bitmap, width: int, height: int, relative: bool) -> tuple[np.ndarray, int, int]:
    if isinstance(part, Polygon):
        scale = np.array([width, height], np.float64) if relative else 1.0
        return polygon_pixels(part.exterior * scale, [hole * scale for hole in part.holes], width, height)
    pixels = pixels_of(part) if isinstance(part, Runs) else part.pixels
    cut_x, cut_y = max(-part.x, 0), max(-part.y, 0)
    left, top = max(part.x, 0), max(part.y, 0)
    return pixels[cut_y : cut_y + max(height - top, 0), cut_x : cut_x + max(width - left, 0)], left, top


def polygon_pixels(
    exterior: np.ndarray, holes: Sequence[np.ndarray], width: int, height: int
) -> tuple[np.ndarray, int, int]:
    """Return the pixels of a polygon, by the rule above.

    Args:
        exterior: float64 (n, 2), x and y.
        holes: Rings of the same form.
        width: Columns of the picture.
        height: Rows of the picture.

    Returns:
        pixels: bool array over the part of the picture that the polygon's box covers.
        left: Its first column.
        top: Its first row.
    """
    low, high = exterior.min(axis=0), exterior.max(axis=0)
    left, top = (int(np.clip(np.floor(value), 0, limit)) for value, limit in zip(low, (width, height), strict=True))
    right, bottom = (
        int(np.clip(np.ceil(value), 0, limit)) for value, limit in zip(high, (width, height), strict=True)
    )
    pixels = _ring_pixels(exterior, left, top, right, bottom)
    for hole in holes:
        pixels &= ~_ring_pixels(hole, left, top, right, bottom)
    return pixels, left, top


def _ring_pixels(ring: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Even-odd, by the places where the ring crosses the lines through the centres of each row."""
    rows, columns = max(bottom - top, 0), max(right - left, 0)
    if not rows or not columns:
        return np.zeros((rows, columns), bool)
    ends = np.roll(ring, -1, axis=0)
    downwards = ring[:, 1:] <= ends[:, 1:]
    upper, lower = np.where(downwards, ring, ends), np.where(downwards, ends, ring)  # the same from either side
    # Edge from y0 to y1 crosses the lines y = j + 0.5 with y0 <= j + 0.5 < y1.
    first = np.clip(np.ceil(upper[:, 1] - 0.5), top, bottom).astype(np.int64)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), top, bottom).astype(np.int64)
    count = last - first
    edge = np.repeat(np.arange(len(ring)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    x = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
    # Pixel i is to the right of the crossing, or on it, when i + 0.5 >= x.
    column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
    crossings = np.bincount((row - top) * (columns + 1) + column - left, minlength=rows * (columns + 1))
    odd = (crossings & 1).astype(np.uint8).reshape(rows, columns + 1)
    return np.bitwise_xor.accumulate(odd, axis=1)[:, :-1].astype(bool)
