# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Samples in a stream, dealt out to the processes of a run, for training loops that want no random access."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .segmentation_data import SegmentationData, undecoded

if TYPE_CHECKING:
    import datasets


def stream_split(
    data: SegmentationData,
    split: str = "train",
    rank: int = 0,
    world_size: int = 1,
    shards_per_process: int = 8,
    shuffle_seed: int | None = None,
    shuffle_buffer: int = 1000,
) -> datasets.IterableDataset:
    """Return one process's part of a split as a stream.

    Every sample comes to exactly one process, and there to one worker of a `DataLoader`. Processes may get one
    sample more than others. `examples/train.py` does not use streams: it repeats a run exactly from any step, which
    takes random access.

    Args:
        data: Data set, read from files or with `load_hub(..., streaming=True)`.
        split: `"train"` or `"validation"`.
        rank: 0..world_size-1.
        world_size: Number of processes.
        shards_per_process: Parts that a split read from files is cut into for each process; its `DataLoader` can use
            as many workers. A streamed data set has as many parts as files.
        shuffle_seed: Seed of the order, the same in all processes; None keeps the order. `set_epoch` on the result
            changes the order from epoch to epoch.
        shuffle_buffer: Samples kept in memory to draw the next one from.

    Returns:
        `datasets.IterableDataset` with the columns of the split, pictures as `{"bytes", "path"}`: `read_sample` reads
        its rows, also as the `collate_fn` of a `DataLoader` with `batch_size=None`.

    Raises:
        ValueError: The split is missing or `rank` out of range.
    """
    import datasets
    from datasets.distributed import split_dataset_by_node

    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
    rows = undecoded(getattr(data, split))
    if isinstance(rows, datasets.Dataset):
        parts = min(world_size * shards_per_process, max(len(rows) // world_size * world_size, 1))
        rows = rows.to_iterable_dataset(num_shards=parts)
    if shuffle_seed is not None:
        rows = rows.shuffle(seed=shuffle_seed, buffer_size=shuffle_buffer)
    return split_dataset_by_node(rows, rank, world_size)
