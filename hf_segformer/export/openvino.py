# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's own files: a `.xml` and, beside it, the weights as `.bin`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import openvino

from . import onnx
from .folding import Weights
from .metadata import KEY
from .settings import Settings


def save(weights: Weights, metadata: dict[str, Any], settings: Settings, path: Path) -> None:
    """Write a model as `path` and its `.bin`.

    Args:
        weights: Weights of the network.
        metadata: What `metadata.describe` returned.
        settings: What is exported.
        path: The `.xml`.
    """
    plain = Settings(settings.format, settings.output, settings.normalize, settings.size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        onnx.save(onnx.build(weights, metadata, plain, onnx.OPENVINO), file)
        model = openvino.Core().read_model(file)
        model.set_rt_info(json.dumps(metadata), KEY)
        openvino.save_model(model, path, compress_to_fp16=settings.half)
