# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX files beside a model that is pushed: whole, and of that model's classes. Read without any ONNX package."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..configuration_segformer import SegformerConfig
from ..runtimes.metadata import METADATA_KEY, check_weights, parse_metadata
from ..texts import listed

_GRAPH, _METADATA_PROPS = 7, 14  # fields of ModelProto


def check_onnx_file(path: Path, config: SegformerConfig, folder: Path) -> None:
    """Check an ONNX file.

    Args:
        path: The file.
        config: Configuration of the model that it should be.
        folder: Folder of that model.

    Raises:
        ValueError: It is no ONNX file or cut off, or `segformer export` made it of a model with other classes or
            weights.
    """
    text = onnx_metadata(path).get(METADATA_KEY)
    if text is None:  # of another program, which says nothing of classes
        return
    metadata = parse_metadata(text, path)
    names = metadata.config.class_names
    if names != config.class_names:
        raise ValueError(
            f"{path} has {len(names)} classes ({listed(names, 5)}), config.json beside it {len(config.class_names)} "
            f"({listed(config.class_names, 5)}): export the model anew"
        )
    check_weights(metadata, path, folder)


def onnx_metadata(path: Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file, whose graph is passed over.

    Args:
        path: The file.

    Raises:
        ValueError: It is no ONNX file, or cut off.
    """
    try:
        with open(path, "rb") as file:
            fields = list(_fields(file, os.fstat(file.fileno()).st_size, _METADATA_PROPS))
        pairs = [_entry(content) for number, content in fields if number == _METADATA_PROPS]
    except ValueError as error:
        raise ValueError(f"{path} is no ONNX file, or cut off: {error}") from error
    if _GRAPH not in dict(fields):
        raise ValueError(f"{path} is no ONNX file, or cut off: it holds no graph")
    return dict(pairs)


def _entry(content: bytes) -> tuple[str, str]:
    texts = {number: text.decode() for number, text in _fields(io.BytesIO(content), len(content), 1, 2)}
    return texts.get(1, ""), texts.get(2, "")


def _fields(file: BinaryIO, size: int, *wanted: int) -> Iterator[tuple[int, bytes]]:
    """Number of each field of a protocol buffer that has a length, and its bytes if it is a wanted one."""
    while file.tell() < size:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if number == 0 or kind not in (0, 1, 2, 5):
            raise ValueError(f"a field begins with {tag}")
        if kind == 0:
            _varint(file)
            continue
        length = {1: 8, 5: 4}.get(kind) or _varint(file)
        end = file.tell() + length
        if end > size:
            raise ValueError(f"it ends {end - size} bytes early")
        yield number, file.read(length) if number in wanted else b""
        file.seek(end)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number is too long")
