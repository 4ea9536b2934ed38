# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of a run's weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def check_decay(decay: float | None) -> None:
    """Raise ValueError for a decay that averages nothing, or never moves."""
    if decay is not None and not 0 < decay < 1:
        raise ValueError(f"ema must be in (0, 1), got {decay}")


def decay_at(decay: float, updates: int) -> float:
    """Decay of an update: that of the long run, but less at first, so that early weights are soon forgotten.

    Args:
        decay: Of the long run, in (0, 1).
        updates: Updates before this one, at least 1.

    Source: `num_updates` of TensorFlow's `ExponentialMovingAverage`.
    """
    return min(decay, (1 + updates) / (10 + updates))


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """PyTorch's `AveragedModel` of a model, whose `module` has the averaged weights.

    The first update copies the weights. Buffers are averaged with them: BatchNorm's statistics belong to the weights
    that they were counted with.

    Args:
        model: Unwrapped model on its device.
        decay: See `decay_at`.

    Raises:
        ValueError: `decay` is not in (0, 1).
    """
    check_decay(decay)

    def update(averaged: Any, current: Any, updates: Tensor | int) -> None:
        get_ema_multi_avg_fn(decay_at(decay, int(updates)))(averaged, current, updates)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average.requires_grad_(False)
