# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, on every platform."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_WINDOWS = os.name == "nt"
# Windows refuses to replace what another process has open; virus scanners and indexers let go again soon.
_REPLACE_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well, and leaves nothing behind when it fails.

    Args:
        path: the file; its folder is created, and holds the temporary file, so that the final rename is atomic.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace_path(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_path(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Rename as `os.replace` does; on Windows, wait up to two seconds for another process that has the target open.

    Args:
        source: a file or folder.
        target: its new name on the same file system; a file there is replaced, a folder must be empty or missing.
    """
    for wait in _REPLACE_WAITS if _WINDOWS else ():
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(wait)
    os.replace(source, target)


def fsync_path(path: str | os.PathLike) -> None:
    """Flush a file, or the names in a folder, to disk; does nothing where a folder cannot be flushed.

    Args:
        path: a file that may be written to, or a folder.
    """
    is_folder = os.path.isdir(path)
    if is_folder and _WINDOWS:
        return  # folders cannot be opened there
    # Windows flushes only what is open for writing; elsewhere, reading is enough, and a file may be read-only.
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # What some network file systems answer for folders, which they keep in order themselves.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
