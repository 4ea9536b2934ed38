# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""CVAT's "for images 1.1": `annotations.xml` with polygons, boxes, ellipses and masks, ordered by `z_order`."""

from __future__ import annotations

import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ..texts import listed, short_repr
from .annotated import (
    Annotated,
    Faults,
    Picture,
    Polygon,
    Runs,
    Shape,
    make_polygon,
    require_size,
    shape_place,
)
from .classes import ClassTable, Color, make_class_table
from .file_names import split_in
from .file_tree import probe_evenly
from .rle import make_runs
from .source import Source
from .xml_files import parse_xml

WHAT = "CVAT images"
WITHOUT_AREA = ("polyline", "points", "tag", "cuboid", "skeleton")
_HEAD = re.compile(rb"<annotations[\s>]")  # Pascal VOC has <annotation>
_HEAD_BYTES = 4096


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    found: list[str] = []

    def probe(name: str) -> None:
        try:
            contents = source.read(name)
        except ValueError:
            return
        if _HEAD.search(contents[:_HEAD_BYTES]):
            found.append(name)

    probe_evenly(source.named(".xml"), probe)
    return f"CVAT's {source.shown(found[0])}" if found else None


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    faults = Faults(WHAT)
    roots: dict[str, Element] = {}
    for name in source.named(".xml"):
        with faults.of(source.shown(name)):
            root = parse_xml(source.read(name))
            if root.tag == "annotations":
                roots[name] = root
                if root.find("track") is not None:
                    raise ValueError('it has tracks, as "CVAT for video"; export it as "CVAT for images"')
    faults.stop()
    source.require(roots, "XML file of CVAT")
    table, palette = (classes, None) if classes is not None else _labels(roots)
    reader = _Reader(source, {label: index for index, label in enumerate(table.names)})
    for name, root in roots.items():
        split = split_in(posixpath.basename(name)) if len(roots) > 1 else ""
        for image in root.iter("image"):
            with faults.of(f"{source.shown(name)}: image {image.get('name')!r}", image.get("subset") or split):
                reader.add(image, name, split)
    left_out = faults.stop(reader.pictures)
    return Annotated(reader.pictures, table.names, WHAT, palette=palette, notes=reader.notes(), left_out=left_out)


def _labels(roots: Mapping[str, Element]) -> tuple[ClassTable, tuple[Color, ...] | None]:
    """Return the classes of all files in the order of the first, and their colours where all have one."""
    found: dict[str, str | None] = {}
    for root in roots.values():
        meta = root.find("meta")
        for label in meta.iter("label") if meta is not None else ():
            name = label.findtext("name")
            if label.find("parent") is None and name:  # parts of a skeleton have a parent
                found.setdefault(name, label.findtext("color"))
    if not found:
        used = {name for r in roots.values() for i in r.iter("image") for e in i if (name := e.get("label"))}
        found = dict.fromkeys(sorted(used))
    table = make_class_table(list(found), source=f"{WHAT}, labels")
    colors = [_color(text) for text in found.values()]
    known = [color for color in colors if color is not None]
    return table, tuple(known) if len(set(known)) == len(found) else None


def _color(text: str | None) -> Color | None:
    if not re.fullmatch(r"\s*#[0-9a-fA-F]{6}\s*", text or ""):
        return None
    red, green, blue = bytes.fromhex((text or "").strip()[1:])
    return red, green, blue


