# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The short path of `hf_segformer.evaluation.metrics`."""

from typing import TYPE_CHECKING, Any

from .evaluation import metrics
from .evaluation.metrics import ConfusionMatrix, build_compute_metrics, preprocess_logits_for_metrics, write_metrics

if TYPE_CHECKING:
    from .evaluation.metrics import MeanIoU

__all__ = ["ConfusionMatrix", "MeanIoU", "build_compute_metrics", "preprocess_logits_for_metrics", "write_metrics"]


def __getattr__(name: str) -> Any:
    return getattr(metrics, name)  # MeanIoU, which is built when it is asked for
