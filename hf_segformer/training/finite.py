# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Nothing that is not finite is saved, evaluated or exported: how to look, and what to say when a run diverged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

# A loss scaler starts too high by some twenty steps at most.
MAX_SKIPPED_STEPS = 100
_SHOWN = 10  # files in a message


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; others than floating point ones cannot.

    Args:
        tensors: Tensors by name, on any devices.
    """
    floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    # One number of a few fast kernels. It may overflow where all is finite, and then the tensors are asked themselves.
    if bool(torch.nn.utils.get_total_norm(list(floating.values())).isfinite()):
        return []
    return [name for name, tensor in floating.items() if not bool(tensor.isfinite().all())]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, named as `MOMENT of PARAMETER`."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind} of {names.get(parameter, 'a parameter')}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
        if isinstance(value, Tensor)
    }


class DivergenceGuard:
    """Looks on all processes together whether losses, weights, statistics and optimizer are finite.

    Args:
        accelerator: Joins the processes. Every process must make the same calls.
        model: Unwrapped model.
        optimizer: Unwrapped optimizer.
        files_of_step: Function from a step to the names of the pictures that this process reads for it.
        step: Steps taken so far.
        last_state: Saved state that a run could go on from, if any.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        files_of_step: Callable[[int], list[str]],
        step: int = 0,
        last_state: Path | None = None,
    ):
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.files_of_step, self.last_state = files_of_step, last_state
        self._last_look = self._step = step
        self._losses: list[tuple[int, Tensor]] = []
        self._skipped_in_a_row = 0

    def record(self, loss: Tensor, was_skipped: bool = False) -> None:
        """Note a step's loss on this process.

        Args:
            loss: Scalar; not read before the next look.
            was_skipped: Whether the loss scaler threw the step's gradients away, so that nothing came of the loss.
        """
        self._step += 1
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if was_skipped else 0
        if not was_skipped:
            self._losses.append((self._step, loss))

    def look(self) -> None:
        """Look at everything; call it before anything is saved, evaluated or exported.

        Raises:
            FloatingPointError: Something is not finite on one of the processes: says what, since when, which pictures
                were read, and which state is good. Raised in all of them.
        """
        if self._skipped_in_a_row >= MAX_SKIPPED_STEPS:
            raise FloatingPointError(
                f"the loss scaler skipped the last {self._skipped_in_a_row} steps (up to step {self._step}), whose "
                f"gradients overflowed, so that nothing is learnt: use --mixed_precision bf16 or no. {self._advice()}"
            )
        wrong = non_finite(self.model.state_dict() | optimizer_tensors(self.model, self.optimizer))
        losses = torch.stack([loss.float() for _, loss in self._losses]) if self._losses else torch.zeros(1)
        is_bad = bool(wrong) or not bool(losses.isfinite().all())
        verdict = torch.tensor(float(is_bad), device=self.accelerator.device)
        if self.accelerator.reduce(verdict, "sum").item():
            raise FloatingPointError(self._explanation(wrong, losses.tolist()))
        self._last_look, self._losses = self._step, []

    def _explanation(self, wrong: list[str], losses: list[float]) -> str:
        from accelerate.utils import gather_object

        bad_steps = [step for (step, _), loss in zip(self._losses, losses, strict=False) if not _is_finite(loss)]
        findings = gather_object([(self.accelerator.process_index, wrong, min(bad_steps, default=None))])
        wrong = next((names for _, names, _ in findings if names), [])
        first = min((step for _, _, step in findings if step is not None), default=None)
        steps = (self._last_look + 1, self._step)
        what = [f"{_some(wrong, 3)} after step {self._step}"] if wrong else []
        if first is not None:
            # Weights that a step has spoilt show in the loss of the next one.
            steps = (max(first - 1, steps[0]), first)
            what.insert(0, f"the loss of step {first}")
        files: list[str] = []
        for step in range(steps[0], steps[1] + 1):
            files += self.files_of_step(step - 1)
            if len(files) > _SHOWN:
                break
        shown = f"{', '.join(files[:_SHOWN])}{', ...' if len(files) > _SHOWN else ''}"
        read = gather_object([f"process {self.accelerator.process_index}: {shown}"])
        verb = "are" if len(what) + len(wrong) > 1 else "is"
        return (
            f"training diverged: {' and '.join(what)} {verb} not finite. All was finite after step {self._last_look}. "
            f"Pictures of {_steps(*steps)}, {'; '.join(read)}. {self._advice()}"
        )

    def _advice(self) -> str:
        if self.last_state is None:
            return "No state had been saved: start again, with another --learning_rate or --mixed_precision"
        return (
            f"The last good state is {self.last_state}. --resume repeats the same steps from there, with "
            "--allow_changes also with another --learning_rate or --mixed_precision"
        )


def _is_finite(value: float) -> bool:
    return value - value == 0


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _some(names: list[str], count: int) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
