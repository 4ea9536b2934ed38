# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label ids of a data set replaced by others: classes merged, left out, or numbered as a benchmark does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..json_files import read_json
from ..texts import short_repr
from . import cityscapes
from .classes import default_palette
from .segmentation_data import SegmentationData

PUBLISHED = {"cityscapes": cityscapes.ID_MAP}
MAX_ID = 65535


def read_label_map(label_map: str | Path | Mapping[Any, Any]) -> dict[int, int | None]:
    """Return a map from stored label id to label id, None where a pixel shall have no class.

    Args:
        label_map: `"cityscapes"` (label ids 0..33 to the 19 train ids), a JSON file with an object such as
            `{"0": null, "7": 0}`, or such a mapping; 255 means the same as null.

    Raises:
        ValueError: An id is no integer in 0..65535, or new ids have gaps; the message names the file.
    """
    content: Mapping[Any, Any]
    if isinstance(label_map, str) and label_map in PUBLISHED:
        content, place = PUBLISHED[label_map], label_map
    elif isinstance(label_map, Mapping):
        content, place = label_map, "label_map"
    else:
        if not Path(label_map).exists():
            raise ValueError(f"label_map must be {', '.join(PUBLISHED)} or a JSON file, got {str(label_map)!r}")
        content, place = read_json(label_map), str(label_map)
    result = {_id(key, place): None if value in (None, 255) else _id(value, place) for key, value in content.items()}
    new = sorted({value for value in result.values() if value is not None})
    if new != list(range(len(new))) or not new:
        raise ValueError(f"{place}: new ids must be 0..{max(len(new) - 1, 0)} without gaps, got {new[:20]}")
    return result


def _id(value: Any, place: str) -> int:
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= MAX_ID:
        raise ValueError(f"{place}: label ids must be integers from -1 to {MAX_ID}, got {short_repr(value)}")
    return value


def with_label_map(
    data: SegmentationData, label_map: Mapping[int, int | None], named_by_new: bool = False
) -> SegmentationData:
    """Return a data set whose label ids are mapped.

    Args:
        data: The data set.
        label_map: As `read_label_map` returns it; keys are the ids of the classes of `data`, or where the class names
            are those of the new ids, the values in its masks.
        named_by_new: Whether the names of `data` are those of the new ids. Otherwise merged classes have their names
            with "/" between them.

    Raises:
        ValueError: The number of names does not fit, a class is not in the map, or masks hold no ids.
    """
    form = data.annotation_format
    count = len({value for value in label_map.values() if value is not None})
    if form.mask_format != "ids":
        raise ValueError(f"label_map goes with masks of ids, these are {form.mask_format!r}")
    ignored = data.ignore_index if not 0 <= data.ignore_index < count else MAX_ID
    stored = form.stored_ids()
    if named_by_new and count != data.num_classes:
        raise ValueError(
            f"label_map has {count} new ids, but there are {data.num_classes} class names; class_names names the new "
            f"ids"
        )
    if named_by_new and stored and not form.reduce_zero_label and _renames(stored, data.ignore_index):
        raise ValueError("label_map: the data set has a map of its own already")
    if named_by_new:
        names, palette = data.class_names, data.palette
        pairs = {value: ignored if new is None else new for value, new in label_map.items()}
        pairs.setdefault(data.ignore_index, ignored)
    else:
        missing = [name for k, name in enumerate(data.class_names) if k not in label_map]
        if missing:
            raise ValueError(f"label_map must map every class, not so {', '.join(missing[:10])}")
        names = tuple(
            "/".join(name for k, name in enumerate(data.class_names) if label_map[k] == new) for new in range(count)
        )
        palette = default_palette(count)
        stored = stored or tuple((k, k) for k in range(data.num_classes))
        news = {k: label_map[k] for k in range(data.num_classes)}
        new_ids = {k: ignored if new is None else new for k, new in news.items()}
        pairs = {value: new_ids.get(old, ignored) for value, old in stored}
        pairs.setdefault(data.ignore_index, ignored)
    form = replace(
        form,
        num_classes=count,
        palette=palette,
        ignore_index=ignored,
        id_map=tuple(pairs.items()),
        reduce_zero_label=False,
        explain=None,
    )
    thin = tuple(name for name in data.thin_classes if name in names)
    return replace(
        data, class_names=names, palette=palette, ignore_index=ignored, annotation_format=form, thin_classes=thin
    )


def _renames(stored: tuple[tuple[int, int], ...], ignored: int) -> bool:
    return any(value != label and label != ignored for value, label in stored)
