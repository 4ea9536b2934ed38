# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported files as functions of arrays: what ONNX Runtime, OpenVINO and PyTorch make of them, each on the CPU.

Everything that the three call differently is here.
"""

from __future__ import annotations

import contextlib
import importlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from ..texts import listed
from .metadata import METADATA_KEY, FileMetadata, metadata_of_folder, parse_metadata

INPUT = "pixel_values"
_DTYPES = {
    **dict.fromkeys(("tensor(float)", "f32", "float32"), np.float32),
    **dict.fromkeys(("tensor(float16)", "f16", "float16"), np.float16),
    **dict.fromkeys(("tensor(uint8)", "u8", "uint8"), np.uint8),
}


@dataclass(frozen=True)
class Program:
    """An opened file.

    Attributes:
        run: From a batch to the outputs by name.
        metadata: What it says of itself.
        shape: (batch, channels, height, width) of the input; None where any will do.
        dtype: What the input must be.
        outputs: Names of the outputs, and the shape of each; None for sides of which the file does not say.
    """

    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    metadata: FileMetadata
    shape: tuple[int | None, ...]
    dtype: type
    outputs: dict[str, tuple[int | None, ...]]


def open_with_onnxruntime(path: Path) -> Program:
    """Open an ONNX file with ONNX Runtime.

    Raises:
        ValueError: The package is not installed, or the file is none that it can run.
    """
    runtime = _module("onnxruntime", path)
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")
    errors = tuple(getattr(state, name) for name in (*names, "NotImplemented", "RuntimeException"))
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    with _explained(f"{path} cannot be read by ONNX Runtime", errors):
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = {output.name: _sides(output.shape) for output in session.get_outputs()}
    value = _the_input(path, {value.name: value for value in session.get_inputs()})

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        with _explained(f"{path} failed in ONNX Runtime on an input of shape {batch.shape}", errors):
            return dict(zip(outputs, session.run(list(outputs), {INPUT: batch}), strict=True))

    metadata = _metadata(path, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY))
    return Program(run, metadata, _sides(value.shape), _dtype(path, value.type), outputs)


def open_with_openvino(path: Path) -> Program:
    """Open an OpenVINO or ONNX file with OpenVINO, which then computes in float32.

    Raises:
        ValueError: The package is not installed, or the file is none that it can run.
    """
    openvino = _module("openvino", path)
    weights = path.with_suffix(".bin")
    if path.suffix.lower() == ".xml" and not weights.is_file():
        raise ValueError(f"{path} needs its weights beside it: {weights} is missing")
    core = openvino.Core()
    # By itself it computes in bfloat16 where the processor has that.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with _explained(f"{path} cannot be read by OpenVINO", (RuntimeError,)):
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU", options)
    names = {name: index for index, output in enumerate(compiled.outputs) for name in output.get_names()}
    outputs = {name: _sides(_dimensions(compiled.outputs[index])) for name, index in names.items()}
    value = _the_input(path, {name: value for value in compiled.inputs for name in value.get_names()})

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        with _explained(f"{path} failed in OpenVINO on an input of shape {batch.shape}", (RuntimeError,)):
            results = compiled([batch])
        return {name: results[index] for name, index in names.items()}

    # What an ONNX file says of itself lies one level lower.
    places = [place for place in ([METADATA_KEY], ["framework", METADATA_KEY]) if model.has_rt_info(place)]
    metadata = _metadata(path, str(model.get_rt_info(places[0]).value) if places else None)
    dtype = _dtype(path, value.get_element_type().get_type_name())
    return Program(run, metadata, _sides(_dimensions(value)), dtype, outputs)


def open_with_torch(path: Path) -> Program:
    """Open a file of `segformer export --format torch-export`.

    PyTorch evaluates expressions in such a file: open only what comes from a source you trust.

    Raises:
        ValueError: The file is none that `segformer export` wrote, is damaged, or of a version that cannot be read.
    """
    metadata = parse_metadata(_archive_metadata(path), path)
    try:
        module: Any = torch.export.load(path).module()
    except (RuntimeError, AssertionError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read by PyTorch {torch.__version__}: {_first_line(error)}") from error

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        with _explained(
            f"{path} failed in PyTorch on an input of shape {batch.shape}", (RuntimeError, AssertionError)
        ):
            results = tree_leaves(module(torch.from_numpy(batch)))
        return {name: result.numpy() for name, result in zip(metadata.outputs, results, strict=True)}

    shape = (metadata.batch, metadata.config.num_channels, *(metadata.size or (None, None)))
    return Program(run, metadata, shape, _dtype(path, metadata.dtype), dict.fromkeys(metadata.outputs, ()))


def _archive_metadata(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA_KEY}")]
            text = archive.read(names[0]).decode() if names and damaged is None else None
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no file of torch.export, or damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: {damaged} in it is not what was written")
    if text is None:
        raise ValueError(f"{path} was not written by `segformer export`: it does not say which classes it has")
    return text


def _module(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(f'{path} needs {name}, which is not installed: pip install "hf_segformer[export]"') from error


@contextlib.contextmanager
def _explained(what: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise ValueError(f"{what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, reversed(lines)), type(error).__name__)


def _metadata(path: Path, text: str | None) -> FileMetadata:
    return metadata_of_folder(path) if text is None else parse_metadata(text, path)


def _the_input(path: Path, inputs: dict[str, Any]) -> Any:
    if INPUT not in inputs:
        raise ValueError(f"{path} must have an input {INPUT!r}, got {listed(inputs, 5)}: it is no SegFormer's")
    return inputs[INPUT]


def _sides(shape: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(side if isinstance(side, int) and side > 0 else None for side in shape)


def _dimensions(port: Any) -> list[int | None]:
    shape = port.get_partial_shape()
    return [side.get_length() if side.is_static else None for side in shape]


def _dtype(path: Path, name: str) -> type:
    if name not in _DTYPES:
        raise ValueError(f"{INPUT} must be float32, float16 or uint8 in {path}, got {name}")
    return _DTYPES[name]
