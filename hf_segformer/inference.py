# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The short path of `hf_segformer.evaluation.inference`."""

from .evaluation.inference import (
    NetworkInputs,
    Segmentation,
    predict_label_map,
    prepare_inputs,
    segment,
    segment_inputs,
)
from .runtimes import ExportedModel, load_exported, load_segmenter

__all__ = [
    "ExportedModel",
    "NetworkInputs",
    "Segmentation",
    "load_exported",
    "load_segmenter",
    "predict_label_map",
    "prepare_inputs",
    "segment",
    "segment_inputs",
]
