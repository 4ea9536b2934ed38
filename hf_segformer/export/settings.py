# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What an export is to be, and which of these wishes cannot be met."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..pretrained.input_checks import smallest_side

OUTPUTS = ("logits", "labels", "labels+confidence")
NORMALIZE = ("outside", "inside")
# Suffix of the file, and the packages that write and run it.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": (".onnx", ("onnx", "onnxruntime")),
    "openvino": (".xml", ("onnx", "openvino")),
    "torch-export": (".pt2", ()),
}
ACTIVATIONS = ("gelu", "relu", "silu", "swish")
OPSETS = range(17, 24)  # from the first with LayerNormalization; the last that the tests run
DEFAULT_OPSET = 20
MOST_CLASSES = 1 << 16


@dataclass(frozen=True)
class Settings:
    """What an export is to be.

    Args:
        format: "onnx", "openvino" or "torch-export".
        output: "logits", "labels" (a label map of the input's size) or "labels+confidence".
        normalize: "inside" for uint8 pixels as input, "outside" for what the image processor returns.
        size: Height and width if they are to be fixed.
        opset: Version of the operators, for ONNX files.
        half: Whether weights are stored in float16; they are computed with in float32.
    """

    format: str = "onnx"
    output: str = "logits"
    normalize: str = "outside"
    size: tuple[int, int] | None = None
    opset: int | None = None
    half: bool = False

    def check(self, config: Any) -> None:
        """Refuse what cannot be written.

        Args:
            config: Configuration of the model.

        Raises:
            ValueError: A field is out of range, packages are missing, or the model cannot be exported in this way.
        """
        for name, known in (("format", tuple(FORMATS)), ("output", OUTPUTS), ("normalize", NORMALIZE)):
            if getattr(self, name) not in known:
                hint = ' (pip install "hf_segformer[export]" for what they need)' if name == "format" else ""
                raise ValueError(f"{name} must be one of {', '.join(known)}{hint}, got {getattr(self, name)!r}")
        self._check_opset()
        self._check_activation(config)
        self._check_classes(config)
        self._check_size(config)
        missing = [package for package in FORMATS[self.format][1] if importlib.util.find_spec(package) is None]
        if missing:
            raise ValueError(
                f"format {self.format} needs {' and '.join(missing)}, not installed here: "
                'pip install "hf_segformer[export]"'
            )

    def _check_activation(self, config: Any) -> None:
        if self.format != "torch-export" and config.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"format {self.format} must have a model with hidden_act {', '.join(ACTIVATIONS)}, got "
                f"{config.hidden_act!r}: torch-export takes any"
            )

    def _check_opset(self) -> None:
        if self.opset is None:
            return
        if self.format != "onnx":
            raise ValueError(f"opset must be left out with format {self.format}, got {self.opset}")
        if self.opset not in OPSETS:
            raise ValueError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {self.opset}")

    def _check_classes(self, config: Any) -> None:
        if config.num_labels < 1:
            raise ValueError(f"model must have at least one class, got num_labels={config.num_labels}")
        if self.output == "logits":
            return
        if config.num_labels > MOST_CLASSES:
            raise ValueError(
                f"output {self.output} must have at most {MOST_CLASSES} classes, which uint16 holds; the model has "
                f"{config.num_labels}"
            )
        if is_multi_label(config):
            raise ValueError(
                f"output must be logits for a model whose classes overlap (problem_type {config.problem_type}), got "
                f"{self.output!r}"
            )

    def _check_size(self, config: Any) -> None:
        if self.size is None:
            return
        if self.format == "openvino":
            raise ValueError(
                "size must be left out with format openvino, whose version 2026.4 crashes on some networks of a fixed "
                f"size; got {self.size}"
            )
        smallest = smallest_side(config)
        if len(self.size) != 2 or min(self.size) < smallest:
            raise ValueError(f"size must be a height and a width of at least {smallest} pixels, got {self.size}")

    def check_path(self, path: Path, overwrite: bool) -> None:
        """Refuse a place where the file cannot go.

        Args:
            path: The file to write.
            overwrite: Whether files that are there may be replaced.

        Raises:
            ValueError: The suffix is another format's, the folder is a file, or something is there already.
        """
        suffix = FORMATS[self.format][0]
        if path.suffix != suffix:
            raise ValueError(f"path must end in {suffix} with format {self.format}, got {path}")
        for file in self.files(path):
            if os.path.lexists(file) and not (overwrite and file.is_file()):
                how = "" if file.is_dir() else "; overwrite (--overwrite) replaces it"
                raise ValueError(f"path must be free: {file} exists{how}")
        folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        if not folder.is_dir():
            raise ValueError(f"path must lie in a folder, {folder} is none")

    def files(self, path: Path) -> list[Path]:
        """The files of an export, the report last."""
        files = [path.with_suffix(".bin"), path] if self.format == "openvino" else [path]
        return [*files, report_path(path)]


def format_of(path: str | os.PathLike) -> str:
    """The format whose files end as a path does.

    Args:
        path: A file to write.

    Raises:
        ValueError: The suffix is that of no format.
    """
    for name, (suffix, _) in FORMATS.items():
        if Path(path).suffix == suffix:
            return name
    raise ValueError(f"path must end in {', '.join(suffix for suffix, _ in FORMATS.values())}, got {path}")


def report_path(path: Path) -> Path:
    """Where the report on an exported file stands."""
    return path.with_name(f"{path.name}.report.json")


def is_multi_label(config: Any) -> bool:
    """Whether several classes may be at one pixel."""
    return config.problem_type == "multi_label_classification"


def label_type(num_labels: int) -> type[np.generic]:
    """Type of label maps."""
    return np.uint8 if num_labels <= 256 else np.uint16
