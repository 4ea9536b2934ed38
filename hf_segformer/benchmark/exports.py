# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported files against those of `transformers`' network, in the same runtime and in turns."""

from __future__ import annotations

import functools
import importlib.util
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from ..export.folding import Weights
from ..export.metadata import describe
from ..export.sessions import open_file
from ..export.settings import Settings
from ..image_processing_segformer import SegformerImageProcessor
from .measure import Contender, Report, alternate, milliseconds, ratio, span
from .networks import Networks, export_onnx

if TYPE_CHECKING:
    from .comparison import BenchmarkArguments

_RUNTIMES = {"onnxruntime": ("ONNX Runtime", "onnx"), "openvino": ("OpenVINO", "openvino")}
_OUTPUTS = ("logits", "labels", "labels+confidence")


def measure_exports(networks: Networks, args: BenchmarkArguments, report: Report) -> None:
    """Table of the exported files of both networks, for any size of picture, in each runtime that is installed."""
    rows: list[list[str]] = []
    pixel_values = torch.randn(args.batch_size, 3, *args.image_size)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        theirs = export_onnx(networks.theirs, pixel_values, folder / "transformers.onnx", any_size=True)
        for package, (title, format) in _RUNTIMES.items():
            if package not in args.competitors or importlib.util.find_spec(package) is None:
                rows.append([title, "not installed"])
                continue
            files = {"transformers, logits": theirs}
            files |= {f"ours, {output}": _write(networks.ours, format, output, folder) for output in _OUTPUTS}
            seconds = _seconds(files, format, pixel_values, args)
            report.data("exports", {"network": networks.name, "runtime": title, "seconds": seconds})
            stock, logits = seconds["transformers, logits"], seconds["ours, logits"]
            for name, own in seconds.items():
                more = "" if name in ("transformers, logits", "ours, logits") else ratio(own, logits)[0]
                rows.append([title, name, milliseconds(own), span(own), *ratio(stock, own), more])
    report.text("### Exported files for any size of picture")
    header = [
        "runtime",
        "file",
        "ms",
        "range",
        "times faster than transformers",
        "range",
        "times as long as our logits",
    ]
    report.table(header, rows)


def _seconds(
    files: dict[str, Path], format: str, pixel_values: torch.Tensor, args: BenchmarkArguments
) -> dict[str, list[float]]:
    values = pixel_values.numpy()
    contenders = []
    for name, file in files.items():
        contenders.append(Contender(name, functools.partial(open_file(format, file, args.threads), values)))
    return alternate(contenders, args.pairs)


def _write(network: Any, format: str, output: str, folder: Path) -> Path:
    """An exported file of this package's network."""
    settings = Settings(format, output)
    weights, metadata = Weights(network), describe(network.config, SegformerImageProcessor(), settings)
    if format == "openvino":
        from ..export import openvino

        openvino.save(weights, metadata, settings, folder / f"{output}.xml")
        return folder / f"{output}.xml"
    from ..export import onnx

    onnx.save(onnx.build(weights, metadata, settings), folder / f"{output}.onnx")
    return folder / f"{output}.onnx"
