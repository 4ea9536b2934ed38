# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX files in a model folder, where Transformers.js, optimum and `segformer push` look for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..hub_errors import load_config, load_processor
from ..image_processing_segformer import SegformerImageProcessor
from .exporting import export_model
from .report import ExportReport

# What those programs expect of a file.
_EXPECTED = {"format": "onnx", "output": "logits", "normalize": "outside", "size": None}
_DIFFERS = ("transformers_version", "dtype", "torch_dtype", "_name_or_path")  # without being another model


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path means a folder: there is one, it ends in a slash, or its name has no suffix."""
    text = os.fspath(path)
    return os.path.isdir(text) or text.endswith(("/", os.sep)) or not Path(text).suffix


class OnnxFolder:
    """A folder that holds ONNX files of one model, with its configuration and preprocessing.

    Args:
        folder: The model's own, whose files stay as they are, or another one, which need not exist.
        source: Folder or Hub id of the model.

    Raises:
        ValueError: The folder holds another model's files, or the model cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, source: str | os.PathLike):
        self.folder = Path(folder)
        self._parts = _parts(source)
        if (self.folder / "config.json").exists() and not _is_same(folder, source):
            for name, part in _parts(folder).items():
                if _fields(part) != _fields(self._parts[name]):
                    raise ValueError(
                        f"{self.folder / name} must be as that of {source}: the folder is another model's"
                    )

    def file(self, half: bool = False, int8: bool = False) -> Path:
        """Where a file goes, by the name that Transformers.js takes for the dtype fp32, fp16 or q8."""
        return self.folder / "onnx" / f"model{'_quantized' if int8 else '_fp16' if half else ''}.onnx"

    def complete(self) -> None:
        """Write config.json and preprocessor_config.json where they are missing."""
        for name, part in self._parts.items():
            if not (self.folder / name).exists():
                part.save_pretrained(self.folder)


def export_to_folder(
    source: str | os.PathLike, folder: str | os.PathLike, format: str = "onnx", **options: Any
) -> ExportReport:
    """Write a model as onnx/model.onnx of a folder, with config.json and preprocessor_config.json beside onnx/.

    With `half` the file is onnx/model_fp16.onnx, with `int8` onnx/model_quantized.onnx.

    Args:
        source: Folder or Hub id of the model.
        folder: The model's own, whose files stay as they are, or another one, which need not exist.
        format: "onnx".
        **options: As in `export_model`.

    Raises:
        ValueError: As `export_model`; or the programs that read such folders could not use the file, or the folder
            holds another model's files.
        ExportDisagrees: As `export_model`.
    """
    given = {**_EXPECTED, **options, "format": format}
    for name, expected in _EXPECTED.items():
        if given[name] != expected:
            raise ValueError(
                f"{name} must be {expected or 'left out'} for the folder {folder}, as Transformers.js and optimum "
                f"expect it, got {given[name]!r}: for anything else give the name of a file"
            )
    place = OnnxFolder(folder, source)
    path = place.file(bool(options.get("half")), bool(options.get("int8")))
    report = export_model(source, path, format, **options)
    place.complete()
    return report


def _is_same(folder: str | os.PathLike, source: str | os.PathLike) -> bool:
    return os.path.isdir(source) and os.path.samefile(folder, source)


def _parts(source: str | os.PathLike) -> dict[str, Any]:
    processor = load_processor(source, SegformerImageProcessor())
    return {"config.json": load_config(source), "preprocessor_config.json": processor}


def _fields(part: Any) -> dict[str, Any]:
    """What makes a model."""
    return {name: value for name, value in part.to_dict().items() if name not in _DIFFERS}
