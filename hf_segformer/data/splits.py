# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Which pictures are trained on and which are held out: as the data set says, or chosen here, or in folds.

What is chosen depends on the names of the pictures, their classes and the seed alone. Pictures of one group stay
together, and classes that only few groups have come to both sides where they can.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..texts import listed
from .annotated import Picture

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
TEST_NAMES = ("test", "testing")


@dataclass(frozen=True)
class SplitOptions:
    """What the user asks for.

    Attributes:
        train_split: Name of the training split; None for `train` or `training`.
        validation_split: Name of the validation split; None for `validation`, `valid`, `val`, `dev`, or without any of
            them `test`.
        validation_fraction: Share of the pictures, in (0, 1), held out where there is no validation split.
        group_by: Regular expression searched in the names of the pictures (with their folders): pictures with the same
            first group, or whole match where it has no groups, stay together. It has to be found in every name.
        folds: Number of parts that all pictures but those of a test split are dealt into, 0 for none.
        fold: The part, 0..folds-1, that is held out.
        seed: Seed of the choice.
    """

    train_split: str | None = None
    validation_split: str | None = None
    validation_fraction: float = 0.2
    group_by: str | None = None
    folds: int = 0
    fold: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be at least 2, or 0 for none, got {self.folds}")
        if self.fold is not None and not self.folds:
            raise ValueError(f"fold goes with folds, got fold {self.fold} alone")
        if self.folds and (self.fold is None or not 0 <= self.fold < self.folds):
            raise ValueError(f"fold must be in 0..{self.folds - 1}, got {self.fold}")
        if self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                raise ValueError(f"group_by must be a regular expression, got {self.group_by!r}: {error}") from None


def split_pictures(
    pictures: Sequence[Picture], options: SplitOptions, classes_of: Callable[[Picture], frozenset[int]]
) -> tuple[list[Picture], list[Picture], dict[str, list[Picture]], str]:
    """Divide pictures into those to train on and those held out.

    Args:
        pictures: All pictures.
        options: What the user asks for.
        classes_of: Function that returns the classes in a picture; asked only where something is chosen.

    Returns:
        train: Pictures in their order.
        validation: The same.
        others: Pictures of splits that are not used, by their names.
        clause: What was done, for people.

    Raises:
        ValueError: A split that was asked for is not there, one side would be empty, or `group_by` does not fit.
    """
    by_split: defaultdict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_split[picture.split].append(picture)
    train_name = _named(by_split, options.train_split, TRAIN_NAMES, "train_split")
    validation_name = _named(by_split, options.validation_split, (*VALIDATION_NAMES, *TEST_NAMES), "validation_split")
    if validation_name == train_name is not None:
        raise ValueError(f"train_split and validation_split must be different, got {train_name!r} twice")
    if options.folds:
        tests = {name: rows for name, rows in by_split.items() if name.lower() in TEST_NAMES}
        kept = [p for p in pictures if p.split not in tests]
        train, validation, clause = _in_folds(kept, options, classes_of)
        return train, validation, tests, clause + _unused(tests)
    if train_name is None and validation_name is not None and len(by_split) > 1:
        rest = [name for name in by_split if name.lower() not in (*VALIDATION_NAMES, *TEST_NAMES)]
        train_name = rest[0] if len(rest) == 1 else None
    if train_name is None and len(by_split) > 1:
        raise ValueError(
            f"train_split must name one of the splits {listed(by_split)}: none is called {' or '.join(TRAIN_NAMES)}"
        )
    others = {name: rows for name, rows in by_split.items() if name not in (train_name, validation_name)}
    if train_name is not None and validation_name is not None:
        train, validation = by_split[train_name], by_split[validation_name]
        clause = f"splits as given: {len(train)} {_called(train_name)}, {len(validation)} {_called(validation_name)}"
        return train, validation, others, clause + _unused(others)
    chosen = by_split[train_name] if train_name is not None else list(pictures)
    train, validation, clause = _held_out(chosen, options, classes_of)
    return train, validation, others if train_name is not None else {}, clause


def _unused(others: Mapping[str, Sequence[Picture]]) -> str:
    left = ", ".join(f"{len(rows)} {_called(name)}" for name, rows in others.items())
    return f" (not used: {left})" if left else ""


def _called(name: str) -> str:
    return name or "without a split"


def _named(splits: Mapping[str, list], asked: str | None, usual: Sequence[str], field: str) -> str | None:
    if asked is not None:
        if asked not in splits:
            raise ValueError(
                f"{field} must be one of the splits {listed(filter(None, splits)) or '(none)'}, got {asked!r}"
            )
        return asked
    by_lower = {name.lower(): name for name in splits}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _held_out(
    pictures: list[Picture], options: SplitOptions, classes_of: Callable[[Picture], frozenset[int]]
) -> tuple[list[Picture], list[Picture], str]:
    share = options.validation_fraction
    sides, groups = _deal(pictures, [share, 1 - share], options, classes_of)
    validation, train = ([p for p, side in zip(pictures, sides, strict=True) if side == index] for index in (0, 1))
    clause = f"{len(validation)} of {len(pictures)} held out (seed {options.seed}{groups})"
    return train, validation, clause + _one_sided(train, validation, classes_of)


