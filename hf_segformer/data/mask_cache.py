# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The drawn masks of all data sets, kept below a size: the data sets that were not used for longest go first.

A process holds a lock on the data sets that it uses, as long as it lives, and none that is held is removed. Locks are
files beside the folders of the data sets, and their times are those of the last use. On systems and drives without
locks nothing is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LIMIT_VARIABLE = "HF_SEGFORMER_MASKS_GB"
LIMIT = 20.0  # GB
INDEX = "index.json"
_held: dict[str, int] = {}  # folder -> descriptor of its lock


def hold(folder: Path, to_draw: bool = False) -> None:
    """Keep the masks of a data set from being removed as long as this process lives.

    Args:
        folder: The folder of the data set.
        to_draw: Whether masks are about to be drawn; where no process uses the folder, those that its index does not
            name are removed first.
    """
    if fcntl is None or str(folder) in _held:
        return
    with contextlib.suppress(OSError):  # no locks here, or no right to write: then nothing is removed either
        descriptor = _open_lock(folder)
        try:
            if to_draw:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove_unnamed(folder)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.utime(_lock_of(folder))
        except BaseException:
            os.close(descriptor)
            raise
        _held[str(folder)] = descriptor


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _open_lock(folder: Path) -> int:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _remove_unnamed(folder: Path) -> None:
    """Remove masks of shapes that have changed since; what the index of the last start names stays."""
    try:
        text = (folder / INDEX).read_bytes().partition(b"\n")[2]
        named = {os.path.basename(str(value)) for row in json.loads(text)["pictures"] for value in row}
    except (OSError, ValueError, KeyError, TypeError):
        named = set()
    for path in folder.glob("??/*"):
        if path.name not in named:
            path.unlink(missing_ok=True)


def limit_bytes() -> float:
    """Return the most that all masks together may take: `HF_SEGFORMER_MASKS_GB`, else 20 GB.

    Raises:
        ValueError: The variable is no number of at least 0.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ValueError(f"{LIMIT_VARIABLE} must be a number of gigabytes >= 0, got {text!r}")
    return limit * 1e9


def trim(root: Path, limit: float) -> list[Path]:
    """Remove data sets that no process holds, those not used for longest first, until all take `limit` bytes at most.

    Args:
        root: The folder that holds them.
        limit: Bytes.

    Returns:
        The folders that were removed.
    """
    if fcntl is None:
        return []
    folders = [entry for entry in root.iterdir() if entry.is_dir()]
    sizes = {folder: _size(folder) for folder in folders}
    total, removed = sum(sizes.values()), []
    for folder in sorted(folders, key=_last_use):
        if total <= limit:
            break
        if str(folder) not in _held and _remove(folder):
            removed.append(folder)
            total -= sizes[folder]
    return removed


def _size(folder: Path) -> int:
    return sum(entry.stat(follow_symlinks=False).st_size for entry in _files(folder))


def _files(folder: str | Path) -> Iterator[os.DirEntry]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # another process may remove it
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            else:
                yield entry


def _last_use(folder: Path) -> float:
    for path in (_lock_of(folder), folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _remove(folder: Path) -> bool:
    """Remove a data set unless it is in use; say whether it was removed."""
    try:
        descriptor = _open_lock(folder)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / INDEX).unlink(missing_ok=True)  # first, so that a half of it is not taken for the whole
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
