# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Roboflow's "semantic segmentation masks": pictures and `NAME_mask.png` in one folder, names in `_classes.csv`."""

from __future__ import annotations

import csv
import posixpath

from ..texts import short_repr
from .annotated import Annotated, Faults, Picture
from .classes import ClassTable, make_class_table
from .file_names import split_of
from .source import IMAGE_SUFFIXES, Source

CLASS_FILE = "_classes.csv"
MASK_END = "_mask.png"


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    names = _class_files(source)
    return f"{source.shown(names[0])} and {MASK_END} of Roboflow" if names else None


def _class_files(source: Source) -> list[str]:
    """Tables of pixel values; Roboflow's table of whole pictures has the same name."""
    found = []
    for name in source.named(CLASS_FILE):
        masks = any(other.endswith(MASK_END) for other in source.folders[posixpath.dirname(name)])
        if posixpath.basename(name) == CLASS_FILE and masks:
            found.append(name)
    return found


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    tables_faults, faults = Faults("Roboflow masks"), Faults("Roboflow masks")
    pictures: list[Picture] = []
    tables: dict[str, dict[int, str]] = {}
    files = _class_files(source)
    source.require(files, f"{CLASS_FILE} beside files *{MASK_END}")
    for name in files:
        with tables_faults.of(source.shown(name)):
            tables[name] = parse_classes(source.text(name))
            first = next(iter(tables))
            if tables[name] != tables[first]:
                raise ValueError(f"its classes must be those of {source.shown(first)}, got others")
        pictures += _pairs(source, posixpath.dirname(name), faults)
    tables_faults.stop()
    left_out = faults.stop(pictures)
    values = next(iter(tables.values()))
    ids = {value: position for position, value in enumerate(sorted(values))}
    names = tuple(values[value] for value in ids)
    if classes is not None:
        if len(classes.names) != len(names):
            raise ValueError(f"class_names must be {len(names)} names as in {CLASS_FILE}, got {len(classes.names)}")
        names = classes.names
    id_map = () if list(ids) == list(range(len(ids))) else tuple(ids.items())
    return Annotated(pictures, names, "Roboflow masks", mask_format="ids", id_map=id_map, left_out=left_out)


def parse_classes(text: str) -> dict[int, str]:
    """Return the names of pixel values.

    Raises:
        ValueError: It is no such table; the message is the reason alone.
    """
    try:
        rows = [row for row in csv.reader(text.split("\n"), skipinitialspace=True) if row]
    except csv.Error as error:
        raise ValueError(f"it is no CSV file: {error}") from None
    header = [field.strip().lower() for field in rows[0]] if rows else []
    if header != ["pixel value", "class"]:
        raise ValueError(f"its first line must be 'Pixel Value, Class', got {short_repr(','.join(header))}")
    names: dict[int, str] = {}
    for number, row in enumerate(rows[1:], 2):
        value, name = row[0].strip(), ",".join(row[1:]).strip()
        if not (value.isascii() and value.isdigit() and int(value) <= 255 and name):
            raise ValueError(f"line {number} must be a value in 0..255 and a class, got {short_repr(','.join(row))}")
        if int(value) in names:
            raise ValueError(f"line {number}: value {value} has the class {names[int(value)]} already")
        names[int(value)] = name
    make_class_table([names[value] for value in sorted(names)])
    return names


def _pairs(source: Source, folder: str, faults: Faults) -> list[Picture]:
    """Pair pictures with masks; a picture called like a mask is one."""
    names = [name for name in source.folders[folder] if name.lower().endswith(IMAGE_SUFFIXES)]
    masks = {name[: -len(MASK_END)]: name for name in names if name.endswith(MASK_END)}
    images: dict[str, str] = {}
    split, twice = split_of(f"{folder}/"), set()
    for name in names:
        stem = posixpath.splitext(name)[0]
        if name in masks.values():
            continue
        place = posixpath.join(folder, name)
        if stem in images:
            faults.add(source.shown(place), f"its stem must be its own, {images[stem]} has it, too", split)
            twice.add(stem)
        elif stem not in masks:
            faults.add(source.shown(place), f"its mask {stem}{MASK_END} is missing", split)
        images[stem] = name
    for stem in masks.keys() - images.keys():
        faults.add(source.shown(posixpath.join(folder, masks[stem])), f"its picture {stem}.* is missing", split)
    return [
        Picture(
            source.path(place := posixpath.join(folder, images[stem])),
            place,
            source.shown(posixpath.join(folder, mask)),
            split,
            mask=source.path(posixpath.join(folder, mask)),
        )
        for stem, mask in masks.items()
        if stem in images and stem not in twice
    ]
