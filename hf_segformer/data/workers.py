# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Samples from worker processes, whose errors arrive as they were raised, and the cores that a process may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset


def cores_of_this_process(processes: int) -> int:
    """Return the cores that each of the processes on this machine gets when they share it evenly, at least 1.

    Args:
        processes: Number of processes of the run, for launchers that do not tell how many of them are here.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    # Linux alone tells which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // here, 1)


class WorkerDied(OSError):
    """A worker process ended before its time."""


class ErrorsAsValues(Dataset):
    """A data set whose errors about its files are values: a worker would wrap what it raises into its traceback.

    Args:
        samples: The data set.
    """

    def __init__(self, samples: Dataset):
        self.samples: Any = samples

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        """Return a sample, or the `ValueError` or `OSError` that reading it raised."""
        try:
            return self.samples[index]
        except (ValueError, OSError) as error:
            return error


class Collate:
    """Makes a batch, or lets the first error of its samples through.

    Args:
        collate: Makes a batch of a list of samples.
    """

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, samples: list) -> Any:
        """Return the batch, or the error."""
        errors = [sample for sample in samples if isinstance(sample, Exception)]
        return errors[0] if errors else self.collate(samples)


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """Yield the batches of a loader over `ErrorsAsValues`.

    Raises:
        ValueError, OSError: What reading a sample raised, as it was.
        WorkerDied: A worker process was killed.
    """
    try:
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).split("\n")[0]
        raise WorkerDied(f"{reason}; if memory ran out, take fewer --num_workers or a smaller --batch_size") from error
