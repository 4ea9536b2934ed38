# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""When a run ends before its last step: evaluations that bring nothing new."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Evaluations of a run for each that is waited for, where nobody says how often to evaluate.
EVALUATIONS_PER_PATIENCE = 4


@dataclass(frozen=True)
class EarlyStopping:
    """The rule: so many evaluations in a row without a higher mIoU end the run.

    It looks at what was logged alone, so a resumed run stops where one that was never stopped does, and all processes
    stop together. The learning rate follows the schedule of the whole run.

    Args:
        patience: Evaluations without improvement, at least 1; None never stops.
        min_delta: By how much the mIoU, in [0, 1], must be higher to count; with `patience` only.

    Raises:
        ValueError: One of them is out of range, or the second comes without the first; names both.
    """

    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be >= 1 evaluations, got {self.patience}")
        if not 0 <= self.min_delta < 1:
            raise ValueError(f"min_delta must be in [0, 1), as mIoU is, got {self.min_delta}")
        if self.min_delta and self.patience is None:
            raise ValueError(f"min_delta goes with patience, which was left out, got min_delta={self.min_delta}")

    def check_intervals(self, eval_every: int, max_steps: int) -> None:
        """Check that the rule can end a run before its last step.

        Args:
            eval_every: Steps between evaluations.
            max_steps: Steps of the run.

        Raises:
            ValueError: It cannot; names the flags.
        """
        if self.patience is None:
            return
        earliest = (self.patience + 1) * eval_every  # there is nothing to improve on before the first evaluation
        if earliest >= max_steps:
            raise ValueError(
                f"patience={self.patience} with eval_every={eval_every} can stop a run after {earliest} steps at the "
                f"earliest, which must be before max_steps={max_steps}: evaluate more often, or leave patience out"
            )

    def is_due(self, history: Sequence[dict]) -> bool:
        """Whether the run has to end.

        Args:
            history: `Progress.history`; of raw and averaged weights the better counts.
        """
        if self.patience is None:
            return False
        best, waited = -math.inf, 0
        for score in map(_score, history):
            if score is None:
                continue
            better = score > best + self.min_delta
            best, waited = (score, 0) if better else (best, waited + 1)
        return waited >= self.patience


def _score(entry: dict) -> float | None:
    """The mIoU of an entry that has one; -inf for NaN, which is no improvement."""
    found = [entry[name] for name in ("mean_iou", "mean_iou_ema") if name in entry]
    return max((-math.inf if math.isnan(value) else value for value in found), default=None)
