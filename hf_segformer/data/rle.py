# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Areas as lengths of runs: lists of numbers, and the strings that COCO packs them into.

Runs are in turn outside and inside, the first one outside (0 long if need be). A COCO string writes each run in groups
of 5 bits, lowest first, as characters from "0" on, with 32 added to all but the last; from the fourth run on it is
not the run that is written but its difference to the run two before, and the highest bit of the last group is a sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..texts import short_repr
from .annotated import Runs

_MAX_GROUPS = 10  # of 5 bits in one number


def make_runs(
    counts: Any, height: int, width: int, place: str, x: int = 0, y: int = 0, column_major: bool = True
) -> Runs:
    """Return runs that fill a box.

    Args:
        counts: List of lengths, or a COCO string.
        height: Rows of the box.
        width: Columns of the box.
        place: What to call the shape in messages.
        x: Left column of the box in the picture.
        y: Top row of the box in the picture.
        column_major: Whether they go down the columns.

    Raises:
        ValueError: These are no runs, or they do not add up to height * width.
    """
    if isinstance(counts, (str, bytes)):
        runs = decode_coco(counts, place)
    else:
        try:
            runs = np.array(counts)
        except (TypeError, ValueError, OverflowError):
            runs = np.zeros((), object)
        if runs.size == 0:
            runs = np.zeros(0, np.int64)
        if runs.ndim != 1 or runs.dtype.kind not in "iu":
            raise ValueError(f"{place}: RLE counts must be a list of integers or a string, got {short_repr(counts)}")
        runs = runs.astype(np.int64)
    if runs.size and not 0 <= runs.min() <= runs.max() <= height * width:
        wrong = int(runs.min() if runs.min() < 0 else runs.max())
        raise ValueError(f"{place}: RLE runs must lie in 0..{height * width} (height * width), got {wrong}")
    if (total := int(runs.sum())) != height * width:
        raise ValueError(
            f"{place}: RLE runs must add up to height * width = {height} * {width} = {height * width}, got {total}"
        )
    return Runs(runs, height, width, x, y, column_major)


def decode_coco(text: str | bytes, place: str = "RLE") -> np.ndarray:
    """Return the runs in a COCO string, int64.

    Raises:
        ValueError: It holds characters that are none of the code, or ends in the middle of a number.
    """
    try:
        codes = np.frombuffer(text if isinstance(text, bytes) else text.encode("ascii"), np.uint8).astype(np.int64)
    except UnicodeEncodeError:
        codes = np.full(1, -1)
    codes = codes - ord("0")
    if codes.size and not 0 <= codes.min() <= codes.max() < 64:
        raise ValueError(f"{place}: an RLE string has characters from '0' to 'o' only, got {short_repr(text)}")
    if not codes.size:
        return np.zeros(0, np.int64)
    last = codes < 32
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not last[-1] or (ends - starts).max() >= _MAX_GROUPS:
        raise ValueError(f"{place}: the RLE string is cut off or damaged, got {short_repr(text)}")
    position = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << (5 * position), starts)
    negative = (codes[ends] & 16) != 0
    values[negative] -= 1 << (5 * (ends - starts + 1)[negative])
    # Runs 3, 5, 7, ... add up from run 1, and runs 4, 6, ... from run 2; run 0 stands alone.
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def encode_coco(counts: np.ndarray) -> str:
    """Return runs as a COCO string, the inverse of `decode_coco`."""
    text = []
    for index, count in enumerate(counts):
        value = int(count) - (int(counts[index - 2]) if index > 2 else 0)
        while True:
            group = value & 31
            value >>= 5
            done = value == (-1 if group & 16 else 0)
            text.append(chr(ord("0") + group + (0 if done else 32)))
            if done:
                break
    return "".join(text)


def runs_of(pixels: np.ndarray, column_major: bool = True) -> np.ndarray:
    """Return the runs of a bool (height, width) array."""
    flat = pixels.ravel(order="F" if column_major else "C")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], edges, [flat.size]]))


def pixels_of(runs: Runs) -> np.ndarray:
    """Return runs as a bool (height, width) array."""
    inside = np.arange(len(runs.counts)) % 2 == 1
    flat = np.repeat(inside, runs.counts)
    return flat.reshape(runs.height, runs.width, order="F" if runs.column_major else "C")
