# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A data set of any kind written in the layout that `load_folder` reads: pictures, PNGs of label ids, class names."""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .archives import is_member_path, read_member
from .files import NAME_BYTES, read_file, shown
from .segmentation_data import MissingSplit, SegmentationData, undecoded
from .source import IMAGE_SUFFIXES
from .splits import TRAIN_NAMES, VALIDATION_NAMES

FOLDERS = {"train": "train", "validation": "val"}


def write_dataset(data: SegmentationData, output: str | Path) -> Path:
    """Write a data set as `images/SPLIT`, `annotations/SPLIT` and `classes.json`.

    Pictures are copied byte for byte; annotations become PNGs of label ids, 8 bits deep, or 16 for more than 255
    classes, upright. `load_folder` reads the same picture, label and class names again. Splits beside training and
    validation are written too.

    Args:
        data: The data set; its splits may not be streams.
        output: New or empty folder.

    Returns:
        The folder.

    Raises:
        ValueError: The folder is not empty, a split is a stream, or a sample is wrong.
        StorageError: A file could not be read for a reason that may pass.
    """
    output = require_new_folder(output)
    splits = split_folders(data)
    for name, rows in splits.items():
        if not hasattr(rows, "__len__"):
            raise ValueError(f"{data.name}: the split {name} is a stream, which cannot be written")
    ignored = _storable(data)
    partial = output.with_name(f".{output.name[:100]}.{uuid.uuid4().hex}.partial")
    try:
        for name, rows in splits.items():
            _write_split(data, name, undecoded(rows), partial, ignored)
        classes = {"names": list(data.class_names), "palette": [list(color) for color in data.palette]}
        classes |= {"ignore_index": ignored, "mask_format": "ids"}
        text = json.dumps(classes, ensure_ascii=False, indent=1)
        (partial / "classes.json").write_text(text, encoding="utf-8")
        if output.exists():
            output.rmdir()
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return output


def require_new_folder(output: str | Path) -> Path:
    """Return the folder to write.

    Raises:
        ValueError: There is something already, or no folder can be made there.
    """
    output = Path(os.path.abspath(output))
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output must be a new or empty folder, got {shown(output)}")
    above = next(folder for folder in output.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"output {shown(output)}: {shown(above)} is no folder that can be written to")
    return output


def split_folders(data: SegmentationData) -> dict[str, Any]:
    """Return the splits that are there by the names of their folders, which say which is trained on and held out."""
    splits = {folder: getattr(data, role) for role, folder in FOLDERS.items()}
    for name, rows in data.other_splits.items():
        plain = re.sub(r"[^\w.-]", "_", name).lstrip(".")[:60] or "unnamed"
        if plain.lower() in (*TRAIN_NAMES, *VALIDATION_NAMES) or plain in splits:  # would be taken for one of the two
            plain = f"other_{plain}"
        while plain.casefold() in map(str.casefold, splits):
            plain += "_"
        splits[plain] = rows
    return {name: rows for name, rows in splits.items() if not isinstance(rows, MissingSplit)}


def _storable(data: SegmentationData) -> int:
    """The ignored label as pixels of a PNG can hold it."""
    if 0 <= data.ignore_index <= (255 if data.num_classes <= 255 else 65535):
        return data.ignore_index
    return 255 if data.num_classes <= 255 else 65535


def _write_split(data: SegmentationData, split: str, rows: Any, root: Path, ignored: int) -> None:
    from tqdm.auto import tqdm

    images, annotations = root / "images" / split, root / "annotations" / split
    for folder in (images, annotations):
        folder.mkdir(parents=True)
    stems = _stems(rows["file_name"][:])
    for index, stem in enumerate(tqdm(stems, desc=f"writing {split}", leave=False, delay=1)):
        row = rows[index]
        _, label = data.read_sample(row, split, index)
        if ignored != data.ignore_index:
            label = np.where(label == data.ignore_index, ignored, label)
        small = data.num_classes <= 255 and ignored <= 255
        Image.fromarray(label.astype(np.uint8 if small else np.uint16)).save(annotations / f"{stem}.png")
        contents, suffix = _file(row["image"], row["file_name"])
        (images / f"{stem}{suffix}").write_bytes(contents)


def _stems(names: list[str]) -> list[str]:
    """A stem for each picture: that of its file where no other has it, else with its folders, else with a number."""
    plain = [posixpath.splitext(name.replace("\\", "/"))[0] for name in names]
    last = [stem.rpartition("/")[2] for stem in plain]
    often = Counter(stem.casefold() for stem in last)
    stems, taken = [], set()
    for whole, short in zip(plain, last, strict=True):
        stem = short if often[short.casefold()] == 1 else whole.strip("/").replace("/", "_")
        stem = os.fsencode(stem.lstrip("."))[: NAME_BYTES - 20].decode(errors="ignore")
        candidate, number = stem or "picture", 2
        while candidate.casefold() in taken:
            candidate, number = f"{stem}_{number}", number + 1
        taken.add(candidate.casefold())
        stems.append(candidate)
    return stems


def _file(source: Any, name: str) -> tuple[bytes, str]:
    """Return the contents of a picture's file, and its suffix."""
    path: Any = source.get("path") if isinstance(source, Mapping) else source
    contents = source.get("bytes") if isinstance(source, Mapping) else None
    if contents is None:
        contents = read_member(path) if is_member_path(path) else read_file(path)
    place = path.partition("::")[0] if path else name
    for text in (place, name):
        suffix = os.path.splitext(text)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            return contents, suffix
    return contents, ".png" if contents.startswith(b"\x89PNG") else ".jpg"
