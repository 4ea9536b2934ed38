# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Which values masks hold, so that rare classes come to both sides of a split; read once, see `check_cache`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from .check_cache import CheckCache, Entry, source_key
from .segmentation_data import open_picture, place_of
from .tolerance import Fault, is_tolerant, listed_faults
from .workers import cores_of_this_process

_VALUES = 1 << 24  # more than any mask of ids or colours holds
MOST_KEPT = 4096  # numbers of one mask


class MaskClasses:
    """The values in each of many masks.

    Args:
        masks: Paths or `{"bytes", "path"}` dictionaries.
        place: Where the data set lies.

    Attributes:
        faults: What is wrong with masks that cannot be read, by their position; see `tolerant_probes`.
    """

    def __init__(self, masks: Sequence[Any], place: str | os.PathLike):
        self._masks, self._place = masks, str(place)
        self._values: list[frozenset[int]] | None = None
        self.faults: dict[int, Fault] = {}

    def __getitem__(self, index: int) -> frozenset[int]:
        """Return the values in a mask; the first call reads all.

        Raises:
            ValueError: A mask cannot be read.
            StorageError: The same, for a reason that may pass.
        """
        if self._values is None:
            self._values = self._read()
        return self._values[index]

    def _read(self) -> list[frozenset[int]]:
        from tqdm.auto import tqdm

        cache = CheckCache(["values in masks", self._place], _VALUES)
        found: dict[str, Entry] = {}
        count, tolerant = len(self._masks), is_tolerant()  # threads have contexts of their own

        def read(index: int) -> frozenset[int]:
            key = source_key(self._masks[index])
            entry = cache.get(key)
            if entry is None:
                try:
                    entry = [0, *_histogram(self._masks[index])]
                except ValueError as error:
                    if not tolerant:
                        raise
                    place = place_of(self._masks[index])
                    self.faults[index] = Fault(place, str(error).removeprefix(f"annotation {place}: "))
                    return frozenset()
                if key is not None and len(entry) < MOST_KEPT:  # more is a picture, not a mask
                    found[key] = entry
            return frozenset(entry[1::2])

        pool = ThreadPoolExecutor(min(cores_of_this_process(1), 16))
        try:
            bar = tqdm(pool.map(read, range(count)), total=count, desc="reading masks", leave=False, delay=1)
            values = list(bar)
        finally:
            pool.shutdown(cancel_futures=True)
        self.faults = dict(sorted(self.faults.items()))
        if count and len(self.faults) == count:
            raise ValueError(listed_faults(f"{count} masks cannot be read", [*self.faults.values()]))
        cache.add(found, most=4 * count)
        return values


def _histogram(source: Any) -> list[int]:
    """Each value or colour in a mask and the number of its pixels, in turn."""
    mask: Image.Image = open_picture(source, f"annotation {place_of(source)}")
    if mask.mode in ("1", "L", "P"):
        counts = np.array(mask.histogram())  # many times faster than sorting
        values = np.flatnonzero(counts)
        return np.stack([values, counts[values]], axis=1).ravel().tolist()
    if mask.mode.startswith("I"):
        pixels = np.asarray(mask).astype(np.int64).clip(0, _VALUES - 1)
    else:
        pixels = np.asarray(mask.convert("RGB")).reshape(-1, 3) @ np.array([65536, 256, 1])
    return np.stack(np.unique(pixels, return_counts=True), axis=1).ravel().tolist()
