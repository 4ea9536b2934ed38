# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a data set holds, for people: pictures, their sizes, and the share of each class of the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..texts import columns, one_line, padded
from .segmentation_data import MissingSplit, SegmentationData, check_sample, undecoded
from .workers import cores_of_this_process

SPLITS = ("train", "validation")
_NAME_LIMIT = 40


@dataclass
class SplitOverview:
    """What a split holds.

    Attributes:
        pictures: Number of samples.
        rows: Positions of those that were read.
        sizes: Number of pictures of each (width, height).
        pixels: Pixels of each of the K classes, and of none, which come last.
        occurrences: Pictures in which each of them occurs.
    """

    pictures: int
    rows: list[int]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: Any = 0
    occurrences: Any = 0

    @property
    def shares(self) -> np.ndarray:
        """Parts of all pixels that each class has, and at the end the ignored ones."""
        return self.pixels / max(self.pixels.sum(), 1)

    def describe_sizes(self) -> str:
        """The sizes in a few words."""
        if len(self.sizes) <= 3:
            return ", ".join(f"{width}x{height}" for width, height in sorted(self.sizes))
        widths, heights = zip(*self.sizes, strict=True)
        (width, height), count = self.sizes.most_common(1)[0]
        spans = f"{min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high"
        return f"{spans}; {len(self.sizes)} sizes, most often {width}x{height} ({count})"


def spread(count: int, wanted: int | None) -> list[int]:
    """At most `wanted` evenly spaced positions of `count`, the first and the last among them; all for None."""
    if wanted is None or count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted)]


def look_at(data: SegmentationData, max_samples: int | None = None) -> dict[str, SplitOverview]:
    """Read the annotations of a data set.

    Args:
        data: The data set.
        max_samples: Samples to read of each split, evenly spaced; None reads all.

    Returns:
        What each split holds; without splits that are not there.

    Raises:
        ValueError: A sample is bad, or a split is empty.
        StorageError: A file could not be read for a reason that may pass.
    """
    found = {}
    for split in SPLITS:
        if not isinstance(getattr(data, split), MissingSplit):
            found[split] = _look_at_split(data, split, max_samples)
    return found


def _look_at_split(data: SegmentationData, split: str, max_samples: int | None) -> SplitOverview:
    from tqdm.auto import tqdm

    rows = undecoded(getattr(data, split))
    if not len(rows):
        raise ValueError(f"{split} of {data.name!r} holds no samples")
    seen = SplitOverview(len(rows), spread(len(rows), max_samples))

    def look(row: int) -> tuple[tuple[int, int], np.ndarray]:
        label = check_sample(rows[row], data.annotation_format, split, row)
        counts = np.bincount(label[label != data.ignore_index], minlength=data.num_classes)
        return label.shape[::-1], np.append(counts, label.size - counts.sum())

    with ThreadPoolExecutor(cores_of_this_process(1)) as pool:
        results = pool.map(look, seen.rows)
        shown = {"desc": f"reading {split}", "total": len(seen.rows), "leave": False, "disable": None}  # on terminals
        for size, counts in tqdm(results, **shown):
            seen.sizes[size] += 1
            seen.pixels = seen.pixels + counts
            seen.occurrences = seen.occurrences + (counts > 0)
    return seen


def describe(data: SegmentationData, found: Mapping[str, SplitOverview]) -> str:
    """The overview as text.

    Args:
        data: The data set.
        found: What `look_at` saw in it.
    """
    title = f"{one_line(data.name)}: {data.num_classes} classes, ignored label {data.ignore_index}"
    lines = [title, "", f"{'split':<12}{'pictures':>10}  width x height"]
    for split in SPLITS:
        if split not in found:
            lines.append(f"{split:<12}{'none':>10}  {one_line(getattr(data, split).reason)}")
            continue
        seen = found[split]
        part = "" if len(seen.rows) == seen.pictures else f" (of {len(seen.rows)} that were read)"
        lines.append(f"{split:<12}{seen.pictures:>10}  {seen.describe_sizes()}{part}")
    return "\n".join([*lines, "", *_class_lines(data, found.values()), "", *_notes(data, found)]).rstrip()


def _class_lines(data: SegmentationData, splits: Iterable[SplitOverview]) -> list[str]:
    names = [*(one_line(name, _NAME_LIMIT) for name in data.class_names), "(ignored)"]
    ids, splits = [*map(str, range(data.num_classes)), ""], list(splits)
    width = max(columns(name) for name in names)
    head = f"{'id':>4}  {padded('class', width)}" + f"{'pixels %':>12}{'pictures':>10}" * len(splits)
    lines = [head, "-" * len(head)]
    for index, name in enumerate(names):
        cells = (f"{100 * seen.shares[index]:>12.2f}{seen.occurrences[index]:>10}" for seen in splits)
        lines.append(f"{ids[index]:>4}  {padded(name, width)}{''.join(cells)}")
    columns_of = f"{'':>4}  {padded('', width)}" + "".join(f"{split:>22}" for split in SPLITS[: len(splits)])
    return [columns_of.rstrip(), *lines] if len(splits) > 1 else lines


def _notes(data: SegmentationData, found: Mapping[str, SplitOverview]) -> list[str]:
    notes = []
    for split, seen in found.items():
        absent = [name for name, count in zip(data.class_names, seen.pixels, strict=False) if not count]
        if absent:
            shown = ", ".join(one_line(name, _NAME_LIMIT) for name in absent[:10])
            notes.append(f"no pixel in {split}: {shown}" + (f" and {len(absent) - 10} more" * (len(absent) > 10)))
    return notes
