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

LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the member's name and of the extra field, both before its data


class _Member(NamedTuple):
    offset: int
    size: int
    method: int
    checksum: int
    encrypted: bool


def member_path(archive: str | Path, member: str) -> str:
    """Return the path of a member of a zip file."""
    return f"zip://{member}::{archive}"


def is_member_path(path: object) -> bool:
    """Whether `path` names a member of a zip file on this machine."""
    return isinstance(path, str) and path.startswith("zip://") and "://" not in path.partition("::")[2]


def member_names(archive: str | Path) -> list[str]:
    """Return the names of all files in a zip file.

    Raises:
        ValueError: The file is missing, no zip file, or cut short.
    """
    return [name for name in _members(str(archive)) if not name.endswith("/")]


@functools.lru_cache(maxsize=32)
def _members(archive: str) -> dict[str, _Member]:
    try:
        with zipfile.ZipFile(archive) as file:
            return {
                info.filename: _Member(
                    info.header_offset, info.compress_size, info.compress_type, info.CRC, bool(info.flag_bits & 1)
                )
                for info in file.infolist()
            }
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{archive}: cannot read the zip file (missing, or its download was cut): {error}") from None


def read_member(path: str) -> bytes:
    """Return the contents of a member of a zip file.

    Args:
        path: As `member_path` makes it.

    Raises:
        ValueError: There is no such member, it is damaged, or compressed in an unusual way.
    """
    name, _, archive = path.removeprefix("zip://").partition("::")
    member = _members(archive).get(name)
    if member is None:
        raise ValueError(f"{archive}: no member {name} in this zip file")
    if member.encrypted or member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{archive}: member {name} is encrypted or not compressed by deflate; unpack the zip file")
    with open(archive, "rb") as file:
        file.seek(member.offset)
        name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        file.seek(name_length + extra_length, 1)
        data = file.read(member.size)
    try:
        contents = data if member.method == zipfile.ZIP_STORED else zlib.decompress(data, -zlib.MAX_WBITS)
    except zlib.error as error:
        raise ValueError(f"{archive}: member {name} is damaged: {error}") from None
    if zlib.crc32(contents) != member.checksum:
        raise ValueError(f"{archive}: member {name} is damaged (wrong checksum)")
    return contents
