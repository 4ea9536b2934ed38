# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The networks that `benchmark` compares: this package's, that of `transformers`, mmsegmentation's, and exports."""

import contextlib
import copy
import functools
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.segformer import modeling_segformer as builtin

from .. import SegformerConfig, SegformerForSemanticSegmentation
from .measure import Contender, attempt

if TYPE_CHECKING:
    from .comparison import BenchmarkArguments

Run = Callable[[], object]


@dataclass
class Networks:
    """This package's network and that of `transformers`, with the same weights, in float32 on the CPU.

    Args:
        name: Name in the tables.
        ours: This package's.
        theirs: That of `transformers`.
        folder: Where both were loaded from.
    """

    name: str
    ours: Any
    theirs: Any
    folder: Path


def load_networks(variant: str, model: str | None, num_labels: int, stack: ExitStack) -> Networks:
    """Both networks, the weights having gone through a folder that lives as long as the stack.

    Args:
        variant: "b0" to "b5", with random weights; not read if a model is given.
        model: Folder or Hub id of trained weights.
        num_labels: Classes of random weights.
        stack: Takes charge of the folder.
    """
    torch.manual_seed(0)
    if model is None:
        ours = SegformerForSemanticSegmentation(SegformerConfig.for_variant(variant, num_labels=num_labels))
    else:
        ours = SegformerForSemanticSegmentation.from_pretrained(model)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    ours.save_pretrained(folder)
    return reload(Path(model).name if model else variant.upper(), folder)


def reload(name: str, folder: Path) -> Networks:
    """Both networks with the weights of a folder."""
    ours = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    theirs = builtin.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    return Networks(name, ours, theirs, folder)


def on(network: nn.Module, args: "BenchmarkArguments") -> Any:
    """Copy of a network in the precision and on the device of the arguments."""
    return copy.deepcopy(network).to(args.device, getattr(torch, args.dtype))


class _Untracked(contextlib.nullcontext):
    parents = frozenset({"Global"})


def giga_macs(network: Any, size: tuple[int, int], batch_size: int = 1) -> float:
    """Multiply-accumulates of one forward pass in units of 10^9, attention included, counted without computing."""
    with torch.device("meta"):
        shapes_only = type(network)(network.config).eval()
        pixel_values = torch.empty(batch_size, network.config.num_channels, *size)
    counter: Any = FlopCounterMode(display=False)
    # Its own hooks all modules, to count for each: the engine then calls each, as somebody is watching.
    counter.mod_tracker = _Untracked()
    with counter, torch.no_grad():
        shapes_only(pixel_values)
    return counter.get_total_flops() / 2e9


def forward_contenders(
    networks: Networks, args: "BenchmarkArguments", pixel_values: torch.Tensor, stack: ExitStack
) -> list[Contender]:
    """Everything that maps the pixel values to logits; each `run` returns its logits.

    Args:
        networks: The networks.
        args: Command line of `benchmark`.
        pixel_values: (B, 3, H, W) float32 on the CPU.
        stack: Takes charge of processes and files.
    """
    ours, theirs = on(networks.ours, args), on(networks.theirs, args)
    inputs = pixel_values.to(args.device, getattr(torch, args.dtype))
    contenders = [
        Contender("ours", lambda: ours(inputs).logits),
        Contender("transformers", lambda: theirs(inputs).logits),
    ]
    if args.dtype != "float32":
        full, full_inputs = copy.deepcopy(networks.theirs).to(args.device), pixel_values.to(args.device)
        contenders.append(Contender("transformers, float32", lambda: full(full_inputs).logits))
    for name, network in (("ours", ours), ("transformers", theirs)):
        contenders.append(_compiled(f"{name}, torch.compile", network, inputs, args.compile))
        if args.device.startswith("cuda"):
            title = f"{name}, torch.compile with CUDA graphs"
            contenders.append(_compiled(title, network, inputs, args.compile, mode="reduce-overhead"))
    contenders.append(_mmsegmentation(networks, args, stack))
    for name, network in (("transformers", networks.theirs), ("ours", networks.ours)):
        contenders += _exported(name, network, pixel_values, args, stack)
    return contenders


