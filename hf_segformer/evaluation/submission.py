# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label maps as the servers of the Cityscapes and ADE20K benchmarks take them.

A server gets one 8-bit grey PNG for each picture, of the picture's size and under its name, whose pixel values are the
data set's own: Cityscapes' label ids 7..33, ADE20K's 1..150. All of them go into one archive, in no folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.files import file_name_fault, printable
from ..files import atomic_file

SUBMISSIONS = ("ade20k", "cityscapes")
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif"}


def submission_ids(dataset: str) -> tuple[int, ...]:
    """Pixel value of each class on the server of a data set.

    Args:
        dataset: One of `SUBMISSIONS`.

    Raises:
        ValueError: There is no server known by that name.
    """
    from ..data import ade20k, cityscapes

    if dataset not in SUBMISSIONS:
        raise ValueError(f"submission must be one of {', '.join(SUBMISSIONS)}, got {dataset!r}")
    return ade20k.SUBMISSION_IDS if dataset == "ade20k" else cityscapes.LABEL_IDS


def prediction_names(file_names: Iterable[str], keep_folders: bool = False) -> dict[str, str]:
    """Name of the PNG for each picture, which is that of the picture.

    The server of Cityscapes looks for names that begin with CITY_SEQUENCE_FRAME, that of ADE20K for the picture's.

    Args:
        file_names: Names or paths of pictures.
        keep_folders: Keep the folders of the names, below the one the PNGs are put in. A server wants none.

    Raises:
        ValueError: Two pictures would get the same file, or a name cannot be that of a file.
    """
    names: dict[str, str] = {}
    sources: dict[str, str] = {}
    for file_name in file_names:
        if fault := file_name_fault(file_name):
            raise ValueError(f"file_name {printable(file_name[:80])!r} {fault}")
        path = Path(file_name.replace("\\", "/"))  # no name leads out of the folder, on any system
        folders = [part for part in path.parts[:-1] if part not in (path.anchor, "..")] if keep_folders else []
        stem = path.stem if path.suffix.lower() in PICTURE_SUFFIXES else path.name
        name = Path(*folders, f"{stem}.png").as_posix()
        if sources.setdefault(name, file_name) != file_name or file_name in names:
            raise ValueError(f"{sources[name]} and {file_name} would both be written to {name}")
        names[file_name] = name
    return names


def plain_stem(file_name: str) -> str:
    """Return a picture's name without folders and suffix, with `_` for all but letters, digits, dots and dashes."""
    stem = Path(file_name.replace("\\", "/")).stem
    return re.sub(r"[^\w.-]", "_", stem)[:60].lstrip(".") or "picture"


def save_submission_png(path: str | os.PathLike, label_map: Any, ids: Sequence[int] | None = None) -> None:
    """Write one label map for the server, whole or not at all.

    Args:
        path: PNG file; its folder is created.
        label_map: (H, W) class ids in [0, K), array or tensor.
        ids: Pixel value of each of the K classes, in 0..255; None writes the class ids themselves.

    Raises:
        ValueError: A class has no pixel value, or one that 8 bits cannot hold.
    """
    array = np.asarray(label_map.cpu() if hasattr(label_map, "cpu") else label_map)
    table = np.arange(256) if ids is None else np.asarray(ids)
    if table.min() < 0 or table.max() > 255:
        raise ValueError(f"ids must lie in [0, 255], got [{table.min()}, {table.max()}]")
    if array.size and (array.min() < 0 or array.max() >= len(table)):
        raise ValueError(f"label_map for {path} must hold classes in [0, {len(table)}), got {array.max()}")
    with atomic_file(path) as file:
        Image.fromarray(table.astype(np.uint8)[array]).save(file, format="PNG")
