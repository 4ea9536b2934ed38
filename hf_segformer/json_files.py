# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Small text and JSON files of a user or of others, read with errors that name the file and the rule."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from .texts import short_repr

_MAX_BYTES = 16 * 2**20
_MAX_DIGITS = 300  # so that a float can hold it
_KINDS: dict[type, str] = {dict: "an object", list: "a list"}


def read_text(path: str | os.PathLike) -> str:
    """Read a text file in UTF-8, with or without byte order mark, with line breaks of any system.

    Args:
        path: The file.

    Raises:
        ValueError: It is missing, no regular file, unreadable, too large or not UTF-8; names the file.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ValueError(f"{path} is missing")
        if not path.is_file():  # a pipe would be waited for
            raise ValueError(f"{path} is no regular file")
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ValueError(f"{path} has {size} bytes, at most {_MAX_BYTES} are read of such a file")
        return re.sub("\r\n?", "\n", path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise ValueError(f"{path} must be text in UTF-8, {byte} is none: {error.reason}") from None


def read_json(path: str | os.PathLike, kinds: tuple[type, ...] = (dict,)) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kinds: What it may hold: `dict`, `list` or both.

    Returns:
        The object or list; `NaN` and `Infinity`, which Python writes, are taken.

    Raises:
        ValueError: See `read_text`; or it is no JSON, is nested too deeply, repeats a key, holds a number beyond
            floating point, or something else than `kinds`. Names the file.
    """
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_int=_int)
    except RecursionError:
        raise ValueError(f"{path} is no JSON file that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(content, kinds):
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        raise ValueError(f"{path} must hold {wanted} of JSON, got {short_repr(content)}")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {short_repr(key)} must stand once in an object, got it repeated")
            seen.add(key)
    return content


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"numbers must be within floating point, got {short_repr(text)}")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"integers must have at most {_MAX_DIGITS} digits, got {len(text)}")
    return int(text)
