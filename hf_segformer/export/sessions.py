# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Running exported files, to compare them with the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

Run = Callable[[np.ndarray], list[np.ndarray]]


def open_file(format: str, path: Path, threads: int = 0) -> Run:
    """A function that runs an exported file on the CPU, in full precision.

    Args:
        format: The file's format.
        path: The file.
        threads: CPU threads; 0 leaves the number to the runtime.
    """
    return {"onnx": _onnx_runtime, "openvino": _openvino, "torch-export": _torch}[format](path, threads)


def _onnx_runtime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(None, {"pixel_values": pixel_values})


def _openvino(path: Path, threads: int) -> Run:
    import openvino

    options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    network = openvino.Core().compile_model(path, "CPU", options)
    return lambda pixel_values: [network_output.copy() for network_output in network([pixel_values]).to_tuple()]


def _torch(path: Path, threads: int) -> Run:
    module = torch.export.load(path).module()

    def run(pixel_values: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(pixel_values))]

    return run
