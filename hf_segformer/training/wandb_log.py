# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What wandb has written of a run without network: a log in LevelDB's format of records of wandb's own protocol.

A process that was killed leaves its file cut off anywhere; nobody but the file knows which steps are in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK, _PREFIX = 1 << 15, struct.Struct("<IHB")  # checksum, length, and which part of a record it is
_FULL, _FIRST, _LAST = 1, 2, 4


def last_logged_step(folder: Path, run_id: str) -> int:
    """Last step of a run in its files; -1 where there is none.

    Args:
        folder: Where wandb keeps its files of runs without network.
        run_id: The run's id.
    """
    steps = [step for path in folder.glob(f"offline-run-*/run-{run_id}.wandb") for step in logged_steps(path)]
    return max(steps, default=-1)


def logged_steps(path: Path) -> list[int]:
    """Steps of the rows in a file, as far as it can be read."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    kind: Any = vars(wandb_internal_pb2)["Record"]  # which type checkers do not see
    steps = []
    for content in _records(path.read_bytes()):
        record = kind()
        try:
            record.ParseFromString(content)
        except DecodeError:
            break
        if record.WhichOneof("record_type") == "history":
            steps.append(record.history.step.num)
    return steps


def _records(data: bytes) -> Iterator[bytes]:
    position, record = len(_HEADER) if data.startswith(_HEADER) else len(data), b""
    while position + _PREFIX.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _PREFIX.size:  # too little for another part: the rest of a block is empty
            position += left
            continue
        _, length, part = _PREFIX.unpack_from(data, position)
        position += _PREFIX.size
        if part not in range(_FULL, _LAST + 1) or position + length > len(data):
            return
        record = (b"" if part in (_FULL, _FIRST) else record) + data[position : position + length]
        position += length
        if part in (_FULL, _LAST):
            yield record