def _compiled(name: str, network: nn.Module, inputs: torch.Tensor, wanted: bool, mode: str | None = None) -> Contender:
    if not wanted:
        return Contender(name)
    compiled = torch.compile(network, mode=mode)
    # A CUDA graph overwrites its outputs in the next run.
    return attempt(name, lambda: lambda: compiled(inputs).logits.clone() if mode else compiled(inputs).logits)


def _mmsegmentation(networks: Networks, args: "BenchmarkArguments", stack: ExitStack) -> Contender:
    name = "mmsegmentation"
    if name not in args.competitors or args.model is not None:
        return Contender(name)
    settings = {"variant": networks.name.lower(), "num_labels": args.num_labels, "size": args.image_size}
    settings |= {"batch_size": args.batch_size, "device": args.device, "dtype": args.dtype, "threads": args.threads}
    script = Path(__file__).parent / "mmsegmentation.py"
    paths = [args.mmseg_path or "", os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    errors = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "errors"
    command = [sys.executable, "-P", "-W", "ignore", str(script), json.dumps(settings)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with errors.open("wb") as stderr:
        worker: Any = subprocess.Popen(command, stderr=stderr, text=True, env=environment, **pipes)
    stack.callback(_stop, worker)

    def last_error() -> str:
        return (errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]

    if worker.stdout.readline().strip() != "ready":
        missing = last_error().startswith(("ModuleNotFoundError", "ImportError"))
        return Contender(name, absent="not installed" if missing else f"failed: {last_error()[:80]}")

    def run() -> None:
        worker.stdin.write("\n")
        worker.stdin.flush()
        if worker.stdout.readline().strip() != "done":
            raise RuntimeError(f"mmsegmentation stopped: {last_error()}")

    return Contender(name, run)


def _stop(worker: Any) -> None:
    worker.stdin.close()
    worker.wait(timeout=60)
    worker.stdout.close()


class _Logits(nn.Module):
    """What is exported: one tensor in, one tensor out."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values).logits


def export_onnx(network: nn.Module, pixel_values: torch.Tensor, path: Path, any_size: bool = False) -> Path:
    """Write a network by PyTorch's exporter, for the size and batch of the pixel values or for any."""
    options: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["logits"], "dynamo": True}
    if any_size:
        options["dynamic_shapes"] = {"pixel_values": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
        pixel_values = torch.randn(2, *pixel_values.shape[1:])  # one picture would be taken for always one
    logging.disable(logging.WARNING)  # notices of the exporter
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            torch.onnx.export(_Logits(network), (pixel_values,), path, verbose=False, **options)
    finally:
        logging.disable(logging.NOTSET)
    return path


def _exported(
    name: str, network: nn.Module, pixel_values: torch.Tensor, args: "BenchmarkArguments", stack: ExitStack
) -> list[Contender]:
    """ONNX Runtime and OpenVINO on an export for this batch and image size."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    @functools.cache
    def export() -> Path:
        return export_onnx(network, pixel_values, folder / "network.onnx")

    contenders = []
    for key, (title, dtypes, load) in _RUNTIMES.items():
        title = f"{title}, exported from {name}"
        if key in args.competitors and args.device == "cpu" and args.dtype in dtypes:
            contenders.append(attempt(title, functools.partial(load, export, pixel_values.numpy(), args)))
        else:
            contenders.append(Contender(title))
    return contenders


def _onnx_runtime(export: Callable[[], Path], pixel_values: np.ndarray, args: "BenchmarkArguments") -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(export(), options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, {"pixel_values": pixel_values})[0])


def _openvino(export: Callable[[], Path], pixel_values: np.ndarray, args: "BenchmarkArguments") -> Run:
    import openvino

    precision = {"float32": "f32", "bfloat16": "bf16"}[args.dtype]
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    options |= {"INFERENCE_NUM_THREADS": args.threads} if args.threads else {}
    network = openvino.Core().compile_model(export(), "CPU", options)
    return lambda: torch.from_numpy(network([pixel_values])[0])


# Title, precisions and loader of each runtime for exported networks.
_RUNTIMES = {
    "onnxruntime": ("ONNX Runtime", ("float32",), _onnx_runtime),
    "openvino": ("OpenVINO", ("float32", "bfloat16"), _openvino),
}
