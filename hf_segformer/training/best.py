# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Which weights of a run count: the best so far, and those that are exported in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from .progress import Progress

EXPORTS = ("best", "last", "ema")
_KINDS = {"raw": "", "ema": ", averaged"}


@dataclass
class BestWeights:
    """A copy of the weights with the highest validation mIoU so far; `Progress.best` says which they are.

    Attributes:
        weights: On the CPU, by name; None before the first evaluation.
    """

    weights: dict[str, Tensor] | None = None

    def offer(self, progress: Progress, scores: Mapping[str, float], models: Mapping[str, nn.Module]) -> None:
        """Keep the weights of an evaluation if they are better than all before; of equal ones the first stay.

        Args:
            progress: Of the run; its `best` is set.
            scores: mIoU of each kind of weights, `raw` and maybe `ema`.
            models: The models that were evaluated, by kind.
        """
        for kind, score in scores.items():
            best = -math.inf if progress.best is None else progress.best["mean_iou"]
            if score > best:  # NaN is not
                progress.best = {"step": progress.step, "mean_iou": score, "weights": kind}
                state = models[kind].state_dict()
                self.weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


@dataclass(frozen=True)
class Exported:
    """Which weights are exported.

    Attributes:
        export: best, last or ema: the rule by which they were chosen.
        step: Steps after which they were reached.
        weights: raw or ema.
    """

    export: str
    step: int
    weights: str

    @classmethod
    def chosen(cls, export: str, progress: Progress) -> Exported:
        """Weights that a rule chooses; the last, where no evaluation gave an mIoU to choose by.

        Args:
            export: One of `EXPORTS`.
            progress: Of a run that is over.
        """
        if export == "best" and progress.best is not None:
            return cls(export, progress.best["step"], progress.best["weights"])
        return cls("ema" if export == "ema" else "last", progress.step, "ema" if export == "ema" else "raw")

    def describe(self, steps: int) -> str:
        """Words for people.

        Args:
            steps: Steps that the run has taken.
        """
        if self.export == "best":
            return f"the best by validation mIoU, after {self.step} of {steps} steps{_KINDS[self.weights]}"
        return f"the last, after {self.step} steps{_KINDS[self.weights]}"
