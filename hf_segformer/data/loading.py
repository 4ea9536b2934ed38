# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets by their names, and whatever else a user has."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .ade20k import load_ade20k
from .camvid import load_camvid
from .cityscapes import load_cityscapes
from .coco_stuff import load_coco_stuff
from .files import shown
from .folder import load_folder
from .formats import FORMATS, load_annotated, unknown_format
from .hub import load_hub
from .label_map import read_label_map, with_label_map
from .published import recognise_published
from .scenes import load_scenes
from .segmentation_data import MissingSplit, SegmentationData
from .source import Source
from .splits import SplitOptions

# Data sets with a name of their own; all but "scenes" take data_root as their first argument.
LOADERS: dict[str, Callable[..., SegmentationData]] = {
    "scenes": load_scenes,
    "camvid": load_camvid,
    "ade20k": load_ade20k,
    "cityscapes": load_cityscapes,
    "coco-stuff": load_coco_stuff,
    "folder": load_folder,
    "parquet": load_hub,
}


def load_dataset(name: str, data_root: str | Path | None = None, **options: Any) -> SegmentationData:
    """Load a segmentation data set.

    Args:
        name: `"scenes"` (drawn, needs no files), `"camvid"`, `"ade20k"`, `"cityscapes"`, `"coco-stuff"`, `"folder"` (a
            user's own pictures), `"parquet"` (local parquet files), or the id `owner/name` of a data set on the Hub.
        data_root: Where the files lie; not for `"scenes"` and Hub ids.
        **options: Arguments of the loader: `load_scenes`, `load_ade20k`, `load_folder`, `load_hub`, ...; for all of
            them also `label_map` (see `read_label_map`; the class names are those of the new ids) and
            `mask_orientation` (see `AnnotationFormat.orientation`).

    Raises:
        ValueError: Unknown name or option, `data_root` missing or superfluous, or what the loader raises; see there.
    """
    if name not in LOADERS and "/" not in name:
        close = difflib.get_close_matches(name, LOADERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"name must be one of {', '.join(LOADERS)} or a Hub id 'owner/name', got {name!r}{hint}")
    loader = LOADERS.get(name, load_hub)
    label_map, orientation = options.pop("label_map", None), options.pop("mask_orientation", "upright")
    if label_map == "cityscapes" and "class_names" in inspect.signature(loader).parameters:
        options.setdefault("class_names", "cityscapes")
    _refuse_unknown(options, loader, repr(name))
    data = _load(name, loader, data_root, options)
    if orientation != "upright":
        data = replace(data, annotation_format=replace(data.annotation_format, orientation=orientation))
    return data if label_map is None else with_label_map(data, read_label_map(label_map), named_by_new=True)


def _load(
    name: str, loader: Callable[..., SegmentationData], data_root: str | Path | None, options: dict[str, Any]
) -> SegmentationData:
    if name in LOADERS and name != "scenes":
        if data_root is None:
            raise ValueError(f"data set {name!r} needs data_root, the folder that holds its files")
        if not Path(data_root).exists():  # load_hub would take it for a Hub id
            raise ValueError(f"data_root {data_root}: no such file or folder")
        return loader(data_root, **options)
    if data_root is not None:
        raise ValueError(f"data set {name!r} reads no local files, leave data_root out; got {str(data_root)!r}")
    return loader(**options) if name == "scenes" else loader(name, **options)


def load_any(data: str | Path, format: str | None = None, **options: Any) -> SegmentationData:
    """Load what a user has: files as an annotation tool has written them, or a data set of the Hub.

    Args:
        data: Folder, zip file or file of annotations, or a Hub id.
        format: One of `FORMATS` or `LOADERS`; None finds out.
        **options: Arguments of `load_annotated` and `SplitOptions` (its `seed` as `split_seed`), or of the loader.

    Raises:
        ValueError: See `load_annotated` and `load_dataset`.
    """
    if format is not None and format not in (*FORMATS, *LOADERS):
        raise ValueError(unknown_format(format, (*FORMATS, *LOADERS)))
    if format is None and re.fullmatch(r"[\w.-]+/[\w.-]+", str(data)) and not os.path.exists(data):
        try:
            found = load_dataset(str(data), None, **options)
            return replace(found, description=_described(found, str(data)))
        except ValueError as error:
            place = f"data {data}: no such file or folder in {shown(os.getcwd())}"
            raise ValueError(f"{place}, and as a data set of the Hub: {error}") from error
    if format in LOADERS:
        return load_dataset(format, data, **options)
    source = Source(data, options.get("pictures"), options.get("allow_outside_files", False))
    if format is None and (published := recognise_published(source)) is not None:
        root = source.root / published.folder if published.folder and not source.given else data
        found = load_dataset(published.name, root, **options)
        return replace(found, description=_described(found, published.name))
    for name in ("pictures", "allow_outside_files"):
        options.pop(name, None)
    names = {"train_split", "validation_split", "validation_fraction", "group_by", "folds", "fold"} & options.keys()
    splits = {name: options.pop(name) for name in names}
    if "split_seed" in options:
        splits["seed"] = options.pop("split_seed")
    _refuse_unknown(options, load_annotated, "of annotated pictures")
    return load_annotated(source, format, splits=SplitOptions(**splits), **options)


def _described(data: SegmentationData, name: str) -> str:
    kinds = {"to train on": data.train, "held out": data.validation}
    counts = [f"{len(rows)} pictures {what}" for what, rows in kinds.items() if not isinstance(rows, MissingSplit)]
    how = f"; {data.description}" if data.description else ""
    return f"{name}: {', '.join(counts)}, {data.num_classes} classes{how}"


def _refuse_unknown(options: Mapping[str, Any], loader: Callable[..., SegmentationData], name: str) -> None:
    parameters = inspect.signature(loader).parameters
    if unknown := sorted(set(options) - set(parameters)):
        raise ValueError(f"data set {name} has no option {', '.join(unknown)}; it has {', '.join(parameters)}")
