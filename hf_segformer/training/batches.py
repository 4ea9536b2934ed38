# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""How a global batch is made up of processes, forward passes and images, and what BatchNorm sees of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class BatchPlan:
    """How the images of one optimizer step are dealt out.

    Attributes:
        batch_size: Images per process and forward pass.
        gradient_accumulation_steps: Forward passes per optimizer step.
        processes: Number of processes.
        note: What differs from the recipe, for people; empty if nothing does.
    """

    batch_size: int
    gradient_accumulation_steps: int
    processes: int
    note: str = ""

    @property
    def global_batch_size(self) -> int:
        """Images per optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps * self.processes


def plan_batches(
    processes: int,
    default_batch_size: int,
    global_batch_size: int | None = None,
    batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    published: tuple[int, int] | None = None,
    sync_batch_norm: bool = False,
    frozen_batch_norm: bool = False,
) -> BatchPlan:
    """Keep the global batch when the number of processes changes.

    With a global batch, of the recipe or given, images per forward pass and accumulation follow from it: the largest
    batch size up to the default one that divides each process's part. Where batch size and accumulation are both
    given, they rule, and the note says what became of the recipe's global batch.

    Args:
        processes: Number of processes.
        default_batch_size: Images per process and forward pass where nothing else is said.
        global_batch_size: Images per optimizer step that were asked for.
        batch_size: Images per process and forward pass that were asked for.
        gradient_accumulation_steps: Forward passes per step that were asked for.
        published: (GPUs, images on each) of the recipe, whose BatchNorm looks at all of them together.
        sync_batch_norm: Whether BatchNorm will look at all processes' images together.
        frozen_batch_norm: Whether it will look at none.

    Returns:
        The plan.

    Raises:
        ValueError: The global batch cannot be made up so; names the numbers that can.
    """
    wanted = global_batch_size
    if wanted is None and published and not (batch_size and gradient_accumulation_steps):
        wanted = published[0] * published[1]
    if wanted is None:
        plan = BatchPlan(batch_size or default_batch_size, gradient_accumulation_steps or 1, processes)
    else:
        plan = _divide(wanted, processes, default_batch_size, batch_size, gradient_accumulation_steps)
    if not published:
        return plan
    notes, total = [], published[0] * published[1]
    if plan.global_batch_size != total:
        notes.append(f"the global batch is {plan.global_batch_size} images, the recipe's {total}")
    seen = plan.batch_size * (processes if sync_batch_norm else 1)
    if seen != total and not frozen_batch_norm:
        notes.append(
            f"BatchNorm sees {seen} images at a time, in the published run {total}"
            + ("" if sync_batch_norm else "; it is synchronised over GPUs only")
        )
    return BatchPlan(plan.batch_size, plan.gradient_accumulation_steps, processes, "; ".join(notes))


def _divide(wanted: int, processes: int, default: int, batch_size: int | None, accumulation: int | None) -> BatchPlan:
    unit = processes * (batch_size or 1) * (accumulation or 1)
    if wanted % unit:
        below, above = wanted // unit * unit, (wanted // unit + 1) * unit
        factors = [f"{processes} processes"] + [f"batch_size {batch_size}"] * bool(batch_size)
        factors += [f"gradient_accumulation_steps {accumulation}"] * bool(accumulation)
        choices = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"global_batch_size must be a multiple of {' x '.join(factors)}, got {wanted}; take {choices}, or another "
            "number of processes"
        )
    share = wanted // processes
    if batch_size is None:
        share //= accumulation or 1
        batch_size = share if accumulation else max(n for n in range(1, default + 1) if share % n == 0)
    accumulation = accumulation or share // batch_size
    if batch_size * accumulation * processes != wanted:
        raise ValueError(
            f"global_batch_size must be batch_size x gradient_accumulation_steps x processes = {batch_size} x "
            f"{accumulation} x {processes}, got {wanted}"
        )
    return BatchPlan(batch_size, accumulation, processes)


def synchronizes_batch_norm(wanted: bool, processes: int, device_type: str) -> bool:
    """Whether BatchNorm can and shall compute its statistics over all processes: several GPUs."""
    return wanted and processes > 1 and device_type == "cuda"


def freeze_batch_norm(model: nn.Module) -> None:
    """Make every BatchNorm normalise by its stored statistics and keep them; its weight and bias go on learning.

    `model.train()` undoes it: call it again afterwards.

    Args:
        model: Any module.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
