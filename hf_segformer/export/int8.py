# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX files that compute in int8, with the layers left in float whose rounding costs the most.

Rounding errors of layers are independent of one another and add up. So each layer is quantised by itself, the error of
the logits is measured on pictures that the ranges were not taken from, and those that make the largest part of the sum
stay as they are.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .calibration import MIN_PICTURES
from .int8_graph import MixedGraph, open_session
from .report import ExportDisagrees

MIN_INT8 = 0.8  # of the multiply-adds
SENSITIVE = 0.05  # of the whole error: from here on a layer is left in float
FEW = 2  # pictures that each layer is measured on
# Layers of a kind, such as the queries of a stage's blocks, are measured together first and one by one only if they
# make this part of the whole error; or a deep network would take an hour.
_NOTABLE = 0.02
_MIN_AGREEMENT = 0.9
_ROUNDS = 7


@dataclass
class FloatLayer:
    """A layer that stays in float.

    Args:
        name: The layer.
        error: Part of the error of all layers that it makes when it alone is quantised.
        multiply_adds: Its part of the multiply-adds.
    """

    name: str
    error: float
    multiply_adds: float

    def __str__(self) -> str:
        error, own = 100 * self.error, 100 * self.multiply_adds
        return f"{self.name}: {error:.0f} % of the error for {own:.1f} % of the multiply-adds"


@dataclass
class Int8Report:
    """What became of a network in int8; all figures are from pictures that the ranges were not taken from.

    Args:
        bytes: Size of the file.
        float_bytes: That of the float file.
        layers: Number of convolutions and matrix products.
        float_layers: Those that stay in float, and why.
        multiply_adds: Part of the multiply-adds that is int8.
        size: Height and width of the picture they were counted for.
        error: Squared error of the logits, relative to their variance.
        error_of_all: The same with no layer left in float.
        agreement: Part of the labels, at the logits' resolution, that are those of the float file.
        calibration_pictures: Pictures that the ranges are from.
        measured_pictures: Pictures that this was measured on.
        latency_ms: Median of one picture.
        float_latency_ms: That of the float file, taken in turns with it.
    """

    bytes: int
    float_bytes: int
    layers: int
    float_layers: list[FloatLayer]
    multiply_adds: float
    size: tuple[int, int]
    error: float
    error_of_all: float
    agreement: float
    calibration_pictures: int
    measured_pictures: int
    latency_ms: float
    float_latency_ms: float

    def __str__(self) -> str:
        height, width = self.size
        lines = [
            f"  int8: {100 * self.multiply_adds:.1f} % of the multiply-adds at {height}x{width}, "
            f"{100 * self.bytes / self.float_bytes:.0f} % of the float file's bytes",
            f"  {100 * self.agreement:.2f} % of the labels are the float file's ({self.measured_pictures} pictures, "
            f"calibrated on {self.calibration_pictures} others); error {self.error:.1e}, with all layers in int8 "
            f"{self.error_of_all:.1e}",
            f"  latency {self.latency_ms:.0f} ms, float {self.float_latency_ms:.0f} ms "
            f"({self.float_latency_ms / self.latency_ms:.2f} times as fast)",
            f"  left in float: {len(self.float_layers)} of {self.layers} layers",
        ]
        return "\n".join([*lines, *(f"    {layer}" for layer in self.float_layers)])


def quantize_onnx(
    float_file: str | os.PathLike,
    path: str | os.PathLike,
    inputs: Sequence[np.ndarray],
    *,
    min_int8: float = MIN_INT8,
) -> Int8Report:
    """Write an ONNX file of a network as one that computes in int8.

    Every fourth input is kept apart to measure on. Convolutions, matrix products and those within attention are
    quantised, but for those whose error is large. Normalisations, activations and sums stay in float.

    Args:
        float_file: File that `export_model` wrote in full precision.
        path: The file to write.
        inputs: Inputs (3, H, W) of at least 8 pictures, prepared as for the float file.
        min_int8: Part of the multiply-adds that int8 must have, however large the errors.

    Raises:
        ValueError: There are too few inputs, or `min_int8` is out of range.
        ExportDisagrees: More than a tenth of the labels would be others; nothing is written.
    """
    if len(inputs) < MIN_PICTURES:
        raise ValueError(f"inputs must be at least {MIN_PICTURES} pictures to take ranges from, got {len(inputs)}")
    if not 0 <= min_int8 <= 1:
        raise ValueError(f"min_int8 must be 0 to 1, a part of the multiply-adds, got {min_int8}")
    float_file, batches = Path(float_file), [values[None] for values in inputs]
    measured = batches[1::4]
    calibration = [values for index, values in enumerate(batches) if index % 4 != 1]
    graph = MixedGraph(float_file, calibration)
    counts = graph.multiply_adds(measured[0])
    few = _Measure(graph, measured[:FEW])
    errors = layer_errors(few, counts)
    kept = sensitive_layers(errors, counts, min_int8)
    whole, total = sum(errors.values()) or 1.0, sum(counts.values())
    layers = set(counts) - set(kept)
    model = graph.model(layers)
    onnx.checker.check_model(model)
    measure = _Measure(graph, measured)
    error, agreement = measure(layers)
    if agreement < _MIN_AGREEMENT:
        raise ExportDisagrees(
            f"in int8 only {100 * agreement:.1f} % of the labels would be the model's, so no file was written; at "
            f"least {100 * _MIN_AGREEMENT:.0f} % must be: are the {len(inputs)} pictures of the kind that the model "
            f"was trained on?"
        )
    Path(path).write_bytes(model.SerializeToString())
    latency, float_latency = _latencies([Path(path), float_file], {graph.input_name: measured[0]})
    return Int8Report(
        bytes=Path(path).stat().st_size,
        float_bytes=float_file.stat().st_size,
        layers=len(counts),
        float_layers=[FloatLayer(name, errors[name] / whole, counts[name] / total) for name in kept],
        multiply_adds=sum(counts[name] for name in layers) / total,
        size=(measured[0].shape[2], measured[0].shape[3]),
        error=error,
        error_of_all=measure(set(counts))[0],
        agreement=agreement,
        calibration_pictures=len(calibration),
        measured_pictures=len(measured),
        latency_ms=latency,
        float_latency_ms=float_latency,
    )


