# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks a data set at the door, before a training run wastes time on it."""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .check_cache import CheckCache, Entry, sample_key
from .files import StorageError
from .segmentation_data import MissingSplit, SegmentationData, check_sample, place_of, undecoded
from .training_samples import ON_BAD_SAMPLE
from .workers import cores_of_this_process

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

SPLITS = ("train", "validation")
SHOWN_ERRORS = 10
STREAMED_SAMPLES = 1000  # checked of a stream, which may have no end
CHUNK = 32  # samples that a thread takes at a time


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` saw.

    Attributes:
        checked: Samples read, now or by an earlier check, by split (`train`, `validation`), without splits that were
            not checked.
        pixel_counts: Pixels of each of the K classes in them, by split.
        ignored_pixels: Pixels with the ignored label in them, by split.
        bad: What is wrong with training samples that are passed over, by split; without splits that have none.
    """

    checked: dict[str, int]
    pixel_counts: dict[str, tuple[int, ...]]
    ignored_pixels: dict[str, int]
    bad: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class _Found:
    """What one process, or all of them, found in a split."""

    checked: int = 0
    counts: Any = 0  # pixels per class, and ignored ones last
    errors: dict[int, str] = field(default_factory=dict)  # by row
    good: dict[str, Entry] = field(default_factory=dict)  # for the cache
    storage_error: str | None = None

    def __iadd__(self, other: _Found) -> _Found:
        self.checked += other.checked
        self.counts = self.counts + other.counts
        self.errors |= other.errors
        self.good |= other.good
        self.storage_error = self.storage_error or other.storage_error
        return self


def check_dataset(
    data: SegmentationData,
    max_samples: int | None = None,
    num_workers: int | None = None,
    splits: Sequence[str] | None = None,
    *,
    seconds: float = 0.0,
    on_bad_sample: str = "stop",
    accelerator: Accelerator | None = None,
) -> DatasetReport:
    """Read the samples of the splits to their end and check sizes and label ranges.

    What was found good is remembered (see `check_cache`), so that a second check reads only files that are new or
    have changed.

    Args:
        data: The data set.
        max_samples: A split with more samples than this is checked at that many evenly spaced ones, the first and the
            last among them, or of a streamed split at its first ones; smaller splits are checked whole. At least 1;
            None checks all, and the first 1,000 of a streamed split.
        num_workers: Threads that read; None takes this process's part of the processors.
        splits: `"train"`, `"validation"` or both, which then have to be there; None for those that are.
        seconds: Time after which the rest stays unchecked, which is announced as a warning; 0 sets no limit.
        on_bad_sample: `"stop"` raises when a sample is bad. `"skip"` announces bad training samples as a warning,
            unless all are bad; validation samples must all be good, because a metric over fewer of them cannot be
            compared.
        accelerator: Its processes share the work and learn the same; every process must make this call then.

    Returns:
        What was seen. Classes without a single pixel in the checked training samples are announced as a warning.

    Raises:
        ValueError: A split is missing or empty, or samples are unreadable, differ in size from their annotation or
            hold labels that are not allowed. All of them are counted, and the first ten described with their file
            names.
        StorageError: A file could not be read for a reason that may pass.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples}")
    if on_bad_sample not in ON_BAD_SAMPLE:
        raise ValueError(f"on_bad_sample must be one of {', '.join(ON_BAD_SAMPLE)}, got {on_bad_sample!r}")
    asked = splits or [name for name in SPLITS if not isinstance(getattr(data, name), MissingSplit)]
    rows = {split: _rows(data, split) for split in asked}
    checks = _Checks(data, max_samples, num_workers, seconds, accelerator)
    # The smallest first, so that a time limit leaves unchecked what matters least.
    order = sorted(rows, key=lambda split: len(rows[split]) if hasattr(rows[split], "__len__") else math.inf)
    found = {split: checks.run(rows[split], split) for split in order}
    _judge({split: found[split] for split in asked}, data, on_bad_sample, checks.is_main)
    report = DatasetReport(
        {split: found[split].checked for split in asked},
        {split: tuple(found[split].counts[:-1].tolist()) for split in asked},
        {split: int(found[split].counts[-1]) for split in asked},
        {split: tuple(found[split].errors.values()) for split in asked if found[split].errors},
    )
    if checks.is_main:
        _warn_about_unchecked(data, rows, report, max_samples, seconds)
        _warn_about_absent_classes(data, report)
    return report


def _rows(data: SegmentationData, split: str) -> datasets.Dataset | datasets.IterableDataset:
    if split not in SPLITS:
        raise ValueError(f"splits may hold {' and '.join(SPLITS)}, got {split!r}")
    rows = undecoded(getattr(data, split))
    if hasattr(rows, "__len__") and not len(rows):
        raise ValueError(f"{data.name}: the {split} split is empty")
    return rows


class _Checks:
    """Reads samples: this process's part of them, in several threads, until the time is up."""

    def __init__(
        self,
        data: SegmentationData,
        max_samples: int | None,
        num_workers: int | None,
        seconds: float,
        accelerator: Accelerator | None,
    ) -> None:
        self.data, self.max_samples, self.accelerator = data, max_samples, accelerator
        self.deadline = time.monotonic() + seconds if seconds else math.inf
        self.rank: int = accelerator.process_index if accelerator else 0
        self.processes: int = accelerator.num_processes if accelerator else 1
        self.is_main = self.rank == 0
        self.threads = num_workers or min(cores_of_this_process(self.processes), 16)
        self.stopped = threading.Event()

    def run(self, rows: datasets.Dataset | datasets.IterableDataset, split: str) -> _Found:
        """Check a split; every process returns what all of them found."""
        cache = CheckCache(self._settings(rows, split), self.data.num_classes)
        found = _Found(counts=np.zeros(self.data.num_classes + 1, np.int64))
        if hasattr(rows, "__len__"):
            self._read_chunks(rows, split, cache, found)
        elif self.is_main:
            examples = enumerate(rows.take(self.max_samples or STREAMED_SAMPLES))
            found += self._read(examples, split, cache)
        if self.processes > 1:
            found = self._gathered(found)
        if self.accelerator is None or self.accelerator.is_local_main_process:
            cache.add(found.good, most=4 * len(rows) if hasattr(rows, "__len__") else 4 * found.checked)
        if found.storage_error is not None:  # raised here and not where it arose, so that all processes stop
            raise StorageError(found.storage_error)
        if not found.checked and not hasattr(rows, "__len__"):
            raise ValueError(f"{self.data.name}: the {split} split is empty")
        found.errors = dict(sorted(found.errors.items()))
        return found

    def _settings(self, rows: datasets.Dataset | datasets.IterableDataset, split: str) -> list:
        """What decides about a result beside the files, and tells data sets apart."""
        reading = {k: v for k, v in asdict(self.data.annotation_format).items() if k != "explain"}
        first = place_of(rows[0]["image"], rows[0].get("file_name")) if hasattr(rows, "__len__") else ""
        return [self.data.name, split, os.path.dirname(os.path.abspath(first)), reading, self.data.ignore_index]

    def _read_chunks(self, rows: datasets.Dataset, split: str, cache: CheckCache, found: _Found) -> None:
        from tqdm.auto import tqdm

        indices = _evenly_spaced(len(rows), self.max_samples or len(rows))
        chunks = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
        # In a random order, so that what a time limit leaves unchecked lies everywhere.
        mine = np.random.default_rng(0).permutation(len(chunks))[self.rank :: self.processes].tolist()

        def read(chunk: list[int]) -> _Found:
            if self._must_stop():
                return _Found()
            batch = rows[chunk]
            examples = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
            return self._read(zip(chunk, examples, strict=True), split, cache)

        total = sum(len(chunks[number]) for number in mine)
        shown = {"desc": f"checking {split}", "unit": "sample", "leave": False, "delay": 1}
        bar = tqdm(total=total, **shown, disable=None if self.is_main else True)  # None: on terminals
        pool = ThreadPoolExecutor(self.threads)
        try:
            with bar:
                for part in pool.map(read, [chunks[number] for number in mine]):
                    found += part
                    bar.update(part.checked)
        finally:
            self.stopped.set()
            pool.shutdown(cancel_futures=True)
            if found.storage_error is None:
                self.stopped.clear()

    def _must_stop(self) -> bool:
        return self.stopped.is_set() or time.monotonic() > self.deadline

    def _read(self, examples: Iterable[tuple[int, Mapping[str, Any]]], split: str, cache: CheckCache) -> _Found:
        found = _Found(counts=np.zeros(self.data.num_classes + 1, np.int64))
        for index, example in examples:
            if self._must_stop():
                break
            key = sample_key(example)
            entry = cache.get(key)
            try:
                if entry is None:
                    entry = self._entry(check_sample(example, self.data.annotation_format, split, index))
                    if key is not None:
                        found.good[key] = entry
                found.counts[-1] += entry[0]
                classes, pixels = np.array(entry[1:], np.int64).reshape(-1, 2).T  # none where all are ignored
                found.counts[classes] += pixels
            except StorageError as error:
                found.storage_error = str(error)
                self.stopped.set()
                break
            except ValueError as error:
                found.errors[index] = str(error)
            found.checked += 1
        return found

    def _entry(self, label: np.ndarray) -> Entry:
        """Count the pixels of each class and the ignored ones."""
        if label.dtype == np.uint8:
            counts = np.array(Image.fromarray(label).histogram())  # several times faster than np.bincount
            if 0 <= self.data.ignore_index < 256:
                counts[self.data.ignore_index] = 0
        else:
            counts = np.bincount(label[label != self.data.ignore_index], minlength=1)
        present = np.flatnonzero(counts)
        pairs = np.stack([present, counts[present]], axis=1).ravel().tolist()
        return [int(label.size - counts.sum()), *pairs]

    def _gathered(self, mine: _Found) -> _Found:
        from accelerate.utils import gather_object

        parts = gather_object([mine])
        for part in parts[1:]:
            parts[0] += part
        return parts[0]


def _evenly_spaced(length: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(int)).tolist()


def _judge(found: Mapping[str, _Found], data: SegmentationData, on_bad_sample: str, is_main: bool) -> None:
    """Raise or, for training samples that shall be skipped, warn when samples are bad."""
    messages = {split: _describe(data, split, part) for split, part in found.items() if part.errors}
    skipped = []
    if on_bad_sample == "skip":
        skipped = [split for split in messages if split == "train" and len(found[split].errors) < found[split].checked]
        if "validation" in messages:
            messages["validation"] += (
                "\n  on_bad_sample=skip passes over training samples only: a metric over fewer validation samples "
                "cannot be compared; repair these or take them out of the data set"
            )
    fatal = [message for split, message in messages.items() if split not in skipped]
    if fatal:
        raise ValueError("\n".join(fatal))
    for split in skipped if is_main else ():
        warnings.warn(f"{messages[split]}\n  other samples will be taken instead of them", stacklevel=3)


def _describe(data: SegmentationData, split: str, found: _Found) -> str:
    errors = list(found.errors.values())
    more = f"\n  ... and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
    head = f"{data.name}: {len(errors)} of {found.checked} checked {split} samples are wrong:\n  "
    return head + "\n  ".join(errors[:SHOWN_ERRORS]) + more


def _warn_about_unchecked(
    data: SegmentationData, rows: Mapping[str, Any], report: DatasetReport, max_samples: int | None, seconds: float
) -> None:
    for split, part in rows.items():
        wanted = min(max_samples or len(part), len(part)) if hasattr(part, "__len__") else 0
        if report.checked[split] < wanted:
            warnings.warn(
                f"{data.name}: checked {report.checked[split]:,} of {len(part):,} {split} samples, then the "
                f"{seconds:g} seconds of check_seconds were over; the next check goes on with the rest",
                stacklevel=3,
            )


def _warn_about_absent_classes(data: SegmentationData, report: DatasetReport) -> None:
    counts = report.pixel_counts.get("train", (1,) * data.num_classes)
    absent = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if not absent or not report.checked["train"]:
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
