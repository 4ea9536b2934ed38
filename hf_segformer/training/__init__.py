# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training loop is made of: batches, parameter groups, schedules, losses, initial weights, resumable state."""

from .arguments import TrainArguments
from .batches import BatchPlan, freeze_batch_norm, plan_batches, synchronizes_batch_norm
from .class_weights import class_weights_from_counts, count_class_pixels, read_class_weights
from .ema import averaged_model
from .finite import DivergenceGuard, non_finite
from .freezing import freeze_parts, keep_frozen
from .initialization import initialize_as_published, load_encoder
from .lora import add_adapter
from .losses import SegmentationLoss, count_pixels, cross_entropy_sum, parse_losses
from .parameter_groups import parameter_groups
from .progress import Progress, data_settings, step_seed
from .run_lock import FolderInUse, RunLock
from .schedules import poly_factor, set_learning_rate
from .state import find_state, latest_state, load_best, load_state, run_folder, save_state
from .stopping import EarlyStopping

__all__ = [
    "BatchPlan",
    "DivergenceGuard",
    "EarlyStopping",
    "FolderInUse",
    "Progress",
    "RunLock",
    "SegmentationLoss",
    "TrainArguments",
    "add_adapter",
    "averaged_model",
    "class_weights_from_counts",
    "count_class_pixels",
    "count_pixels",
    "cross_entropy_sum",
    "data_settings",
    "find_state",
    "freeze_batch_norm",
    "freeze_parts",
    "initialize_as_published",
    "keep_frozen",
    "latest_state",
    "load_best",
    "load_encoder",
    "load_state",
    "non_finite",
    "parameter_groups",
    "parse_losses",
    "plan_batches",
    "poly_factor",
    "read_class_weights",
    "run_folder",
    "save_state",
    "set_learning_rate",
    "step_seed",
    "synchronizes_batch_norm",
]
