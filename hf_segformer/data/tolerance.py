# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether loaders put up with a few bad annotations, and what is kept about those."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple

from .files import shown

SHOWN_FAULTS = 10
_TOLERANT: ContextVar[bool] = ContextVar("tolerant_probes", default=False)


class Fault(NamedTuple):
    """What is wrong with the annotation of one picture.

    Attributes:
        place: The file, and the place in it.
        rule: The rule, and what came instead.
        split: The tool's name of the picture's split, or "".
    """

    place: str
    rule: str
    split: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.rule}" if self.place else self.rule

    def within(self, root: str | os.PathLike) -> dict[str, str]:
        """Return place and rule as a value of JSON, with the place named from the data set on."""
        place = self.place.removeprefix(shown(root)).lstrip("/: ") or os.path.basename(self.place)
        return {"annotation": place, "reason": self.rule}


def listed_faults(head: str, faults: Sequence[Fault]) -> str:
    """Return a text of the first ten faults, one a line, and the number of the others."""
    more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    return "\n  ".join([f"{head}:", *map(str, faults[:SHOWN_FAULTS]), *more])


@contextlib.contextmanager
def tolerant_probes(tolerant: bool = True) -> Iterator[None]:
    """While the block runs, loaders put up with bad annotations, if they are not most of those that they look at.

    For runs that pass over bad samples: pictures whose annotations cannot be read are left out
    (`SegmentationData.left_out`), the others still tell what data set this is, and `check_dataset` names what is wrong
    with masks. What concerns more than single pictures, such as the list of classes, is an error all the same.
    """
    token = _TOLERANT.set(tolerant)
    try:
        yield
    finally:
        _TOLERANT.reset(token)


def is_tolerant() -> bool:
    """Whether a block of `tolerant_probes` runs."""
    return _TOLERANT.get()
