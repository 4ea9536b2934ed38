# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Networks as single files for other runtimes: ONNX, OpenVINO and `torch.export`."""

from .exporting import export_model
from .report import ExportDisagrees, ExportReport

__all__ = ["ExportDisagrees", "ExportReport", "export_model"]
