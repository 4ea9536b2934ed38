# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's own files: a `.xml` and, beside it, the weights as `.bin`."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino

from . import onnx
from .folding import Weights
from .metadata import KEY
from .onnx_network import Form
from .settings import Settings

# OpenVINO 2026.4 computes attention whose softmax is joined with its products wrongly for all later sizes once a
# picture had a single reduced token (both sides below 64 pixels).
FORM = Form(classes_last=False, convolutions=True, attention_apart=True)


def save(weights: Weights, metadata: dict[str, Any], settings: Settings, path: Path) -> None:
    """Write a model as `path` and its `.bin`.

    Args:
        weights: Weights of the network.
        metadata: What `metadata.describe` returned.
        settings: What is exported.
        path: The `.xml`.
    """
    plain = replace(settings, half=False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        onnx.save(onnx.build(weights, metadata, plain, FORM), file)
        model = openvino.Core().read_model(file)
        model.set_rt_info(json.dumps(metadata), KEY)
        openvino.save_model(model, path, compress_to_fp16=settings.half)
