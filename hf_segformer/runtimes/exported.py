# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""An exported file in the place of a model: `segment`, `evaluate` and `predict` call it as they call the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from ..hub_errors import explained, hub_file, load_model, load_processor
from ..image_processing_segformer import SegformerImageProcessor
from ..texts import short_repr
from .metadata import check_weights
from .programs import Program, open_with_onnxruntime, open_with_openvino, open_with_torch

# OpenVINO reads ONNX as well; the first that takes a suffix is what it means by itself.
RUNTIMES = {"torch": (".pt2",), "onnx": (".onnx",), "openvino": (".xml", ".onnx")}
_SUFFIXES = tuple(dict.fromkeys(suffix for suffixes in RUNTIMES.values() for suffix in suffixes))
_OPENERS = {"torch": open_with_torch, "onnx": open_with_onnxruntime, "openvino": open_with_openvino}
_ONNX_IN_FOLDERS = ("onnx/model.onnx", "model.onnx")  # as Transformers.js and optimum have it


class LabelMaps(NamedTuple):
    """What files give that were exported with labels, each at the size of the network input."""

    labels: Tensor  # (B, H, W) int64
    confidence: Tensor | None  # (B, H, W) float32 in [0, 1]


class ExportedModel(nn.Module):
    """An exported file, called as the network is: with what the image processor returns.

    It runs on the CPU, where `to` leaves it, with as many threads as PyTorch has.

    Attributes:
        path: The file.
        config: Configuration of the network: classes, palette, stages.
        image_processor: What prepares pictures for it. In files of one size it resizes to that.
        gives_labels: Whether the file gives label maps rather than logits.
        gives_confidence: Whether the file gives the labels' probabilities.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, path: Path, program: Program):
        super().__init__()
        metadata = program.metadata
        self.path, self.config, self._program, self.metadata = path, metadata.config, program, metadata
        self.gives_labels, self.gives_confidence = "labels" in metadata.outputs, "confidence" in metadata.outputs
        if missing := [name for name in metadata.outputs if name not in program.outputs]:
            raise ValueError(f"{path} must have the output {missing[0]!r}, got {', '.join(program.outputs)}")
        classes = (program.outputs.get("logits") or (None, None))[1]
        if classes not in (None, self.config.num_labels):
            raise ValueError(
                f"{path} gives logits of {classes} classes, but num_labels={self.config.num_labels} is said of it"
            )
        if (program.dtype is np.uint8) != metadata.normalizes:
            says = "inside" if metadata.normalizes else "outside"
            raise ValueError(f"{path} takes {program.dtype.__name__} pixel_values, but normalize={says} is said of it")
        self.image_processor = _for_size(metadata.image_processor, program.shape[2:])

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput | LabelMaps:
        """Run the file.

        Args:
            pixel_values: (B, C, H, W) as the image processor returns it, also for files that normalise themselves.

        Returns:
            An output with `logits` (B, K, h, w) float32, or label maps.

        Raises:
            ValueError: The file takes other sizes, or its runtime fails.
        """
        self._check_shape(tuple(pixel_values.shape))
        batch = self._pixels(pixel_values) if self._program.metadata.normalizes else pixel_values
        array: np.ndarray = batch.cpu().numpy().astype(self._program.dtype, copy=False)
        step = self._program.shape[0] or len(array)
        parts = [self._program.run(array[start : start + step]) for start in range(0, len(array), step)]
        names = self._program.metadata.outputs
        outputs = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names}
        if not self.gives_labels:
            return SemanticSegmenterOutput(logits=outputs["logits"].float())
        return LabelMaps(outputs["labels"].long(), outputs["confidence"].float() if self.gives_confidence else None)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        batch, *sides = self._program.shape
        fits = len(shape) == 4 and all(side in (None, got) for side, got in zip(sides, shape[1:], strict=True))
        if not fits or shape[0] % (batch or 1):
            wanted = ", ".join("any" if side is None else str(side) for side in self._program.shape)
            raise ValueError(
                f"{self.path} takes pixel_values of the shape ({wanted}), got {shape}: choose a protocol that resizes "
                "to it, or export without a fixed size"
            )

    def _pixels(self, values: Tensor) -> Tensor:
        """The 8-bit pixels that the image processor normalised; its zeros, which pad, become the mean colour."""
        processor = self.image_processor
        if processor.do_normalize:
            mean, std = (
                torch.tensor(value).reshape(-1, 1, 1) for value in (processor.image_mean, processor.image_std)
            )
            values = values * std + mean
        if processor.do_rescale:
            values = values / processor.rescale_factor
        return values.round().clamp(0, 255).to(torch.uint8)


def _for_size(processor: SegformerImageProcessor, size: tuple[int | None, ...]) -> SegformerImageProcessor:
    """The processor, which resizes to the only size that a file takes unless it pads to that."""
    height, width = size
    if height is None or width is None:
        return processor
    sides = {"height": height, "width": width}
    fields: dict[str, Any] = processor.to_dict()
    if fields.get("do_pad") and dict(fields.get("pad_size") or {}) == sides:
        return processor
    resized = {"do_resize": True, "size": sides, "keep_ratio": False, "size_divisor": None, "do_pad": False}
    return SegformerImageProcessor.from_dict(fields | resized)


def load_exported(path: str | os.PathLike, runtime: str | None = None) -> ExportedModel:
    """Open a file that `segformer export` wrote, or an ONNX file within a model folder of optimum or Transformers.js.

    Args:
        path: A file .onnx, .xml (OpenVINO, its .bin beside it) or .pt2 (torch.export; only from sources you trust).
        runtime: "onnx", "openvino" (which takes ONNX too) or "torch"; None goes by the suffix.

    Raises:
        ValueError: There is no such file, it is of another kind, damaged or at odds with what it says of itself, the
            runtime does not take it, or its package is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"{path} is no exported file: their names end in {', '.join(_SUFFIXES)}; other files of weights are read "
            "by `segformer convert`"
        )
    takes = [name for name, suffixes in RUNTIMES.items() if suffix in suffixes]
    if runtime is not None and runtime not in takes:
        raise ValueError(f"runtime must be {' or '.join(takes)} for {path}, got {runtime!r}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return ExportedModel(path, _OPENERS[runtime or takes[0]](path))


def load_segmenter(source: str | os.PathLike, runtime: str | None = None) -> tuple[Any, SegformerImageProcessor]:
    """A model and its image processor, for `segment`: out of a folder, the Hub or an exported file.

    Args:
        source: Folder, Hub id, or a file .onnx, .xml or .pt2.
        runtime: "torch", "onnx" or "openvino". None goes by the suffix of a file and takes "torch" otherwise; the
            others take onnx/model.onnx of a folder or repository.

    Returns:
        `SegformerForSemanticSegmentation` or `ExportedModel`, and its image processor.

    Raises:
        ValueError: There is no such model, it is damaged, or the runtime is unknown, is not installed or does not take
            it.
    """
    if runtime is not None and (not isinstance(runtime, str) or runtime not in RUNTIMES):
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {short_repr(runtime)}")
    path = Path(source)
    if path.is_dir() or not (path.is_file() or path.suffix.lower() in _SUFFIXES):
        if runtime in (None, "torch"):
            return load_model(source), load_processor(source)
        path = _onnx_of(source)
    model = load_exported(path, runtime)
    if path != Path(source) and Path(source).is_dir():
        check_weights(model.metadata, path, source)
    return model, model.image_processor


def _onnx_of(source: str | os.PathLike) -> Path:
    """The ONNX file of a folder, or of a repository after it was fetched with what lies beside it."""
    if os.path.isdir(source):
        found = [path for name in _ONNX_IN_FOLDERS if (path := Path(source) / name).is_file()]
    else:
        with explained(source):
            for name in ("config.json", "preprocessor_config.json"):
                hub_file(str(source), name)
            fetched = [hub_file(str(source), name) for name in _ONNX_IN_FOLDERS]
            found = [path for path in fetched if path is not None]
    if not found:
        raise ValueError(f"{source} has no {' or '.join(_ONNX_IN_FOLDERS)}: `segformer export` writes them")
    return found[0]
