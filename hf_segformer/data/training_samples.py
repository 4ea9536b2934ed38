# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training samples by draw number: what step s of a run sees depends on the seed and s only.

A run consumes draws 0, 1, 2, ... Each draw has one image (from the permutation of its epoch) and one random generator
(seeded by the draw), so neither the number of workers nor a restart changes anything, and no position has to be stored
or skipped to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate

if TYPE_CHECKING:
    from .segmentation_data import SegmentationData


ON_BAD_SAMPLE = ("stop", "skip")
MAX_ATTEMPTS = 20  # samples tried for one draw
REASON_LENGTH = 500  # characters kept of what is wrong with a sample


class TrainingSamples(Dataset):
    """Augmented training samples, indexed by draw number n >= 0.

    Draw n is image `permutation(seed, n // len(self))[n % len(self)]`, augmented by a generator seeded with (seed, n).

    Args:
        data: Data set whose `train` split is drawn from.
        transform: `(image, label, generator) -> (float32 (3, h, w), int64 (h, w))`, for instance `TrainingTransform`.
        seed: Non-negative integer.
        on_bad_sample: What to do about samples whose files are damaged, missing or wrong. `"stop"` raises.
            `"skip"` takes another image instead, which follows from (seed, draw, attempt) alone; a sample that cannot
            be read for a reason that may pass (`StorageError`) is never skipped.

    Raises:
        ValueError: `seed` is negative, or there is no such `on_bad_sample`.
    """

    def __init__(
        self,
        data: SegmentationData,
        transform: Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]],
        seed: int = 0,
        on_bad_sample: str = "stop",
    ):
        from .segmentation_data import undecoded

        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if on_bad_sample not in ON_BAD_SAMPLE:
            raise ValueError(f"on_bad_sample must be one of {', '.join(ON_BAD_SAMPLE)}, got {on_bad_sample!r}")
        self._rows = undecoded(data.train)
        self._annotation_format = data.annotation_format
        self.transform = transform
        self.seed = seed
        self.on_bad_sample = on_bad_sample
        self._order: tuple[int, np.ndarray] | None = None  # epoch and its permutation

    def __len__(self) -> int:
        """Number of images, which is the number of draws in an epoch."""
        return len(self._rows)

    def index_of(self, draw: int) -> int:
        """Return the row of the data set that draw number `draw` shows."""
        epoch, position = divmod(draw, len(self))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch, 0]).permutation(len(self)))
        return int(self._order[1][position])

    def file_of(self, draw: int) -> str:
        """Return where to find the picture of a draw (its path, or its name and row), without decoding it."""
        return self._place(self.index_of(draw))

    def _place(self, index: int) -> str:
        from .segmentation_data import place_of

        row = self._rows[index]
        return place_of(row["image"], row.get("file_name"), index)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """Return a draw's sample.

        Returns:
            `pixel_values` float32 (3, h, w), `labels` int64 (h, w), and `bad_samples`, the list of those passed over
            for it, each with `draw`, `attempt`, `file_name` and `reason`.

        Raises:
            ValueError: The sample's files are bad, or with `"skip"` those of all samples tried; see `read_sample`.
            StorageError: A file could not be read for a reason that may pass.
        """
        if self.on_bad_sample == "stop":
            return self._sample(draw, 0, self.index_of(draw)) | {"bad_samples": []}
        bad: list[dict[str, Any]] = []
        for attempt, index in enumerate(self._candidates(draw)):
            try:
                return self._sample(draw, attempt, index) | {"bad_samples": bad}
            except BadSample as error:
                reason = str(error)[:REASON_LENGTH]
                bad.append({"draw": draw, "attempt": attempt, "file_name": self._place(index), "reason": reason})
        raise ValueError(
            f"on_bad_sample=skip: for draw {draw}, {len(bad)} of {len(bad)} samples tried are bad "
            f"({len(self)} are there); the first: {bad[0]['reason']}"
        )

    def _candidates(self, draw: int) -> Iterator[int]:
        """Row of each attempt: the draw's own, then others in an order that follows from seed and draw."""
        own = self.index_of(draw)
        yield own
        others = np.random.default_rng([self.seed, draw, 2]).permutation(len(self))
        yield from others[others != own][: MAX_ATTEMPTS - 1].tolist()

    def _sample(self, draw: int, attempt: int, index: int) -> dict[str, torch.Tensor]:
        from .segmentation_data import read_sample

        try:
            image, label = read_sample(self._rows[index], self._annotation_format, "train", index)
        except ValueError as error:
            raise BadSample(str(error)) from error
        stream = [self.seed, draw, 1] if attempt == 0 else [self.seed, draw, 3, attempt]
        image, label = self.transform(image, label, np.random.default_rng(stream))
        return {"pixel_values": torch.from_numpy(image), "labels": torch.from_numpy(label)}


class BadSample(ValueError):
    """The files of a sample are damaged, missing or wrong."""


def collate_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of samples of `TrainingSamples`: tensors stacked, the lists `bad_samples` put together."""
    batch = default_collate([{k: v for k, v in sample.items() if k != "bad_samples"} for sample in samples])
    return batch | {"bad_samples": [bad for sample in samples for bad in sample["bad_samples"]]}


class DrawSampler(Sampler[list[int]]):
    """Batch sampler that names the draws of one rank, from any optimizer step on.

    Optimizer step s consumes the draws s*G .. (s+1)*G - 1, where G = batch_size * gradient_accumulation_steps *
    world_size is the global batch. Within a step, micro-batches follow each other, and within a micro-batch, ranks do:
    so runs with equal G see the same draws in every step, however G is made up.

    Args:
        batch_size: Samples per rank and micro-batch.
        rank: 0..world_size-1.
        world_size: Number of processes.
        gradient_accumulation_steps: Micro-batches per optimizer step.
        start_step: Optimizer step that comes first; a resumed run gives its position here.
        stop_step: Optimizer step before which to end; None never ends.
    """

    def __init__(
        self,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        start_step: int = 0,
        stop_step: int | None = None,
    ):
        for name, value in (
            ("batch_size", batch_size),
            ("world_size", world_size),
            ("gradient_accumulation_steps", gradient_accumulation_steps),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.start_step, self.stop_step = start_step, stop_step

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the draw numbers of each micro-batch."""
        micro_batch = self.start_step * self.gradient_accumulation_steps
        end = None if self.stop_step is None else self.stop_step * self.gradient_accumulation_steps
        while end is None or micro_batch < end:
            yield self._draws(micro_batch)
            micro_batch += 1

    def draws_of(self, step: int) -> list[int]:
        """Return the draw numbers of this rank in an optimizer step."""
        first = step * self.gradient_accumulation_steps
        return [draw for index in range(self.gradient_accumulation_steps) for draw in self._draws(first + index)]

    def _draws(self, micro_batch: int) -> list[int]:
        first = (micro_batch * self.world_size + self.rank) * self.batch_size
        return list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        """Number of micro-batches; only with a `stop_step`."""
        if self.stop_step is None:
            raise TypeError("an endless DrawSampler has no length; give stop_step")
        return max(self.stop_step - self.start_step, 0) * self.gradient_accumulation_steps
