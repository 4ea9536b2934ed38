# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures inside zip files, read without unpacking.

A member is named as `fsspec` names it, `zip://MEMBER::ARCHIVE`, so `datasets` can open such paths too; but it reads
the list of members again for each picture (half a second for ADE20K). Here the list is read once per process, and no
file stays open: processes and threads share nothing that moves.
"""

from __future__ import annotations

import functools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from .files import MAX_FILE_BYTES, StorageError, printable, read_file, reason_of, retried, shown

# Signature, lengths of the member's name and of the extra field, both before its data.
LOCAL_HEADER = struct.Struct("<4s22xHH")
SIGNATURE = b"PK\x03\x04"


class _Member(NamedTuple):
    offset: int
    stored_size: int
    size: int
    method: int
    checksum: int
    encrypted: bool


def member_path(archive: str | Path, member: str) -> str:
    """Return the path of a member of a zip file.

    Raises:
        ValueError: A name holds `::`, which separates the two.
    """
    if "::" in member or "::" in str(archive):
        raise ValueError(f"{shown(archive)}: member {printable(member)}: names with '::' in zip files cannot be read")
    return f"zip://{member}::{archive}"


def is_member_path(path: object) -> bool:
    """Whether `path` names a member of a zip file on this machine."""
    return isinstance(path, str) and path.startswith("zip://") and "://" not in path.partition("::")[2]


def member_names(archive: str | Path) -> list[str]:
    """Return the names of all files in a zip file; of two members of one name, the last is read.

    Raises:
        ValueError: The file is missing, no zip file, or cut short.
        StorageError: It could not be read for a reason that may pass.
    """
    return [name for name in _members(str(archive)) if not name.endswith("/")]


@functools.lru_cache(maxsize=32)
def _members(archive: str) -> dict[str, _Member]:
    def read() -> dict[str, _Member]:
        with zipfile.ZipFile(archive) as file:
            return {_plain(info.filename): _member(info) for info in file.infolist()}

    try:
        read_file(archive, size=0)  # opening a pipe would wait for ever
        return retried(read, archive)
    except StorageError:
        raise
    except (OSError, ValueError, EOFError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        reason = reason_of(error, archive) if isinstance(error, OSError) else error
        raise ValueError(
            f"{shown(archive)}: cannot read the zip file (missing, or its download was cut): {reason}"
        ) from None


def _plain(name: str) -> str:
    """Some programs for Windows write backslashes between folders."""
    return name.replace("\\", "/")


def _member(info: zipfile.ZipInfo) -> _Member:
    encrypted = bool(info.flag_bits & 1)
    return _Member(info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC, encrypted)


def read_member(path: str) -> bytes:
    """Return the contents of a member of a zip file.

    Args:
        path: As `member_path` makes it.

    Raises:
        ValueError: There is no such member, it is damaged, larger than 4 GiB, or compressed in an unusual way.
        StorageError: The zip file could not be read for a reason that may pass.
    """
    name, _, archive = path.removeprefix("zip://").partition("::")
    place, what = shown(archive), f"member {printable(name)}"
    member = _members(archive).get(_plain(name))
    if member is None:
        raise ValueError(f"{place}: no {what} in this zip file")
    if member.encrypted or member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{place}: {what} is encrypted or not compressed by deflate; unpack the zip file")
    if max(member.size, member.stored_size) > MAX_FILE_BYTES:
        raise ValueError(f"{place}: {what} has {member.size:,} bytes; {MAX_FILE_BYTES:,} is the most that is read")
    try:
        contents = _unpack(archive, member)
    except ValueError as error:
        raise ValueError(f"{place}: {what} is damaged: {error}") from None
    if zlib.crc32(contents) != member.checksum:
        raise ValueError(f"{place}: {what} is damaged (wrong checksum)")
    return contents


def _unpack(archive: str, member: _Member) -> bytes:
    """Return a member's contents; a size that is not so never makes it unpack more than that."""
    header = read_file(archive, member.offset, LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(SIGNATURE):
        raise ValueError("the zip file's list points to a place beyond its end or without a member")
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    data = read_file(archive, member.offset + LOCAL_HEADER.size + name_length + extra_length, member.stored_size)
    if len(data) < member.stored_size:
        raise ValueError("the zip file ends in the middle of it")
    if member.method == zipfile.ZIP_DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = unpacker.decompress(data, member.size + 1)  # 0 would mean without limit
        except zlib.error as error:
            raise ValueError(str(error)) from None
    if len(data) != member.size:
        raise ValueError(f"it unpacks to another size than the {member.size:,} bytes that it is said to have")
    return data
