# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""CSV files of Kaggle's competitions: a picture, perhaps a class, and run lengths.

Runs are pairs of a start, counted from 1 down the columns, and a length. The class stands in a column of its own, or
behind the last `_` of the picture's name; without either there is one class.
"""

from __future__ import annotations

import csv
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from ..texts import listed, short_repr
from .annotated import Annotated, Faults, Picture, Runs, Shape
from .classes import ClassTable, make_class_table
from .file_names import split_in, split_of
from .segmentation_data import picture_size
from .source import IMAGE_SUFFIXES, Source

WHAT = "Kaggle run lengths"
RUN_COLUMNS = ("encodedpixels", "encoded_pixels", "rle", "rle_mask", "segmentation", "annotation")
IMAGE_COLUMNS = (
    "imageid",
    "image_id",
    "id",
    "image",
    "img",
    "file_name",
    "filename",
    "imageid_classid",
    "image_label",
)
CLASS_COLUMNS = ("classid", "class_id", "class", "label", "class_name")
JOINED = ("imageid_classid", "image_label")
_LIMIT = 1 << 27  # characters of one field


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    names = _files(source)
    return f"run lengths in {source.shown(names[0])}" if names else None


def _files(source: Source) -> list[str]:
    found = [name for name in source.named(".csv") if _columns(_head(source, name)) is not None]
    kept = [name for name in found if "submission" not in posixpath.basename(name).lower()]
    return kept or found


def _head(source: Source, name: str) -> list[str]:
    try:
        return source.text(name).partition("\n")[0].split(",")
    except ValueError:
        return []


def _columns(header: list[str]) -> tuple[int, int, int | None] | None:
    """Return the places of picture, runs and class among the columns."""
    fields = [field.strip().strip('"').lower() for field in header]
    image = next((fields.index(name) for name in IMAGE_COLUMNS if name in fields), None)
    runs = next((fields.index(name) for name in RUN_COLUMNS if name in fields), None)
    if image is None or runs is None:
        return None
    return image, runs, next((fields.index(name) for name in CLASS_COLUMNS if name in fields), None)


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    faults, lines = Faults(WHAT), Faults(WHAT)
    rows: defaultdict[tuple[str, str], list[tuple[str, str, str]]] = defaultdict(list)
    files = _files(source)
    source.require(files, "CSV file with a picture and run lengths (ImageId, EncodedPixels)")
    for file in files:
        with faults.of(source.shown(file)):
            for number, name, label, runs in _rows(source.text(file)):
                with lines.of(f"{source.shown(file)}, line {number}", split_in(_stem(file))):
                    path = _find(source, name, posixpath.dirname(file))
                    rows[file, path].append((f"line {number}", label, runs))
    faults.stop()
    left_out = lines.stop(rows)
    labels = sorted({label for entries in rows.values() for _, label, runs in entries if runs}, key=_in_order)
    if not labels and classes is None:
        raise ValueError(f"{listed(map(source.shown, files))}: not one row with run lengths")
    table, ids = _classes(labels, classes)
    pictures = []
    for (file, path), entries in rows.items():
        name = source.name_of(path)
        split = split_of(name) or split_in(_stem(file))
        shapes = _reader(path, [(place, ids[label], runs) for place, label, runs in entries if runs])
        pictures.append(Picture(path, name, source.shown(file), split, shapes))
    return Annotated(pictures, table.names, WHAT, left_out=left_out)


def _stem(file: str) -> str:
    return posixpath.splitext(posixpath.basename(file))[0]


def _in_order(label: str) -> tuple[bool, int, str]:
    return (not label.isdigit(), int(label) if label.isdigit() else 0, label)


def _classes(labels: list[str], classes: ClassTable | None) -> tuple[ClassTable, dict[str, int]]:
    """Classes by name, or by number in their order."""
    if classes is None:
        return make_class_table([label or "foreground" for label in labels], source=WHAT), {
            label: k for k, label in enumerate(labels)
        }
    by_name = {name: index for index, name in enumerate(classes.names)}
    if set(labels) <= by_name.keys():
        return classes, by_name
    if len(labels) > len(classes.names):
        raise ValueError(f"{WHAT}: class_names must name every class, there are {listed(labels)}")
    return classes, {label: index for index, label in enumerate(labels)}


def _rows(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield line number, picture, class and run lengths."""
    before = csv.field_size_limit(_LIMIT)
    try:
        rows = list(csv.reader(text.split("\n")))
    except csv.Error as error:
        raise ValueError(f"it is no CSV file: {error}") from None
    finally:
        csv.field_size_limit(before)
    found = _columns(rows[0])
    assert found is not None  # or it would be no file of this kind
    image, runs, label = found
    joined = label is None and rows[0][image].strip().lower() in JOINED
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != len(rows[0]):
            raise ValueError(f"line {number} must have {len(rows[0])} fields as the first has, got {len(row)}")
        name, value = row[image].strip(), row[runs].strip()
        kind = row[label].strip() if label is not None else ""
        if joined:
            name, _, kind = name.rpartition("_")
        yield number, name, kind, "" if value.lower() in ("nan", "-1") else value


def _find(source: Source, name: str, folder: str) -> str:
    """Names stand with or without their ending."""
    if name.lower().endswith(IMAGE_SUFFIXES):
        return source.find_picture(name, folder)
    for suffix in IMAGE_SUFFIXES:
        try:
            return source.find_picture(name + suffix, folder)
        except ValueError as error:
            if "is missing" not in str(error):
                raise
    raise ValueError(f"picture {name!r} is missing, with any of the endings {', '.join(IMAGE_SUFFIXES)}")


def _reader(path: str, entries: list[tuple[str, int, str]]) -> Callable[[], list[Shape]]:
    def shapes() -> list[Shape]:
        width, height = picture_size(path)
        return [
            Shape(label, (decode_runs(runs, height, width, place),), place=place) for place, label, runs in entries
        ]

    return shapes


def decode_runs(text: str, height: int, width: int, place: str) -> Runs:
    """Return the runs of pairs of start and length.

    Raises:
        ValueError: They are no pairs of positive integers, overlap, or leave the picture.
    """
    try:
        numbers = np.array(text.split(), np.int64)
    except (ValueError, OverflowError):
        raise ValueError(f"{place}: run lengths must be integers, got {short_repr(text)}") from None
    if len(numbers) % 2:
        raise ValueError(f"{place}: run lengths must be pairs of start and length, got {len(numbers)} numbers")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    if len(numbers) and (starts.min() < 0 or lengths.min() < 1):
        raise ValueError(f"{place}: starts count from 1 and lengths are at least 1, got {short_repr(text)}")
    ends = starts + lengths
    if len(numbers) and ends.max() > height * width:
        raise ValueError(
            f"{place}: runs must end within the {width} x {height} pixels of the picture, got {ends.max()}"
        )
    order = np.argsort(starts)
    starts, ends = starts[order], ends[order]
    if (starts[1:] < ends[:-1]).any():
        raise ValueError(f"{place}: runs must not overlap")
    edges = np.stack([starts, ends], axis=1).ravel()
    return Runs(np.diff(np.concatenate([[0], edges, [height * width]])), height, width)
