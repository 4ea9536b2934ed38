# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Writing a file, running it, and keeping it if it computes what the model does."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..data import SegmentationData
from ..evaluation.inference import inference_of
from ..evaluation.loop import check_classes
from ..files import replace_path
from ..hub_errors import load_model, load_processor
from ..image_processing_segformer import SegformerImageProcessor
from ..runtimes.metadata import weights_digest
from .calibration import calibration_inputs, check_int8
from .checks import Comparison
from .data import mean_iou, pictures_of, prepared
from .folding import Weights
from .metadata import describe
from .report import ExportReport, require_agreement
from .sessions import open_file
from .settings import FORMATS, Settings, report_path


def export_model(
    model: nn.Module | str | os.PathLike,
    path: str | os.PathLike,
    format: str = "onnx",
    *,
    output: str = "logits",
    normalize: str = "outside",
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    half: bool = False,
    image_processor: SegformerImageProcessor | None = None,
    data: SegmentationData | None = None,
    split: str = "validation",
    overwrite: bool = False,
    int8: str | os.PathLike | SegmentationData | None = None,
) -> ExportReport:
    """Write a model as a file that runs without this package, and report on it.

    The file is written to another place, run and compared with the model, and gets its name only if it agrees. The
    report lies beside it as PATH.report.json.

    Args:
        model: A network, or its folder or Hub id.
        path: The file, ending in .onnx, .xml (OpenVINO, which keeps the weights in a .bin beside it) or .pt2.
        format: "onnx", "openvino" or "torch-export".
        output: "logits", float32 (B, K, H/4, W/4); "labels", uint8 (uint16 above 256 classes) (B, H, W); or
            "labels+confidence", with the labels' probabilities, float32 (B, H, W).
        normalize: "outside": the input is float32 (B, 3, H, W), what the image processor returns; "inside": uint8.
        size: H and W, if only one size is wanted.
        opset: Version of the operators of an ONNX file.
        half: Store weights in float16; they are computed with in float32.
        image_processor: Processor of the model; its folder's if left out, or else the default one.
        data: Data set to compare labels and mIoU on; drawn pictures and no mIoU if left out.
        split: Split of that data set.
        overwrite: Whether files that are there are replaced.
        int8: Compute in int8, with ranges from these pictures; see `calibration_inputs`. The float file is checked
            against the model first, the int8 file by its labels; see `quantize_onnx`.

    Raises:
        ValueError: An argument is out of range, the model cannot be exported, or there is a file at `path`.
        ExportDisagrees: The file computes something else than the model; it is not kept.
    """
    path, settings = Path(path), Settings(format, output, normalize, size, opset, half)
    digest = None
    if isinstance(model, (str, os.PathLike)):
        digest = weights_digest(model)
        image_processor = image_processor or load_processor(model, SegformerImageProcessor())
        model = load_model(model)
    network: Any = model
    image_processor = image_processor or SegformerImageProcessor()
    settings.check(network.config)
    settings.check_path(path, overwrite)
    weights, metadata = Weights(network), describe(network.config, image_processor, settings)
    metadata["weights"] = digest
    if data is not None:
        check_classes(network, data)
    if int8 is not None:
        check_int8(settings)
    calibration = None if int8 is None else calibration_inputs(int8, network, image_processor, settings)
    with inference_of(network), _temporary(path) as temporary:
        _write(network, weights, metadata, settings, temporary)
        comparison = Comparison(network, open_file(format, temporary), settings, metadata["preprocessor"])
        pictures = [prepared(picture, image_processor, settings) for picture in pictures_of(data, split)]
        report = _report(comparison, path, temporary, pictures)
        if calibration is not None:
            _quantize(comparison, temporary, calibration, report)
            report.agreement = comparison.agreement(pictures)
        if data is not None:
            report.pictures = f"{split} of {data.name}"
            report.mean_iou = mean_iou(comparison, data, split, image_processor)
        text = json.dumps(asdict(report), indent=2)
        report_path(temporary).write_text(f"{text}\n", encoding="utf-8")
    return report


def _write(model: Any, weights: Weights, metadata: dict[str, Any], settings: Settings, path: Path) -> None:
    if settings.format == "torch-export":
        from . import torch_export

        torch_export.save(model, weights, metadata, settings, path)
    elif settings.format == "openvino":
        from . import openvino

        openvino.save(weights, metadata, settings, path)
    else:
        from . import onnx

        onnx.save(onnx.build(weights, metadata, settings), path)


def _quantize(comparison: Comparison, path: Path, inputs: list[np.ndarray], report: ExportReport) -> None:
    """Replace a float file by an int8 file, also in the comparison and in the report."""
    from .int8 import quantize_onnx

    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(shutil.move(path, folder))
        report.int8 = quantize_onnx(float_file, path, inputs)
    comparison.run = open_file("onnx", path)
    report.bytes = path.stat().st_size
    report.latency_ms, report.eager_ms = comparison.latency()


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder of its own, whose files take their places when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{uuid.uuid4().hex}.tmp")
    folder.mkdir()
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):  # what it refers to first
            replace_path(file, path.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _report(comparison: Comparison, path: Path, written: Path, pictures: list[np.ndarray]) -> ExportReport:
    settings = comparison.settings
    checks = [comparison.check(comparison.inputs(shape, seed)) for seed, shape in enumerate(comparison.sizes())]
    agreement = comparison.agreement(pictures)
    require_agreement(comparison, checks, agreement)
    differences = [check.difference for check in checks if check.difference is not None]
    packages = ["torch", "numpy", *FORMATS[settings.format][1]]
    file_ms, eager_ms = comparison.latency()
    return ExportReport(
        str(path),
        vars(settings),
        {package: importlib.metadata.version(package) for package in packages},
        sum(file.stat().st_size for file in written.parent.iterdir()),
        checks,
        max(differences) if differences else None,
        comparison.tolerance,
        "drawn",
        agreement,
        file_ms,
        eager_ms,
        comparison.speed_size,
    )