class _Reader:
    """Makes pictures of `image` elements."""

    def __init__(self, source: Source, ids: dict[str, int]):
        self.source, self._ids = source, ids
        self.pictures: list[Picture] = []
        self._owners: dict[str, str] = {}
        self._left_out: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """What was left out."""
        count = sum(self._left_out.values())
        return [f"{count} shapes without an area left out ({listed(self._left_out)})"] if count else []

    def add(self, image: Element, file: str, split: str) -> None:
        """Read one picture."""
        name, subset = image.get("name", ""), image.get("subset") or ""
        size = require_size(_number(image, "width"), _number(image, "height"), "its size")
        path = self._find(name, subset, posixpath.dirname(file))
        shapes = []
        for index, element in enumerate(image):
            if element.tag in WITHOUT_AREA:
                self._left_out[element.tag] += 1
            elif element.get("outside") == "1":
                self._left_out["outside"] += 1
            elif element.tag != "attribute":
                shapes.append(self._shape(element, shape_place(index, element.get("label"), element.tag)))
        place = f"{self.source.shown(file)}: image {name!r}"
        if path in self._owners:
            raise ValueError(f"its picture is annotated twice, also in {self._owners[path]}")
        self._owners[path] = place
        split = "" if subset.lower() == "default" else subset or split
        self.pictures.append(Picture(path, self.source.name_of(path), place, split, shapes, size=size))

    def _find(self, name: str, subset: str, folder: str) -> str:
        """Pictures of a project lie in folders of their subsets, where names may be the same."""
        for place in (self.source.pictures, self.source):
            for inner in (f"images/{subset}/{name}", f"{subset}/{name}", f"images/{name}"):
                wanted = posixpath.normpath(posixpath.join(folder, inner))
                if place is not None and place.has(wanted):
                    return place.path(wanted)
        return self.source.find_picture(name, folder)

    def _shape(self, element: Element, place: str) -> Shape:
        label = element.get("label")
        if label not in self._ids:
            raise ValueError(f"{place}: its label must be one of {listed(self._ids)}, got {short_repr(label)}")
        order = _number(element, "z_order", 0.0)
        try:
            make = _PARTS[element.tag]
        except KeyError:
            raise ValueError(f"{place}: a shape must be one of {', '.join(_PARTS)}, got {element.tag!r}") from None
        try:
            part = make(element, place)
        except _NoNumber as error:
            raise ValueError(f"{place}: {error}") from None
        return Shape(self._ids[label], (part,), float(order), place)


class _NoNumber(ValueError):
    pass


def _number(element: Element, field: str, default: float | None = None) -> float:
    text: Any = element.get(field)
    try:
        value = float(default if text is None and default is not None else text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise _NoNumber(f"{field} must be a number, got {short_repr(text)}")
    return value


def _polygon(element: Element, place: str) -> Polygon:
    text = element.get("points") or ""
    try:
        points = [[float(value) for value in pair.split(",")] for pair in text.split(";")]
    except ValueError:
        points = []
    if not all(len(pair) == 2 for pair in points) or not points:
        raise ValueError(f"{place}: points must have the form x,y;x,y;..., got {short_repr(text)}")
    return make_polygon(points, place)


def _box(element: Element, place: str) -> Polygon:
    left, top, right, bottom = (_number(element, field) for field in ("xtl", "ytl", "xbr", "ybr"))
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return make_polygon(_turned(corners, corners.mean(axis=0), _number(element, "rotation", 0.0)), place)


def _ellipse(element: Element, place: str) -> Polygon:
    """A polygon that is nowhere further than a hundredth of a pixel from the ellipse."""
    centre = np.array([_number(element, "cx"), _number(element, "cy")])
    radii = np.array([_number(element, "rx"), _number(element, "ry")])
    corners = int(np.clip(np.ceil(np.pi / np.sqrt(0.02 / max(*radii, 1.0))), 16, 1024))
    angles = 2 * np.pi * np.arange(corners) / corners
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + centre
    return make_polygon(_turned(points, centre, _number(element, "rotation", 0.0)), place)


def _turned(points: np.ndarray, centre: np.ndarray, degrees: float) -> np.ndarray:
    """Turn points clockwise as seen on the picture."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre


def _mask(element: Element, place: str) -> Runs:
    left, top, width, height = (_number(element, field) for field in ("left", "top", "width", "height"))
    width, height = require_size(width, height, place)
    if left != int(left) or top != int(top):
        raise ValueError(f"{place}: left and top must be integers, got {left:g} and {top:g}")
    text = element.get("rle") or ""
    try:
        counts = [int(value) for value in text.split(",")]
    except ValueError:
        raise ValueError(f"{place}: rle must be integers with commas between them, got {short_repr(text)}") from None
    return make_runs(counts, height, width, place, int(left), int(top), column_major=False)


_PARTS: dict[str, Callable[[Element, str], Polygon | Runs]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}
