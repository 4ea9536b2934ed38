# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules in closed form: a function of the step alone, so that resuming needs no scheduler state."""

import torch


def poly_factor(
    step: int,
    max_steps: int,
    warmup_steps: int = 1500,
    warmup_ratio: float = 1e-6,
    power: float = 1.0,
    decay_from_start: bool = True,
) -> float:
    """Factor on the peak learning rate: linear warm-up, then polynomial decay to zero.

    Args:
        step: Optimizer step, from 0.
        max_steps: Number of steps in the run.
        warmup_steps: Steps of warm-up; 0 for none.
        warmup_ratio: Factor at step 0 of the warm-up.
        power: Exponent of the decay.
        decay_from_start: True decays over the whole run, with the warm-up multiplying the decayed value (NVlabs);
            False starts the decay after the warm-up (mmsegmentation 1.x). The first is zero at `max_steps`, one step
            after the last, the other with the last step.

    Returns:
        A factor in [0, 1].

    Source: mmcv `PolyLrUpdaterHook` with linear warm-up; mmengine `LinearLR` followed by `PolyLR`.
    """
    if decay_from_start:
        decayed = (1 - step / max_steps) ** power
        if step >= warmup_steps:
            return decayed
        return decayed * (1 - (1 - step / warmup_steps) * (1 - warmup_ratio))
    # mmengine reaches the end of a warm-up and of a decay with the last step, not after it.
    if step < warmup_steps:
        return warmup_ratio + (1 - warmup_ratio) * step / max(warmup_steps - 1, 1)
    return (1 - (step - warmup_steps) / max(max_steps - warmup_steps - 1, 1)) ** power


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its `initial_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
