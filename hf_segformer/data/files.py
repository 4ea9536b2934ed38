# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Files as folders hold them: how they are listed, read and named in messages.

A folder may hold anything: pipes, on which opening waits for ever, links in circles, names that are no text. A network
drive may fail for a moment. What is wrong with a file is a `ValueError`; what is wrong with a drive is a
`StorageError`, and says nothing about the file.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

Result = TypeVar("Result")

NAME_BYTES = 240  # of a file name; most systems take 255, and a suffix may follow
MAX_FILE_BYTES = 4 << 30  # of one picture, as stored and unpacked
RETRY_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before a read that failed is tried again

_PASSING = (
    *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR", "ENOLCK", "ENOLINK", "ECOMM", "EPROTO"),
    *("ENOTCONN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ESHUTDOWN", "EPIPE", "EHOSTDOWN", "EHOSTUNREACH"),
    *("ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOBUFS", "ENOMEM", "EMFILE", "ENFILE", "ENODEV", "ENOMEDIUM"),
)
_PASSING_NUMBERS = frozenset(getattr(errno, name) for name in _PASSING if hasattr(errno, name))
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


class StorageError(OSError):
    """A file could not be read for a reason that may pass, such as a network drive that does not answer."""


def may_pass(error: Exception) -> bool:
    """Whether an error of reading comes from the drive, the network or the machine rather than from the file."""
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_NUMBERS


def retried(read: Callable[[], Result], path: str | os.PathLike) -> Result:
    """Return what `read` returns, called again after growing waits while it fails for a reason that may pass.

    Args:
        read: Function without arguments.
        path: What it reads.

    Raises:
        StorageError: It failed to the end, after half a minute; the message names the file.
        OSError: Any other error of `read`.
    """
    for wait in (*RETRY_WAITS, None):
        try:
            return read()
        except OSError as error:
            if isinstance(error, StorageError) or not may_pass(error):
                raise
            if wait is None:
                raise StorageError(
                    f"{shown(path)}: cannot be read now, after {len(RETRY_WAITS) + 1} tries in "
                    f"{sum(RETRY_WAITS):.0f} s: {error.strerror or error}; such an error comes from the drive or the "
                    f"network and may pass: try again when it answers"
                ) from error
        time.sleep(wait)
    raise AssertionError("unreachable")


def read_file(path: str | os.PathLike, offset: int = 0, size: int | None = None) -> bytes:
    """Return the contents of a regular file, or a part of them; never waits on a pipe.

    Args:
        path: The file; links are followed.
        offset: Where to begin.
        size: Bytes wanted; fewer come back where the file ends. None reads to the end.

    Raises:
        ValueError: It is no regular file, missing, larger than 4 GiB or may not be read. The message is the reason
            alone, without the name.
        StorageError: It could not be read for a reason that may pass.
    """

    def read() -> bytes:
        _require_regular(os.stat(path))  # before opening: that a device is opened may have consequences
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, flags)) as file:
            status = os.fstat(file.fileno())
            _require_regular(status)
            wanted = status.st_size - offset if size is None else size
            if wanted > MAX_FILE_BYTES:
                raise ValueError(f"it has {wanted:,} bytes, of one file {MAX_FILE_BYTES:,} are the most that is read")
            file.seek(offset)
            return file.read() if size is None else _read_exactly(file, size)

    try:
        return retried(read, path)
    except StorageError:
        raise
    except OSError as error:
        raise ValueError(reason_of(error, path)) from error


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _require_regular(status: os.stat_result) -> None:
    kind = next((kind for test, kind in _KINDS if test(status.st_mode)), None)
    if kind is not None:
        raise ValueError(f"it is a {kind}, no file")


def reason_of(error: OSError, path: str | os.PathLike) -> str:
    """Say in words why a file or folder cannot be opened."""
    if error.errno == errno.ENOENT:
        if os.path.islink(path):
            target = os.path.join(os.path.dirname(path), os.readlink(os.fspath(path)))
            return f"it is a link to {shown(target)}, which is missing"
        return "it is missing"
    if error.errno == errno.ELOOP:
        return "its links lead in a circle"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "reading it is not permitted"
    return error.strerror or str(error)


def shown(path: str | os.PathLike) -> str:
    """Return what to call a file in messages, so that it can be opened.

    Returns:
        The path from the working directory where the file lies below it, otherwise the absolute one; for a member of
        a zip file, `ARCHIVE: MEMBER`. Bytes that are no text, and characters that do not print, are escaped.
    """
    text = os.fsdecode(path)
    if text.startswith("zip://") and "::" in text:
        member, _, archive = text.removeprefix("zip://").partition("::")
        return f"{shown(archive)}: {printable(member)}"
    if "://" in text:
        return printable(text)
    try:
        here = os.getcwd()
        text = os.path.abspath(text)
    except FileNotFoundError:  # the working directory is gone
        return printable(text)
    return printable(text.removeprefix(here.rstrip(os.sep) + os.sep))


