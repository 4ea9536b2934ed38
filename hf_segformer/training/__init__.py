# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training loop is made of: parameter groups, schedules, losses, initial weights, resumable state."""

from .initialization import initialize_as_published
from .losses import count_pixels, cross_entropy_sum
from .parameter_groups import parameter_groups
from .schedules import poly_factor, set_learning_rate
from .state import Progress, latest_state, load_state, save_state, step_seed

__all__ = [
    "Progress",
    "count_pixels",
    "cross_entropy_sum",
    "initialize_as_published",
    "latest_state",
    "load_state",
    "parameter_groups",
    "poly_factor",
    "save_state",
    "set_learning_rate",
    "step_seed",
]
