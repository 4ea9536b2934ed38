# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks a data set at the door, before a training run wastes time on it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .samples import MissingSplit, SegmentationData, read_sample, undecoded

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "validation")
SHOWN_ERRORS = 5


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` saw.

    Attributes:
        checked: Samples read, by split (`train`, `validation`), without splits that were not checked.
        pixel_counts: Pixels of each of the K classes in them, by split.
        ignored_pixels: Pixels with the ignored label in them, by split.
    """

    checked: dict[str, int]
    pixel_counts: dict[str, tuple[int, ...]]
    ignored_pixels: dict[str, int]


def check_dataset(
    data: SegmentationData,
    max_samples: int = 1000,
    num_workers: int | None = None,
    splits: Sequence[str] | None = None,
) -> DatasetReport:
    """Read samples of the splits to their end and check sizes and label ranges.

    Args:
        data: The data set.
        max_samples: A split with more samples than this is checked at that many evenly spaced ones, the first and the
            last among them, or of a streamed split at its first ones; smaller splits are checked whole. At least 1.
        num_workers: Threads that read; None takes one per processor, at most 8.
        splits: `"train"`, `"validation"` or both, which then have to be there; None for those that are.

    Returns:
        What was seen. Classes without a single pixel in the checked training samples are announced as a warning.

    Raises:
        ValueError: A split is missing or empty, or samples are unreadable, differ in size from their annotation or
            hold labels that are not allowed. All of them are counted, and the first five described with their file
            names.
    """
    if max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples}")
    threads = num_workers or min(os.cpu_count() or 1, 8)
    checked, pixels, ignored = {}, {}, {}
    for split in splits or [name for name in SPLITS if not isinstance(getattr(data, name), MissingSplit)]:
        if split not in SPLITS:
            raise ValueError(f"splits may hold {' and '.join(SPLITS)}, got {split!r}")
        counts = _read_split(data, undecoded(getattr(data, split)), split, max_samples, threads)
        checked[split] = len(counts)
        totals = np.sum(counts, axis=0)
        pixels[split], ignored[split] = tuple(totals[:-1].tolist()), int(totals[-1])
    report = DatasetReport(checked, pixels, ignored)
    _warn_about_absent_classes(data, report)
    return report


def _read_split(
    data: SegmentationData,
    rows: datasets.Dataset | datasets.IterableDataset,
    split: str,
    max_samples: int,
    threads: int,
) -> list[np.ndarray]:
    """Return pixels per class, and ignored ones last, of each checked sample."""

    def count(example: Mapping[str, Any]) -> np.ndarray | str:
        try:
            _, label = read_sample(example, data.annotation_format)
        except ValueError as error:
            return str(error)
        counts = np.bincount(label[label != data.ignore_index], minlength=data.num_classes)
        return np.append(counts, label.size - counts.sum())

    if hasattr(rows, "__len__"):
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(lambda index: count(rows[index]), _evenly_spaced(len(rows), max_samples)))
    else:
        results = [count(example) for example in rows.take(max_samples)]
    if not results:
        raise ValueError(f"{data.name}: the {split} split is empty")
    errors = [result for result in results if isinstance(result, str)]
    if errors:
        more = f"\n  ... and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise ValueError(
            f"{data.name}: {len(errors)} of {len(results)} checked {split} samples are wrong:\n  "
            + "\n  ".join(errors[:SHOWN_ERRORS])
            + more
        )
    return results


def _evenly_spaced(length: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(int)).tolist()


def _warn_about_absent_classes(data: SegmentationData, report: DatasetReport) -> None:
    counts = report.pixel_counts.get("train", (1,) * data.num_classes)
    absent = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if not absent:
        return
    mask_format = data.annotation_format.mask_format
    binary_read_as_ids = data.num_classes == 2 and mask_format == "ids" and report.ignored_pixels["train"] > 0
    hint = "; if these are 0/255 masks, use mask_format 'binary'" if binary_read_as_ids else ""
    of_all = f" (of {len(data.train)})" if hasattr(data.train, "__len__") else ""
    warnings.warn(
        f"{data.name}: no pixel of {', '.join(absent)} in the {report.checked['train']} checked training samples"
        f"{of_all}; the model cannot learn what it never sees{hint}",
        stacklevel=3,
    )
