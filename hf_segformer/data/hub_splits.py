# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of tables divided into groups or folds, as pictures in folders are; see `splits`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotated import Picture
from .mask_classes import MaskClasses
from .segmentation_data import undecoded
from .splits import SplitOptions, split_pictures

if TYPE_CHECKING:
    import datasets


def generated_name(split: str, index: int) -> str:
    """Return what to call a row without a file name."""
    return f"{split}[{index}]"


def deal_rows(
    splits: Mapping[str, datasets.Dataset],
    standard: Callable[[datasets.Dataset, str], datasets.Dataset],
    options: SplitOptions,
    path: str | Path,
) -> tuple[datasets.Dataset, datasets.Dataset, str]:
    """Return rows to train on and rows held out, and what was done, for people.

    Args:
        splits: The data set's own splits.
        standard: Function from one of them and its name to rows with `image`, `annotation` and `file_name`.
        options: What the user asks for.
        path: The data set.

    Raises:
        ValueError: Rows lack the names that groups are made by, a split is a stream, or see `split_pictures`.
    """
    import datasets

    if not all(hasattr(rows, "__len__") for rows in splits.values()):
        raise ValueError(f"{path}: group_by and folds need all rows at hand, not streaming=True")
    rows = {split: standard(part, split) for split, part in splits.items()}
    pictures: list[Picture] = []
    for split, part in rows.items():
        for index, name in enumerate(part["file_name"][:]):
            if options.group_by is not None and name == generated_name(split, index):
                raise ValueError(
                    f"{path}: group_by needs the names of files, and row {index} of split {split!r} has none: the "
                    f"pictures are stored without a path, and there is no column file_name"
                )
            pictures.append(Picture(len(pictures), name, split=split))
    whole = datasets.concatenate_datasets([*rows.values()])
    values = MaskClasses(LazyColumn(undecoded(whole), "annotation"), path)
    try:
        train, validation, _, clause = split_pictures(pictures, options, lambda picture: values[picture.image])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return whole.select([p.image for p in train]), whole.select([p.image for p in validation]), clause


class LazyColumn(Sequence):
    """One column, decoded row by row."""

    def __init__(self, rows: datasets.Dataset, column: str):
        self._rows, self._column = rows, column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[int(index)][self._column]
