# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run has done so far, and what it must agree on to go on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..data import SegmentationData


@dataclass
class Progress:
    """What a run has done so far.

    Args:
        step: Optimizer steps taken.
        history: Logged values, one dict a log entry with the keys `step`, `loss`, `learning_rate` or `mean_iou`, and
            `mean_iou_ema` where weights are averaged.
        settings: Arguments that determine the run; a resumed run must have the same.
        bad_samples: Samples that were passed over: `draw`, `attempt`, `file_name` and `reason` of each.
        changes: Settings that were changed on the way: `step`, `setting`, `before` and `after` of each.
        best: The best weights so far: `step`, `mean_iou` and `weights` (raw or ema); None before the first evaluation.
    """

    step: int = 0
    history: list[dict] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    bad_samples: list[dict] = field(default_factory=list)
    changes: list[dict] = field(default_factory=list)
    best: dict | None = None

    @property
    def is_evaluated(self) -> bool:
        """Whether an evaluation was logged after the last step."""
        return any(entry["step"] == self.step and "mean_iou" in entry for entry in self.history)


def step_seed(seed: int, step: int, micro_step: int = 0, rank: int = 0) -> int:
    """Seed of the random numbers drawn in one micro-step of one process, in [0, 2**63)."""
    return int(np.random.SeedSequence([seed, step, micro_step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def data_settings(data: SegmentationData) -> dict[str, Any]:
    """What of a data set determines the weights a run ends with: its classes, its samples and their order."""
    form = data.annotation_format
    return {
        "class_names": list(data.class_names),
        "ignore_index": data.ignore_index,
        "annotation_format": [form.mask_format, form.reduce_zero_label],
        "id_map": sorted(form.id_map),
        "mask_colors": [form.palette, form.ignore_color] if form.mask_format == "rgb" else None,
        "orientation": form.orientation,
        "training_samples": samples_of(data, "train"),
    }


def samples_of(data: SegmentationData, split: str) -> str:
    """Number of samples of a split, and what changes with their names and order."""
    names = getattr(data, split)["file_name"][:]
    digest = hashlib.sha256(json.dumps([str(name) for name in names]).encode()).hexdigest()
    return f"{len(names)} with names of SHA-256 {digest[:16]}"
