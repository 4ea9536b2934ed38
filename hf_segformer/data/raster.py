# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Integer rasterisation for the drawn data set: random draws, noise fields, shapes and the canvas they are painted on.

Every operation is integer arithmetic on raw Philox output, so the same key gives the same pixels on any machine and
with any NumPy version (the streams of `np.random.Generator` methods may change between versions, the bit generators
may not).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Colour = tuple[int, int, int]
Option = TypeVar("Option")


class Draws:
    """Random integers from one Philox key.

    Args:
        key: Any non-negative integer below 2**128.
    """

    def __init__(self, key: int):
        self._bits = np.random.Philox(key=key)

    def integer(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both ends included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def chance(self, percent: int) -> bool:
        """Return True in `percent` of 100 calls."""
        return self.integer(0, 99) < percent

    def pick(self, options: Sequence[Option]) -> Option:
        """Return one of `options`, each equally likely."""
        return options[self.integer(0, len(options) - 1)]

    def bytes(self, height: int, width: int) -> np.ndarray:
        """Return an int32 (height, width) array of values in 0..255."""
        raw = self._bits.random_raw(-(-height * width // 8)).astype("<u8")
        return raw.view(np.uint8)[: height * width].reshape(height, width).astype(np.int32)

    def colour(self, options: Sequence[Colour], jitter: int) -> Colour:
        """Return one of `options` with brightness and channels moved by up to `jitter` levels each."""
        red, green, blue = self.pick(options)
        shift = self.integer(-jitter, jitter)
        red, green, blue = (
            min(max(channel + shift + self.integer(-jitter, jitter) // 2, 0), 255) for channel in (red, green, blue)
        )
        return red, green, blue


def value_noise(draws: Draws, height: int, width: int, cell_y: int, cell_x: int) -> np.ndarray:
    """Return smooth noise: bytes on a lattice of `cell_y` x `cell_x` pixels, interpolated linearly.

    Returns:
        int32 (height, width) in -128..127.
    """
    lattice = draws.bytes(height // cell_y + 2, width // cell_x + 2)
    row, down = np.divmod(np.arange(height, dtype=np.int32), cell_y)
    column, right = np.divmod(np.arange(width, dtype=np.int32), cell_x)
    rows = lattice[row] * (cell_y - down)[:, None] + lattice[row + 1] * down[:, None]
    return (rows[:, column] * (cell_x - right) + rows[:, column + 1] * right) // (cell_y * cell_x) - 128


class Shape(NamedTuple):
    """A mask on a window of the canvas."""

    rows: slice
    columns: slice
    mask: np.ndarray  # bool, the window's size


class Canvas:
    """Picture and label map that grow together.

    Args:
        height: Pixels.
        width: Pixels.
    """

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.image = np.zeros((height, width, 3), np.int32)
        self.label = np.zeros((height, width), np.uint8)

    def _window(self, left: int, top: int, right: int, bottom: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
        """Clip a box (right and bottom excluded) and return its slices, row and column coordinates."""
        top, left = max(top, 0), max(left, 0)
        bottom, right = max(min(bottom, self.height), top), max(min(right, self.width), left)
        rows, columns = np.arange(top, bottom)[:, None], np.arange(left, right)[None]
        return slice(top, bottom), slice(left, right), rows, columns

    def box(self, left: int, top: int, right: int, bottom: int) -> Shape:
        """Return the rectangle of columns left..right-1 and rows top..bottom-1."""
        rows, columns, y, x = self._window(left, top, right, bottom)
        return Shape(rows, columns, np.ones((y.size, x.size), bool))

    def grid(
        self, left: int, top: int, columns: int, rows: int, cell: tuple[int, int], pitch: tuple[int, int]
    ) -> Shape:
        """Return `columns` x `rows` rectangles of `cell` (width, height), one every `pitch` from (left, top)."""
        row_slice, column_slice, y, x = self._window(left, top, left + columns * pitch[0], top + rows * pitch[1])
        mask = ((x - left) % pitch[0] < cell[0]) & ((y - top) % pitch[1] < cell[1])
        return Shape(row_slice, column_slice, mask)

    def ellipse(self, x: int, y: int, radius_x: int, radius_y: int) -> Shape:
        """Return the ellipse around the centre of pixel (x, y)."""
        rows, columns, down, right = self._window(x - radius_x, y - radius_y, x + radius_x + 1, y + radius_y + 1)
        reach_x, reach_y = (2 * radius_x + 1) ** 2, (2 * radius_y + 1) ** 2
        distance = 4 * (right - x) ** 2 * reach_y + 4 * (down - y) ** 2 * reach_x
        return Shape(rows, columns, distance <= reach_x * reach_y)

    def polygon(self, *points: tuple[int, int]) -> Shape:
        """Return the convex polygon with corners (x, y) in clockwise order as seen on the picture."""
        xs, ys = zip(*points, strict=True)
        rows, columns, y, x = self._window(min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        mask = np.ones((y.size, x.size), bool)
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            mask &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
        return Shape(rows, columns, mask)

    def below(self, profile: np.ndarray) -> Shape:
        """Return all pixels on and below `profile`, one row number per column."""
        top = min(max(int(profile.min()), 0), self.height)
        rows, columns, y, _ = self._window(0, top, self.width, self.height)
        return Shape(rows, columns, y >= profile[None])

    def ribbon(self, left: int, profile: np.ndarray, thickness: int) -> Shape:
        """Return `thickness` rows from `profile` on, whose first element belongs to column `left`."""
        skip = max(-left, 0)
        profile = profile[skip : max(self.width - left, 0)]
        if not profile.size:
            return self.box(0, 0, 0, 0)
        rows, columns, y, _ = self._window(
            left + skip, int(profile.min()), left + skip + profile.size, int(profile.max()) + thickness
        )
        return Shape(rows, columns, (y >= profile[None]) & (y < profile[None] + thickness))

    def paint(
        self, shape: Shape, colour: Colour | np.ndarray, class_id: int, texture: np.ndarray | None = None
    ) -> None:
        """Cover `shape` with a colour plus a texture.

        Args:
            shape: Where.
            colour: One colour, or an int array that broadcasts to (height, width, 3) of the canvas.
            class_id: Label of the covered pixels.
            texture: Brightness offsets, int (height, width) of the canvas.
        """
        window = np.asarray(colour, np.int32)
        if window.ndim > 1:
            window = np.broadcast_to(window, self.image.shape)[shape.rows, shape.columns]
        if texture is not None:
            window = window + texture[shape.rows, shape.columns, None]
        np.copyto(self.image[shape.rows, shape.columns], window, where=shape.mask[..., None])
        self.label[shape.rows, shape.columns][shape.mask] = class_id

    def shade(self, shape: Shape, percent: int) -> None:
        """Scale the brightness of `shape` to `percent`; labels stay."""
        window = self.image[shape.rows, shape.columns]
        np.copyto(window, window * percent // 100, where=shape.mask[..., None])