def printable(text: str) -> str:
    """Return a text with everything escaped that does not print, so that any stream and any file takes it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def file_name_fault(name: str) -> str:
    """Return what keeps a name from a table from being the name of a file, or ""; folders in it are no fault."""
    if "\0" in name:
        return "holds a NUL, which no file name can"
    longest = max(len(os.fsencode(part)) for part in name.replace("\\", "/").split("/"))
    return "" if longest <= NAME_BYTES else f"has a part of {longest} bytes; {NAME_BYTES} are the most"


def row_name_fault(name: str) -> str:
    """Return what keeps a name out of a table that others wrote, or ""."""
    if ".." in name.replace("\\", "/").split("/"):
        return "leads out of its folder by '..'"
    return file_name_fault(name)


def require_text(path: str) -> None:
    """Raise `ValueError` for a path that is no UTF-8, which tables of paths cannot hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{shown(path)}: the name is not valid UTF-8; rename the file or folder") from None


def scan(folder: str | os.PathLike) -> list[tuple[str, str]]:
    """Return the names in a folder, sorted, and what each is: `""` for files and links, else `"folder"`, `"pipe"` ...

    Links are not followed: that takes one question to the drive for each, and reading will tell.

    Raises:
        ValueError: The folder is missing, no folder, or may not be read; the message names it.
        StorageError: It could not be read for a reason that may pass.
    """

    def read() -> list[tuple[str, str]]:
        with os.scandir(os.fspath(folder)) as entries:
            return sorted((entry.name, _kind(entry)) for entry in entries)

    try:
        return retried(read, folder)
    except StorageError:
        raise
    except FileNotFoundError:
        raise ValueError(f"{shown(folder)}: no such folder") from None
    except OSError as error:
        raise ValueError(f"{shown(folder)}: cannot read the folder: {reason_of(error, folder)}") from None


def _kind(entry: os.DirEntry) -> str:
    if entry.is_symlink() or entry.is_file(follow_symlinks=False):
        return ""
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    mode = entry.stat(follow_symlinks=False).st_mode
    return next((kind for test, kind in _KINDS if test(mode)), "device")


class LeftOut:
    """Counts what a folder holds beside the pictures that are used, for one message."""

    def __init__(self) -> None:
        self._found: dict[str, list] = {}

    def add(self, kind: str, path: str | os.PathLike) -> None:
        """Count one entry; the first of each kind will be named."""
        self._found.setdefault(kind, [path, 0])[1] += 1

    def __bool__(self) -> bool:
        return bool(self._found)

    def __str__(self) -> str:
        return ", ".join(
            f"{count} {kind if count == 1 else kind.replace('file', 'files') if 'file' in kind else kind + 's'}"
            f" ({'such as ' if count > 1 else ''}{shown(path)})"
            for kind, (path, count) in self._found.items()
        )

    def warn(self, place: object) -> None:
        """Warn about what was counted, if anything was."""
        if self:
            warnings.warn(f"{place}: left out {self}", stacklevel=5)


def sort_out(folder: str | os.PathLike, suffixes: Sequence[str], left_out: LeftOut) -> Iterator[str]:
    """Yield the names of a folder's pictures; count everything else, of folders also the pictures in them.

    Args:
        folder: The folder.
        suffixes: What a picture's name ends in, in small letters; capitals are the same.
        left_out: Counts the rest.

    Raises:
        ValueError: See `scan`.
    """
    for name, kind in scan(folder):
        path = os.path.join(folder, name)
        if inner := list(_pictures_below(path, suffixes)) if kind == "folder" else []:
            for picture in inner:
                left_out.add("file in a sub-folder", picture)
        elif kind:
            left_out.add(kind, path)
        elif name.startswith("."):
            left_out.add("hidden file", path)
        elif not name.lower().endswith(tuple(suffixes)):
            left_out.add("file with another ending", path)
        else:
            yield name


def _pictures_below(folder: str, suffixes: Sequence[str]) -> Iterator[str]:
    for place, _, names in os.walk(folder):  # follows no links
        yield from (os.path.join(place, name) for name in sorted(names) if name.lower().endswith(tuple(suffixes)))


def find_pictures(root: Path, suffixes: Sequence[str], left_out: LeftOut) -> Iterator[Path]:
    """Yield the pictures in a folder and its sub-folders; count everything else, also links to folders.

    Args:
        root: The folder.
        suffixes: What a picture's name ends in, in small letters; capitals are the same.
        left_out: Counts the rest.

    Raises:
        ValueError: See `scan`.
    """
    for name, kind in scan(root):
        path = root / name
        if name.startswith(".") or name == "__MACOSX":
            left_out.add("hidden file" if kind != "folder" else "hidden folder", path)
        elif kind == "folder":
            yield from find_pictures(path, suffixes, left_out)
        elif kind:
            left_out.add(kind, path)
        elif path.is_symlink() and os.path.isdir(path):
            left_out.add("link to a folder", path)
        elif name.lower().endswith(tuple(suffixes)):
            yield path
        else:
            left_out.add("file with another ending", path)