class _Measure:
    """Error of the logits and agreement of the labels on some pictures, by the names of the layers in int8."""

    def __init__(self, graph: MixedGraph, inputs: Sequence[np.ndarray]):
        self._graph, self._inputs = graph, inputs
        self._logits = graph.logits((), inputs)

    def __call__(self, layers: Collection[str]) -> tuple[float, float]:
        errors, equal = [], []
        for found, logits in zip(self._graph.logits(layers, self._inputs), self._logits, strict=True):
            spread = ((logits - logits.mean(axis=(1, 2), keepdims=True)) ** 2).sum()
            errors.append(((found - logits) ** 2).sum() / max(spread, np.finfo(np.float32).tiny))
            equal.append(float((_labels(found) == _labels(logits)).mean()))
        return float(np.mean(errors)), float(np.mean(equal))


def _labels(logits: np.ndarray) -> np.ndarray:
    return logits > 0 if logits.shape[-1] == 1 else logits.argmax(axis=-1)


def layer_errors(measure: _Measure, multiply_adds: Mapping[str, int]) -> dict[str, float]:
    """Error that each layer makes when it alone is quantised.

    Layers of a kind whose error together is small were measured together; it is shared out by multiply-adds.

    Args:
        measure: Gives the error of some layers.
        multiply_adds: Of each layer.
    """
    from tqdm.auto import tqdm

    kinds: dict[str, list[str]] = {}
    for name in multiply_adds:
        kinds.setdefault(_kind(name), []).append(name)
    together = {kind: measure(names)[0] for kind, names in tqdm(kinds.items(), desc="measuring layers", leave=False)}
    whole, errors = sum(together.values()), {}
    for kind, names in kinds.items():
        own = sum(multiply_adds[name] for name in names)
        apart = len(names) > 1 and together[kind] > _NOTABLE * whole
        for name in names:
            errors[name] = measure([name])[0] if apart else together[kind] * multiply_adds[name] / own
    return errors


def _kind(name: str) -> str:
    """A name without its last number: the same layer of other blocks."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join("*" if index == numbers[-1] else part for index, part in enumerate(parts)) if numbers else name


def sensitive_layers(errors: Mapping[str, float], multiply_adds: Mapping[str, int], min_int8: float) -> list[str]:
    """Names of the layers to leave in float, those with the largest error first.

    Args:
        errors: Of each layer.
        multiply_adds: Of each layer.
        min_int8: Part of the multiply-adds that must remain; a layer that is too large for that is quantised.
    """
    whole, total, kept = sum(errors.values()), sum(multiply_adds.values()), []
    left = total
    for name in sorted(errors, key=lambda name: -errors[name]):
        after = left - multiply_adds[name]
        if whole and errors[name] >= SENSITIVE * whole and after >= min_int8 * total:
            kept.append(name)
            left = after
    return kept


def _latencies(files: Sequence[Path], inputs: Mapping[str, np.ndarray]) -> list[float]:
    """Median milliseconds of each file, run in turns."""
    sessions = [open_session(file) for file in files]
    seconds: list[list[float]] = [[] for _ in files]
    for _ in range(_ROUNDS + 1):
        for session, own in zip(sessions, seconds, strict=True):
            started = time.perf_counter()
            session.run(None, dict(inputs))
            own.append(time.perf_counter() - started)
    return [1000 * statistics.median(own[1:]) for own in seconds]
