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

__all__ = ["NetworkInputs", "Segmentation", "predict_label_map", "prepare_inputs", "segment", "segment_inputs"]
