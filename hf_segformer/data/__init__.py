# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets as `datasets.Dataset`s with columns `image`, `annotation` and `file_name`, augmentation and sampling."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .ade20k import load_ade20k
from .arguments import DataArguments
from .camvid import load_camvid
from .cityscapes import load_cityscapes
from .classes import ClassTable, default_palette, read_class_table
from .coco_stuff import load_coco_stuff
from .files import StorageError
from .folder import load_folder
from .hub import load_hub
from .labels import AnnotationFormat
from .samples import MissingSplit, SegmentationData, read_sample, undecoded
from .sampling import DrawSampler, TrainingSamples, collate_samples
from .scenes import draw_scene, load_scenes
from .streaming import stream_split
from .transforms import TrainingTransform
from .validation import DatasetReport, check_dataset

__all__ = [
    "LOADERS",
    "AnnotationFormat",
    "ClassTable",
    "DataArguments",
    "DatasetReport",
    "DrawSampler",
    "MissingSplit",
    "SegmentationData",
    "StorageError",
    "TrainingSamples",
    "TrainingTransform",
    "check_dataset",
    "collate_samples",
    "default_palette",
    "draw_scene",
    "load_dataset",
    "read_class_table",
    "read_sample",
    "stream_split",
    "undecoded",
]

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
        **options: Arguments of the loader: `load_scenes`, `load_ade20k`, `load_folder`, `load_hub`, ...

    Raises:
        ValueError: Unknown name or option, `data_root` missing or superfluous, or what the loader raises; see there.
    """
    if name not in LOADERS and "/" not in name:
        close = difflib.get_close_matches(name, LOADERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"name must be one of {', '.join(LOADERS)} or a Hub id 'owner/name', got {name!r}{hint}")
    loader = LOADERS.get(name, load_hub)
    parameters = inspect.signature(loader).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ValueError(f"data set {name!r} has no option {', '.join(unknown)}; it has {', '.join(parameters)}")
    if name in LOADERS and name != "scenes":
        if data_root is None:
            raise ValueError(f"data set {name!r} needs data_root, the folder that holds its files")
        if not Path(data_root).exists():  # load_hub would take it for a Hub id
            raise ValueError(f"data_root {data_root}: no such file or folder")
        return loader(data_root, **options)
    if data_root is not None:
        raise ValueError(f"data set {name!r} reads no local files, leave data_root out; got {str(data_root)!r}")
    return loader(**options) if name == "scenes" else loader(name, **options)
