# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label Studio's JSON: a list of tasks with polygons, rectangles and ellipses in percent, and packed brush strokes.

Later regions lie on top. The export has no pictures: they are found by their names, with or without the eight digits
that the program puts before them when they are uploaded.
"""

from __future__ import annotations

import math
import posixpath
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..texts import listed, short_repr
from .annotated import (
    Annotated,
    Bitmap,
    Faults,
    Picture,
    Polygon,
    Shape,
    make_polygon,
    require_size,
    shape_place,
)
from .classes import ClassTable, make_class_table
from .file_names import split_of
from .source import IMAGE_SUFFIXES, Source

WHAT = "Label Studio"
PEEKED = 20  # files looked at to find out what they are
# Fields that tell kinds of regions apart; their type is "polygonlabels" and the like, or "labels" for all of them.
FIELDS = {
    "brush": ("rle",),
    "polygon": ("points",),
    "ellipse": ("radiusX", "radiusY"),
    "rectangle": ("x", "y", "width", "height"),
}


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    names = _files(source)
    return f"Label Studio's tasks in {source.shown(names[0])}" if names else None


def _files(source: Source, broken: bool = False) -> list[str]:
    """Files of tasks; with `broken` also what is no JSON, which may be one that was cut off."""
    found = {name: source.peek_json(name) for name in source.named(".json")[:PEEKED]}
    return [name for name, content in found.items() if _is_tasks(content) or (broken and content is None)]


def _is_tasks(content: Any) -> bool:
    if not isinstance(content, list) or not content or not isinstance(content[0], Mapping):
        return False
    task = content[0]
    return isinstance(task.get("data"), Mapping) and ("annotations" in task or "completions" in task)


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    faults, reader = Faults(WHAT), _Reader(source)
    files = _files(source, broken=True)
    source.require(files, "JSON file of Label Studio's tasks")
    for file in files:
        try:
            tasks = source.json(file, (list,))
        except ValueError as error:
            raise ValueError(f"{source.shown(file)}: {error}") from None
        for task in tasks:
            number = task.get("id") if isinstance(task, Mapping) else None
            with faults.of(f"{source.shown(file)}: task {number}"):
                reader.add(task, file, f"{source.shown(file)}: task {number}")
    left_out = faults.stop(reader.pictures)
    found = {label for _, parts in reader.pictures for label, _, _ in parts}
    if not found and classes is None:
        raise ValueError(f"{listed(map(source.shown, files))}: no region with an area in any task")
    table = classes or make_class_table(sorted(found), source=WHAT)
    if unknown := sorted(found - set(table.names)):
        raise ValueError(f"{WHAT}: labels must be class_names, these are none: {listed(unknown)}")
    ids = {label: position for position, label in enumerate(table.names)}
    for picture, parts in reader.pictures:
        picture.shapes = [Shape(ids[label], (part,), place=place) for label, part, place in parts]
    pictures = [picture for picture, _ in reader.pictures]
    return Annotated(pictures, table.names, WHAT, notes=reader.notes(), left_out=left_out)


class _Reader:
    """Makes pictures of tasks."""

    def __init__(self, source: Source):
        self.source = source
        self.pictures: list[tuple[Picture, list[tuple[str, Polygon | Bitmap, str]]]] = []
        self._owners: dict[str, str] = {}
        self._left_out: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """What was left out."""
        count = sum(self._left_out.values())
        return [
            f"{count} regions without an area or tasks without an annotation left out ({listed(self._left_out)})"
        ] * bool(count)

    def add(self, task: Any, file: str, place: str) -> None:
        """Read one task."""
        if not isinstance(task, Mapping) or not isinstance(task.get("data"), Mapping):
            raise ValueError(f"a task must be an object with data, got {short_repr(task)}")
        made = [a for a in task.get("annotations", task.get("completions")) or () if not a.get("was_cancelled")]
        made = [a for a in made if a.get("ground_truth")] or made
        if not made:
            self._left_out["task"] += 1
            return
        if len(made) > 1:
            raise ValueError(f"one annotation must be the ground truth where there are several, got {len(made)}")
        parts, sizes = [], set()
        results = made[0].get("result") or ()
        labelled = {r.get("id") for r in results if isinstance(r, Mapping) and str(r.get("type")).endswith("labels")}
        for index, region in enumerate(results):
            if isinstance(region, Mapping) and not str(region.get("type")).endswith("labels"):
                if region.get("id") not in labelled:  # shapes, choices and texts stand beside the labels of a region
                    self._left_out[str(region.get("type"))] += 1
                continue
            read = self._region(region, index)
            if read is not None:
                parts.append(read[:3])
                sizes.add(read[3])
        if len(sizes) > 1:
            raise ValueError(
                f"original_width and original_height must be the same for all regions, got {sorted(sizes)}"
            )
        path = self._find(task["data"], posixpath.dirname(file))
        if path in self._owners:
            raise ValueError(f"its picture is annotated twice, also in {self._owners[path]}")
        self._owners[path] = place
        name = self.source.name_of(path)
        size = next(iter(sizes)) if sizes else None
        self.pictures.append((Picture(path, name, place, split_of(name), (), size=size), parts))

    def _find(self, data: Mapping[str, Any], folder: str) -> str:
        wanted = [name for value in data.values() if (name := _picture_name(value)) is not None]
        if not wanted:
            raise ValueError(f"data must name a picture ({', '.join(IMAGE_SUFFIXES)}), got {short_repr(dict(data))}")
        return self.source.find_picture(wanted[0].lstrip("/"), folder)

    def _region(self, region: Any, index: int) -> tuple[str, Polygon | Bitmap, str, tuple[int, int]] | None:
        if not isinstance(region, Mapping) or not isinstance(region.get("value", {}), Mapping):
            raise ValueError(f"region {index} must be an object with a value, got {short_repr(region)}")
        value = region.get("value", {})
        kind = next((kind for kind, fields in FIELDS.items() if all(field in value for field in fields)), None)
        if kind is None:
            self._left_out[str(region.get("type"))] += 1
            return None
        labels = [v for k, v in value.items() if k.endswith("labels")]
        if not labels or not isinstance(labels[0], list) or len(labels[0]) != 1 or not isinstance(labels[0][0], str):
            raise ValueError(f"region {index} must have one label, got {short_repr(labels[0] if labels else None)}")
        place = shape_place(index, labels[0][0], "region")
        if region.get("image_rotation"):
            raise ValueError(f"{place}: image_rotation must be 0, got {region['image_rotation']}")
        size = require_size(region.get("original_width"), region.get("original_height"), place)
        part = _PARTS[kind](value, size, place)
        return labels[0][0], part, place, size


def _picture_name(value: Any) -> str | None:
    """Return the path in a link: `/data/upload/1/NAME`, `/data/local-files/?d=NAME` or an address."""
    if not isinstance(value, str):
        return None
    parts = urllib.parse.urlsplit(value)
    path = dict(urllib.parse.parse_qsl(parts.query)).get("d") or urllib.parse.unquote(parts.path)
    return path if path.lower().endswith(IMAGE_SUFFIXES) else None


def _numbers(value: Mapping[str, Any], fields: str, place: str) -> list[float]:
    found: list[Any] = [value.get(field) for field in fields.split()]
    for field, number in zip(fields.split(), found, strict=True):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{place}: {field} must be a number, got {short_repr(number)}")
    return found


def _turned(points: Any, centre: Any, degrees: Any) -> np.ndarray:
    """Turn points, in pixels, clockwise as seen on the picture."""
    angle = math.radians(degrees)
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (np.asarray(points) - centre) @ matrix + centre


def _polygon(value: Mapping[str, Any], size: tuple[int, int], place: str) -> Polygon:
    ring = make_polygon(value.get("points"), place).exterior
    return Polygon(ring * np.array(size) / 100)


def _rectangle(value: Mapping[str, Any], size: tuple[int, int], place: str) -> Polygon:
    """Turned about its upper left corner."""
    x, y, width, height = _numbers(value, "x y width height", place)
    (rotation,) = _numbers({"rotation": 0} | dict(value), "rotation", place)
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)]) * size / 100
    return make_polygon(_turned(corners, corners[0], rotation), place)


def _ellipse(value: Mapping[str, Any], size: tuple[int, int], place: str) -> Polygon:
    x, y, across, down = _numbers(value, "x y radiusX radiusY", place)
    (rotation,) = _numbers({"rotation": 0} | dict(value), "rotation", place)
    centre, radii = np.array([x, y]) * size / 100, np.array([across, down]) * size / 100
    corners = int(np.clip(np.ceil(np.pi / np.sqrt(0.02 / max(*radii, 1.0))), 16, 1024))
    angles = 2 * np.pi * np.arange(corners) / corners
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + centre
    return make_polygon(_turned(points, centre, rotation), place)


def _brush(value: Mapping[str, Any], size: tuple[int, int], place: str) -> Bitmap:
    width, height = size
    values = decode_brush(value.get("rle"), 4 * width * height, place)
    return Bitmap(values.reshape(height, width, 4)[..., 3] > 0)  # alpha of RGBA


_PARTS: dict[str, Callable[..., Polygon | Bitmap]] = {
    "brush": _brush,
    "polygon": _polygon,
    "rectangle": _rectangle,
    "ellipse": _ellipse,
}


def decode_brush(codes: Any, count: int, place: str) -> np.ndarray:
    """Unpack brush strokes, which are packed by https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack.

    Args:
        codes: The bytes, a list of integers.
        count: Number of values that there must be: 4 for each pixel, red, green, blue and alpha.
        place: What to call the region in messages.

    Returns:
        uint8 (count,).

    Raises:
        ValueError: These are no packed bytes, or they unpack to another number of values.
    """
    try:
        packed = np.array(codes, np.uint8)
    except (TypeError, ValueError, OverflowError):
        packed = np.zeros((), np.uint8)
    if packed.ndim != 1:
        raise ValueError(f"{place}: rle must be a list of bytes, got {short_repr(codes)}")
    bits = np.unpackbits(packed)
    if len(bits) < 53:
        raise ValueError(f"{place}: rle must begin with a head of 53 bits, got {len(bits)} bits")
    if (stated := _unsigned(bits[:32])) != count:
        raise ValueError(f"{place}: rle must hold 4 values for each pixel, {count}, got {stated}")
    if (word := _unsigned(bits[32:37]) + 1) != 8:
        raise ValueError(f"{place}: rle must hold values of 8 bits, got {word}")
    lengths = [_unsigned(bits[start : start + 4]) + 1 for start in (37, 41, 45, 49)]
    values, filled = np.zeros(count, np.uint8), 0
    for found in _runs(bits, lengths, place, count):
        part = found[: count - filled]
        values[filled : filled + len(part)] = part
        filled += len(part)
    return values


def _unsigned(bits: np.ndarray) -> int:
    return int("".join("1" if bit else "0" for bit in bits) or "0", 2)


def _runs(bits: np.ndarray, lengths: list[int], place: str, count: int) -> Iterator[np.ndarray]:
    """Yield stretches of values: one value repeated, or as many values as there are."""
    position, filled = 53, 0
    while filled < count:
        kind = bits[position : position + 3]
        width = lengths[_unsigned(kind[1:])]
        run = _unsigned(bits[position + 3 : position + 3 + width]) + 1
        position += 3 + width
        size = 8 if len(kind) and kind[0] else 8 * run
        if position + size > len(bits):
            raise ValueError(f"{place}: rle must hold {count} values, it ends after {filled}")
        found = np.packbits(bits[position : position + size])
        yield np.repeat(found, run) if kind[0] else found
        position += size
        filled += run
