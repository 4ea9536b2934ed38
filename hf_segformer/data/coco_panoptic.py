# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""COCO panoptic: a PNG of segment numbers per picture, R + 256 G + 65536 B, and a JSON that gives each its category.

Number 0 is no segment; such pixels belong to no class.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..texts import listed, short_repr
from .annotated import IGNORED, Annotated, Bitmap, Faults, Picture, Shape
from .classes import ClassTable, make_class_table
from .file_names import split_in, split_of
from .segmentation_data import open_picture
from .source import Source

WHAT = "COCO panoptic"
PEEKED = 20  # files looked at to find out what they are


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    names = _files(source)
    return f"COCO panoptic in {source.shown(names[0])}" if names else None


def _files(source: Source, broken: bool = False) -> list[str]:
    """Files of COCO panoptic; with `broken` also what is no JSON, which may be one that was cut off."""
    names = sorted(source.named(".json"), key=lambda n: (not posixpath.basename(n).startswith("panoptic"), n))
    found = {name: source.peek_json(name) for name in names[:PEEKED]}
    return [name for name, content in found.items() if _is_panoptic(content) or (broken and content is None)]


def _is_panoptic(content: Any) -> bool:
    if not isinstance(content, Mapping) or not isinstance(content.get("annotations"), list):
        return False
    first = content["annotations"][0] if content["annotations"] else None
    return isinstance(first, Mapping) and "segments_info" in first and "categories" in content


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    files_faults, faults, pictures = Faults(WHAT), Faults(WHAT), []
    names: dict[int, str] = {}
    files = _files(source, broken=True)
    source.require(files, "JSON file of COCO panoptic")
    for file in files:
        with files_faults.of(source.shown(file)):
            content = source.json(file)
            names = _categories(content, names)
            split = split_in(posixpath.splitext(posixpath.basename(file))[0]) or split_of(file)
            images = _by_id(content.get("images"), "images")
            for entry in content["annotations"]:
                with faults.of(f"{source.shown(file)}: {short_repr(_field(entry, 'file_name'))}", split):
                    pictures.append(_picture(source, file, entry, images, split, names))
    files_faults.stop()
    left_out = faults.stop(pictures)
    place = f"{source.shown(files[0])}, categories"
    table = classes or make_class_table(list(names.values()), source=place)
    if len(table.names) != len(names):
        raise ValueError(f"class_names must be one for each of {len(names)} categories, got {len(table.names)}")
    repeated = [path for path, count in Counter(picture.image for picture in pictures).items() if count > 1]
    if repeated:
        raise ValueError(f"{WHAT}: picture {source.name_of(repeated[0])} is annotated more than once")
    return Annotated(pictures, table.names, WHAT, background=IGNORED, left_out=left_out)


def _field(entry: Any, field: str) -> Any:
    return entry.get(field) if isinstance(entry, Mapping) else None


def _by_id(entries: Any, field: str) -> dict[int, Mapping]:
    if not isinstance(entries, list) or not all(isinstance(_field(entry, "id"), int) for entry in entries):
        raise ValueError(f"{field} must be a list of objects with an id, got {short_repr(entries)}")
    return {entry["id"]: entry for entry in entries}


def _categories(content: Mapping, known: dict[int, str]) -> dict[int, str]:
    entries = _by_id(content["categories"], "categories")
    names = {number: _field(entries[number], "name") for number in sorted(entries)}
    if known and names != known:
        raise ValueError("its categories must be those of the other files, got others")
    return names


def _picture(
    source: Source, file: str, entry: Mapping, images: Mapping[int, Mapping], split: str, names: Mapping[int, str]
) -> Picture:
    name, segments = _field(entry, "file_name"), _field(entry, "segments_info")
    image = images.get(_field(entry, "image_id"))
    if image is None:
        raise ValueError(f"image_id must be the id of an image, got {short_repr(_field(entry, 'image_id'))}")
    folder, stem = posixpath.split(posixpath.splitext(file)[0])
    near = [posixpath.join(folder, stem, str(name)), posixpath.join(folder, str(name))]
    mask = next((source.path(place) for place in near if source.has(place)), None)
    mask = mask if mask is not None else source.find_picture(name, folder)
    labels = {number: position for position, number in enumerate(names)}
    by_number = {}
    for segment in segments if isinstance(segments, list) else ():
        category = _field(segment, "category_id")
        if category not in labels:
            raise ValueError(
                f"segment {short_repr(_field(segment, 'id'))}: no category has the id {short_repr(category)}"
            )
        by_number[_field(segment, "id")] = labels[category]
    path = _image(source, image, folder, split, mask)
    source.read_names.add(mask)
    return Picture(
        path, source.name_of(path), source.shown(source.name_of(mask)), split, lambda: _shapes(mask, by_number)
    )


def _image(source: Source, image: Mapping, folder: str, split: str, mask: str) -> str:
    """The picture, not the PNG of segments, which may have its name."""
    name = str(_field(image, "file_name"))
    for place in (f"images/{split}/{name}", f"{split}/{name}", f"images/{name}"):
        for base in (folder, posixpath.dirname(folder)):
            if source.has(wanted := posixpath.normpath(posixpath.join(base, place))):
                return source.path(wanted)
    path = source.find_picture(name, folder)
    if path == mask:
        raise ValueError(f"picture {name!r} is missing, its name is that of the PNG of segments alone")
    return path


def _shapes(mask: str, labels: Mapping[int, int]) -> list[Shape]:
    picture = open_picture(mask, "segments")
    if picture.mode not in ("RGB", "RGBA"):
        raise ValueError(f"a PNG of segments must be in colour (R + 256 G + 65536 B), got mode {picture.mode}")
    numbers = np.asarray(picture.convert("RGB")).astype(np.int64) @ np.array([1, 256, 65536])
    present = [number for number in np.unique(numbers).tolist() if number]
    if unknown := [number for number in present if number not in labels]:
        raise ValueError(f"segments_info must name every number in the PNG, it lacks {listed(unknown)}")
    return [Shape(labels[number], (Bitmap(numbers == number),), place=f"segment {number}") for number in present]
