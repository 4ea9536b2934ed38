# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""labelme: one JSON file per picture, with `shapes`. Later shapes lie on top."""

from __future__ import annotations

import base64
import binascii
import io
import math
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..texts import listed, short_repr
from .annotated import (
    IGNORED,
    Annotated,
    Bitmap,
    Faults,
    Picture,
    Polygon,
    Shape,
    make_box,
    make_polygon,
    require_size,
    shape_place,
)
from .classes import IGNORE_NAME, ClassTable, class_table_of, make_class_table, names_in_text
from .file_names import split_of
from .source import IMAGE_SUFFIXES, Source

PEEKED = 8  # files looked at to find out what they are
TURNED_RECTANGLES = ("oriented_rectangle", "rotation")  # of labelme and X-AnyLabeling, by their corners
WITHOUT_AREA = ("point", "points", "line", "linestrip")
LABEL_FILES = ("labels.txt", "class_names.txt")


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    names = source.named(".json")
    if not names:
        return None
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), PEEKED)).astype(int)).tolist()
    found = [names[index] for index in chosen if is_labelme(source.peek_json(names[index]))]
    return f"labelme's JSON files, such as {source.shown(found[0])}" if found else None


def is_labelme(content: Any) -> bool:
    """Whether this is what labelme writes."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("shapes"), list)
        and not ({"imagePath", "imageData"}.isdisjoint(content))
    )


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    faults = Faults("labelme")
    table = classes or find_labels(source)
    reader = _Reader(source, table)
    others = []
    pictures: dict[str, Picture] = {}
    for name in source.named(".json"):
        with faults.of(source.shown(name), split_of(name)):
            content = source.json(name, (dict, list))
            if not is_labelme(content):
                if source.given or _has_picture(source, name):
                    raise ValueError('it must be a labelme file, with "shapes" and "imagePath"')
                others.append(name)
                continue
            picture = reader.picture(name, content)
            key = picture.image if isinstance(picture.image, str) else name
            if key in pictures:
                raise ValueError(f"its picture {picture.name} is annotated in {pictures[key].annotation}, too")
            pictures[key] = picture
    left_out = faults.stop(pictures)
    names = reader.class_names()
    notes = reader.notes()
    if others:
        notes.append(f"{len(others)} other JSON files left out")
    return Annotated(list(pictures.values()), names, "labelme", notes=notes, left_out=left_out)


def _has_picture(source: Source, name: str) -> bool:
    stem = name[: -len(".json")]
    return any(source.has(stem + suffix) for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG"))


def find_labels(source: Source) -> ClassTable | None:
    """Return the names in `labels.txt`, which begins with `__ignore__` (no class) as a rule; None without the file."""
    for name in source.files:
        if name.rpartition("/")[2] in LABEL_FILES:
            try:
                lines = names_in_text(source.text(name))
            except ValueError as error:
                raise ValueError(f"{source.shown(name)}: {error}") from None
            return class_table_of(lines, source.shown(name))
    return None


class _Reader:
    """Makes pictures of files, and a list of the classes in them."""

    def __init__(self, source: Source, table: ClassTable | None):
        self.source, self.table = source, table
        self._ids = {name: index for index, name in enumerate(table.names)} if table else {}
        self._found: set[str] = set()
        self._renamed = 0
        self._without_area: dict[str, int] = {}

    def class_names(self) -> tuple[str, ...]:
        """The list of the data set, or every label in alphabetical order, the background first."""
        if self.table is not None:
            return self.table.names
        if not self._found:
            raise ValueError("labelme: no shape with an area in any file")
        return make_class_table(_in_order(self._found), source="labelme").names

    def notes(self) -> list[str]:
        """What was left out."""
        count, renamed = sum(self._without_area.values()), self._renamed
        notes = [f"{count} shapes without an area left out ({listed(self._without_area)})"] if count else []
        return notes + [f"{renamed} pictures are not called as imagePath says, but as their files"] * bool(renamed)

    def picture(self, name: str, content: Mapping[str, Any]) -> Picture:
        """Return the picture of a file; its shapes are made once the classes of all files are known."""
        size = None
        if content.get("imageWidth") is not None or content.get("imageHeight") is not None:
            size = require_size(content.get("imageWidth"), content.get("imageHeight"), "imageWidth, imageHeight")
        image = self._image(content, name)
        shapes = []
        for index, entry in enumerate(content["shapes"]):
            shape = self._shape(index, entry)
            if shape is not None:
                shapes.append(shape)
        self._found.update(label for label, _, _ in shapes if label != IGNORE_NAME)  # once all is well

        def labelled() -> list[Shape]:
            ids = self._ids or {label: k for k, label in enumerate(_in_order(self._found))}
            return [
                Shape(IGNORED if label == IGNORE_NAME else ids[label], (part,), place=place)
                for label, part, place in shapes
            ]

        shown_name = name[: -len(".json")] if isinstance(image, bytes) else self.source.name_of(image)
        return Picture(image, shown_name, self.source.shown(name), split_of(name), labelled, size=size)

    def _image(self, content: Mapping[str, Any], file: str) -> str | bytes:
        """The picture that is named, or the one in the file, or the one beside it with its stem."""
        wanted: Any = content.get("imagePath")
        beside = (file[: -len(".json")] + end for suffix in IMAGE_SUFFIXES for end in (suffix, suffix.upper()))
        own = next(filter(self.source.has, beside), None)
        if wanted in (None, "") and own is not None:
            return self.source.path(own)
        try:
            return self.source.find_picture(wanted, posixpath.dirname(file))
        except ValueError:
            if content.get("imageData"):
                return _decoded(content["imageData"], "imageData")
            if own is None:
                raise
        self._renamed += 1
        return self.source.path(own)

    def _shape(self, index: int, entry: Any) -> tuple[str, Polygon | Bitmap, str] | None:
        if not isinstance(entry, Mapping):
            raise ValueError(f"shape {index}: it must be an object, got {short_repr(entry)}")
        label = entry.get("label")
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"shape {index}: its label must be a text, got {short_repr(label)}")
        label = label.strip()
        place = shape_place(index, label)
        kind = entry.get("shape_type") or "polygon"
        if kind in WITHOUT_AREA:
            self._without_area[kind] = self._without_area.get(kind, 0) + 1
            return None
        part = _part(kind, entry, place)
        if label != IGNORE_NAME and self._ids and label not in self._ids:
            raise ValueError(f"{place}: the label is not in the list of classes: {listed(self._ids)}")
        return label, part, place


def _in_order(labels: Iterable[str]) -> list[str]:
    return sorted(labels, key=lambda label: (label.strip("_").lower() != "background", label))


def _part(kind: str, entry: Mapping[str, Any], place: str) -> Polygon | Bitmap:
    points = entry.get("points")
    four_corners = kind == "rectangle" and isinstance(points, list) and len(points) == 4  # of other tools
    if kind in ("polygon", *TURNED_RECTANGLES) or four_corners:
        return make_polygon(points, place)
    if kind not in ("rectangle", "circle", "mask"):
        known = ("polygon", "rectangle", "circle", "mask", TURNED_RECTANGLES[0], *WITHOUT_AREA)
        raise ValueError(f"{place}: shape_type must be one of {', '.join(known)}, got {kind!r}")
    corners = _two_points(points, kind, place)
    if kind == "circle":
        return _circle(corners[0], corners[1], place)
    if kind == "rectangle":
        return make_box(corners[0], corners[1], place)
    pixels = _bitmap(entry.get("mask"), place)
    (left, top), _ = corners
    return Bitmap(pixels, round(left), round(top))


def _two_points(points: Any, kind: str, place: str) -> list[list[float]]:
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.shape != (2, 2) or not np.isfinite(array).all():
        raise ValueError(f"{place}: a {kind} needs two points [x, y], got {short_repr(points)}")
    return array.tolist()


def _circle(centre: list[float], rim: list[float], place: str) -> Polygon:
    """A polygon that is nowhere further than a hundredth of a pixel from the circle."""
    radius = math.dist(centre, rim)
    corners = int(np.clip(np.ceil(np.pi / np.sqrt(0.02 / max(radius, 1.0))), 16, 1024))
    angles = 2 * np.pi * np.arange(corners) / corners
    return make_polygon(np.stack([np.cos(angles), np.sin(angles)], 1) * radius + centre, place)


def _decoded(text: Any, field: str) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"{field} must be a file in base64, got {short_repr(text)}")
    try:
        return base64.b64decode("".join(text.rpartition(";base64,")[2].split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{field} must be a file in base64, got {short_repr(text)}") from None


def _bitmap(text: Any, place: str) -> np.ndarray:
    contents = _decoded(text, f"{place}: mask")
    try:
        picture = Image.open(io.BytesIO(contents))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{place}: mask must be a PNG in base64 that can be read: {error}") from None
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)[..., 0] > 0
