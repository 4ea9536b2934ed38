# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported files, run by ONNX Runtime, OpenVINO or PyTorch in the place of the network."""

from .exported import RUNTIMES, ExportedModel, load_exported, load_segmenter

__all__ = ["RUNTIMES", "ExportedModel", "load_exported", "load_segmenter"]
