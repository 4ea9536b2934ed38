# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What earlier checks of a data set found, so that the next start need not read every file again.

Only good samples are kept, each under the paths, sizes and times of modification of its two files (or under their
contents where they are no files of their own). One file holds the samples of one split, read in one way.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import atomic_file
from .archives import is_member_path
from .files import shown

VERSION = 1
SETTLED = 2.0  # seconds; a file changed so lately could change again without its time telling
FOLDER_VARIABLE = "HF_SEGFORMER_CHECKS"

Entry = list[int]  # ignored pixels, then class, pixels, class, pixels, ...


def cache_folder() -> Path:
    """Return where results are kept: `HF_SEGFORMER_CHECKS`, else `hf_segformer/checks` in the Hub's `HF_HOME`."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get(FOLDER_VARIABLE) or Path(HF_HOME, "hf_segformer", "checks"))


def sample_key(example: Mapping[str, Any]) -> str | None:
    """Return what a sample's result is kept under; None where nothing tells whether its files have changed."""
    parts = [_identity(example[column]) for column in ("image", "annotation")]
    return None if None in parts else _digest(parts)


def source_key(source: Any) -> str | None:
    """Return what the result of a single picture is kept under; None as in `sample_key`."""
    identity = _identity(source)
    return None if identity is None else _digest(identity)


def _identity(source: Any) -> list | None:
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return [hashlib.blake2b(source["bytes"], digest_size=16).hexdigest()]
        source = source.get("path")
    member = ""
    if is_member_path(source):
        member, _, source = source.removeprefix("zip://").partition("::")
    if not isinstance(source, (str, os.PathLike)) or "://" in str(source):
        return None
    try:
        status = os.stat(source)
    except (OSError, ValueError):  # reading it will tell what is wrong
        return None
    if status.st_mtime > time.time() - SETTLED:
        return None
    return [os.path.abspath(source), member, status.st_size, status.st_mtime_ns]


def _digest(value: Any) -> str:
    text = json.dumps(value)  # escapes what is no text
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class CheckCache:
    """Results of one split.

    Args:
        settings: Whatever decides about a result beside the files: a value for JSON.
        num_classes: K; entries with other classes are not believed.
    """

    def __init__(self, settings: Any, num_classes: int):
        self._path = cache_folder() / f"{_digest([VERSION, settings])}.json"
        self._num_classes = num_classes
        self._entries = self._read()

    def _read(self) -> dict[str, Any]:
        """A file that is missing or damaged holds nothing."""
        try:
            digest, _, text = self._path.read_bytes().partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != digest:
                return {}
            entries = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def get(self, key: str | None) -> Entry | None:
        """Return the result kept under a key, or None."""
        entry = None if key is None else self._entries.get(key)
        return entry if self._is_sound(entry) else None

    def _is_sound(self, entry: Any) -> bool:
        if not isinstance(entry, list) or len(entry) % 2 == 0:
            return False
        numbers = all(type(value) is int and 0 <= value < 1 << 62 for value in entry)
        return numbers and all(index < self._num_classes for index in entry[1::2])

    def add(self, entries: Mapping[str, Entry], most: int) -> None:
        """Write more results; those that another process has written meanwhile stay, as far as there is room.

        Args:
            entries: Results by key.
            most: Number of results to keep.
        """
        if not entries:
            return
        kept = {**self._read(), **entries}
        for key in list(kept)[: max(len(kept) - most, 0)]:
            del kept[key]
        text = json.dumps(kept, separators=(",", ":")).encode()
        try:
            with atomic_file(self._path) as file:
                file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(
                f"{shown(self._path)}: cannot keep the results of the check, the next start repeats it: {reason}; "
                f"{FOLDER_VARIABLE} names another folder",
                stacklevel=2,
            )