def _in_folds(
    pictures: list[Picture], options: SplitOptions, classes_of: Callable[[Picture], frozenset[int]]
) -> tuple[list[Picture], list[Picture], str]:
    sides, groups = _deal(pictures, [1 / options.folds] * options.folds, options, classes_of)
    train = [p for p, side in zip(pictures, sides, strict=True) if side != options.fold]
    validation = [p for p, side in zip(pictures, sides, strict=True) if side == options.fold]
    clause = f"fold {options.fold} of 0..{options.folds - 1}: {len(validation)} of {len(pictures)} held out"
    clause += f" (seed {options.seed}{groups})"
    return train, validation, clause + _one_sided(train, validation, classes_of)


def _one_sided(train: Sequence[Any], validation: Sequence[Any], classes_of: Callable[[Any], Iterable[int]]) -> str:
    here, there = ({label for p in side for label in classes_of(p)} for side in (train, validation))
    return f"; {len(here ^ there)} classes are on one side only" if here ^ there else ""


def group_of(name: str, pattern: str) -> str:
    """Return the group of a picture by its name.

    Raises:
        ValueError: The pattern is not found in the name.
    """
    found = re.search(pattern, name)
    if found is None:
        raise ValueError(f"group_by {pattern!r} must be found in the name of every picture, not in {name!r}")
    return (found[1] or "") if found.re.groups else found[0]


def _deal(
    pictures: list[Picture],
    shares: Sequence[float],
    options: SplitOptions,
    classes_of: Callable[[Picture], frozenset[int]],
) -> tuple[list[int], str]:
    """Return the part of each picture, and a word about groups."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        key = (
            group_of(picture.name, options.group_by)
            if options.group_by is not None
            else f"{picture.split}/{picture.name}"
        )
        groups[key].append(index)
    if len(groups) < len(shares):
        what = "groups of pictures (group_by)" if options.group_by is not None else "pictures"
        raise ValueError(f"at least {len(shares)} {what} are needed to hold some out, got {len(groups)}")
    classes = {key: frozenset().union(*(classes_of(pictures[i]) for i in rows)) for key, rows in groups.items()}
    parts = deal_groups({key: (len(rows), classes[key]) for key, rows in groups.items()}, shares, options.seed)
    sides = [0] * len(pictures)
    for key, rows in groups.items():
        for index in rows:
            sides[index] = parts[key]
    return sides, f", {len(groups)} groups" if options.group_by is not None else ""


def deal_groups(
    groups: Mapping[str, tuple[int, frozenset[int]]], shares: Sequence[float], seed: int
) -> dict[str, int]:
    """Deal groups of pictures into parts, each class in about the same shares.

    The class that fewest of the remaining groups have comes first: each of its groups goes to the part that lacks most
    of this class (Sechidis et al., "On the Stratification of Multi-Label Data", 2011). A class that as many groups
    have as there are parts is wanted at least once in each.

    Args:
        groups: Name -> number of pictures and classes in them.
        shares: Share of each part, adding up to 1.
        seed: Seed of the order among equals.

    Returns:
        Name -> part. No part is empty as long as there are as many groups as parts.
    """
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode(errors="surrogateescape")).digest())
    room = _wanted(sum(count for count, _ in groups.values()), shares)
    holders: defaultdict[int, list[str]] = defaultdict(list)
    for key in order:
        for label in groups[key][1]:
            holders[label].append(key)
    lacking = {label: _wanted(len(keys), shares) for label, keys in holders.items()}
    parts: dict[str, int] = {}

    def give(key: str, label: int | None) -> None:
        count, labels = groups[key]
        part = max(range(len(shares)), key=lambda p: (lacking[label][p] if label is not None else 0, room[p], -p))
        parts[key] = part
        room[part] -= count
        for other in labels:
            lacking[other][part] -= 1

    remaining = Counter({label: len(keys) for label, keys in holders.items()})
    while remaining:
        label = min(remaining, key=lambda item: (remaining[item], item))
        for key in holders[label]:
            if key not in parts:
                give(key, label)
                for other in groups[key][1]:
                    remaining[other] -= 1
        remaining = Counter({other: count for other, count in remaining.items() if count > 0})
    for key in order:
        if key not in parts:
            give(key, None)
    _fill_empty(parts, order, groups, len(shares))
    return parts


def _wanted(total: int, shares: Sequence[float]) -> list[float]:
    """The shares of a total, of which each part gets at least one where there are enough."""
    wanted = [max(share * total, 1.0) if total >= len(shares) else share * total for share in shares]
    largest = wanted.index(max(wanted))
    wanted[largest] -= sum(wanted) - total
    return wanted


def _fill_empty(parts: dict[str, int], order: Sequence[str], groups: Any, count: int) -> None:
    for part in range(count):
        if part not in parts.values():
            sizes = Counter(parts.values())
            largest = max(sizes, key=lambda p: (sizes[p], -p))
            parts[next(key for key in order if parts[key] == largest)] = part
