# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""YOLO, as ultralytics reads it: `data.yaml` with names and folders, and for each picture a text file or a mask.

A line of a text file is a class and the corners of one polygon, as shares of width and height. A picture without a
text file has nothing labelled. Smaller polygons lie on larger ones. With `masks_dir`, or a folder `masks`, there is a
picture of class ids for each picture instead, 255 is no class, and `label_mapping` says what other values mean.

Without `data.yaml`: folders `images` and `labels`, and the names in `classes.txt` or `obj.names`.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..texts import listed, short_repr
from .annotated import IGNORED, Annotated, Faults, Picture, Shape, make_polygon
from .classes import ClassTable, make_class_table
from .file_names import split_of
from .source import IMAGE_SUFFIXES, Source

SPLIT_KEYS = ("train", "val", "validation", "test")
NAME_FILES = ("classes.txt", "obj.names")
Named = Sequence[tuple[str, str]]  # split and name of each picture
BEYOND = 0.01  # share of width and height that points may lie outside, as in ultralytics
IGNORED_VALUE = 255
MAX_CLASSES = 65_000
_MOST_YAML = 20  # files that are looked into


class _Loader(yaml.BaseLoader):
    """Leaves every value a text, so that a class called `no` or `1.0` keeps its name, and refuses repeated keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := [key for index, key in enumerate(keys) if key in keys[:index]]:
            raise ValueError(f"key {short_repr(repeated[0])} must stand once, it stands twice")
        return super().construct_mapping(node, deep)


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    if found := _yaml_files(source):
        return f"{source.shown(found[0])} with class names and splits"
    if _names_file(source) and (texts := _label_texts(source)):
        return f"{source.shown(texts[0])} and {_names_file(source)}"
    return None


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    found = _yaml_files(source)
    if len(found) > 1 and posixpath.basename(found[0]) != "data.yaml":
        listed_files = listed(map(source.shown, found))
        raise ValueError(f"{source.shown('')}: several files describe a data set: {listed_files}; give one of them")
    if not found:
        return _read_folders(source, classes)
    try:
        return _read_yaml(source, found[0], classes)
    except ValueError as error:
        prefix = source.shown(found[0])
        raise error if str(error).startswith(("YOLO", prefix)) else ValueError(f"{prefix}: {error}") from None


# ---- data.yaml


def _yaml_files(source: Source) -> list[str]:
    """Files that describe a data set, the uppermost, `data.yaml` first; one that was given in any case."""
    names = sorted(source.named(".yaml", ".yml"), key=lambda name: (name.count("/"), name))[:_MOST_YAML]
    if source.given:
        return names
    found = [name for name in names if _describes(source, name)]
    top = [name for name in found if name.count("/") == found[0].count("/")]
    return sorted(top, key=lambda name: (posixpath.basename(name) != "data.yaml", name))


def _describes(source: Source, name: str) -> bool:
    try:
        content = parse_yaml(source.text(name))
    except ValueError:
        return posixpath.basename(name) == "data.yaml"  # reading it says what is wrong
    return ("names" in content or "nc" in content) and any(key in content for key in SPLIT_KEYS)


def parse_yaml(text: str) -> dict[str, Any]:
    """Return a mapping from YAML, with every value a text.

    Raises:
        ValueError: It is no YAML or no mapping; the message is the reason alone.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # no object but texts, lists and dictionaries
    except RecursionError:
        raise ValueError("it is no YAML file that can be read: it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"it must hold keys and values (names, train, val), got {short_repr(content)}")
    return content


def _class_table(content: dict[str, Any], classes: ClassTable | None, place: str) -> ClassTable:
    names: Any = content.get("names")
    count = content.get("nc")
    if count not in (None, "") and not (isinstance(count, str) and count.isascii() and count.isdigit()):
        raise ValueError(f"nc must be the number of classes, got {short_repr(count)}")
    if count and (len(count) > 5 or int(count) > MAX_CLASSES):
        raise ValueError(f"nc must be at most {MAX_CLASSES}, got {short_repr(count)}")
    if names in (None, "") and count and classes is None:
        names = [f"class_{index}" for index in range(int(count))]
    if classes is None and not isinstance(names, (list, dict)):
        raise ValueError(f"names must be a list of class names or a mapping from id to name, got {short_repr(names)}")
    table = classes or make_class_table(names, source=place)
    if count and int(count) != len(table.names):
        raise ValueError(f"nc must be the number of names, got {count} for {len(table.names)} names")
    return table


def _read_yaml(source: Source, name: str, classes: ClassTable | None) -> Annotated:
    content = parse_yaml(source.text(name))
    if content.get("kpt_shape"):
        raise ValueError("kpt_shape: these are labels of keypoints, which have no area")
    table = _class_table(content, classes, source.shown(name))
    source, bases = _bases(source, name, content.get("path"))
    faults, lines = Faults("YOLO"), Faults("YOLO")
    notes: list[str] = []
    pictures: list[tuple[str, str]] = []
    for key in SPLIT_KEYS:
        entries = content.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            with faults.of(f"{source.shown(name)}: {key}" if source.has(name) else key):
                place = _place(source, bases, entry)
                if place is None and key == "test":
                    notes.append(f"test: {entry} is missing")
                elif place is None:
                    looked = " and ".join(source.shown(posixpath.join(base, str(entry))) for base in bases)
                    raise ValueError(f"folder or list {short_repr(entry)} is missing, looked for {looked}")
                else:
                    pictures += [(key, picture) for picture in _pictures_at(source, bases, place, lines, key)]
    faults.stop()
    left_out = lines.stop(pictures)
    masks_dir = content.get("masks_dir") or next((f for f in ("masks",) if _is_folder(source, bases, f)), None)
    if masks_dir:
        found = _with_masks(source, pictures, masks_dir, content.get("label_mapping"), table, notes)
    else:
        found = _with_texts(source, pictures, table, notes)
    return replace(found, left_out=[*left_out, *found.left_out])


def _bases(source: Source, name: str, path: Any) -> tuple[Source, list[str]]:
    """Return the files, and the folders among them that paths may start from: `path`, then that of the YAML file."""
    here = posixpath.dirname(name)
    if source.pictures is not None:
        return _outside(source, source.pictures), [""]
    if not isinstance(path, str) or not path:
        return source, [here]
    plain = path.replace("\\", "/")
    root = Path(source.root) / here / plain
    if source.archive is None and os.path.isdir(root):
        inside = os.path.relpath(os.path.realpath(root), os.path.realpath(source.root))
        if inside.split(os.sep)[0] != os.pardir:
            return source, [Path(inside).as_posix() if inside != "." else "", here]
        if source.allow_outside_files:
            return _outside(source, Source(root, allow_outside_files=True)), [""]
    tail = _tail(source, plain)
    return source, ([tail] if tail is not None else []) + [here]


def _outside(source: Source, other: Source) -> Source:
    """The files of another folder; that any of them changes is noticed at the next start."""
    source.read_names.update(str(other.root / folder) for folder in other.folders)
    source.read_names.update(str(other.root / file) for file in other.files if file.endswith(".txt"))
    return other


def _tail(source: Source, plain: str) -> str | None:
    """Return the longest end of a path, perhaps one of another machine, that is a folder or file here."""
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    return next((t for i in range(len(parts)) if _exists(source, t := "/".join(parts[i:]))), None)


def _exists(source: Source, name: str) -> bool:
    return source.has(name) or _holds_files(source, name)


def _holds_files(source: Source, folder: str) -> bool:
    return not folder or any(name == folder or name.startswith(f"{folder}/") for name in source.folders)


def _is_folder(source: Source, bases: list[str], name: str) -> bool:
    return any(_holds_files(source, posixpath.join(base, name)) for base in bases)


def _place(source: Source, bases: list[str], entry: Any) -> str | None:
    """Return the folder or file that an entry means; a leading `../` that leads nowhere is left out, as usual."""
    if not isinstance(entry, str):
        raise ValueError(f"it must be a path or a list of paths, got {short_repr(entry)}")
    plain = entry.replace("\\", "/")
    if plain.startswith("/") or plain[1:3] == ":/":
        return _tail(source, plain)
    for base in bases:
        for wanted in (plain, plain.removeprefix("../")):
            name = posixpath.normpath(posixpath.join(base, wanted))
            name = "" if name == "." else name
            if not name.startswith("../") and _exists(source, name):
                return name
    return None


def _pictures_at(source: Source, bases: list[str], place: str, faults: Faults, split: str) -> Iterator[str]:
    """Pictures below a folder, or those in a list."""
    if not source.has(place):
        found = [name for name in source.image_names if not place or name.startswith(f"{place}/")]
        if not found:
            raise ValueError(f"no pictures in {source.shown(place)} ({', '.join(IMAGE_SUFFIXES)})")
        yield from found
    elif place.lower().endswith(IMAGE_SUFFIXES):
        yield place
    else:
        for number, line in enumerate(source.named_text(place).split("\n"), 1):
            if not line.strip():
                continue
            with faults.of(f"{source.shown(place)}, line {number}", split):
                picture = _place(source, [posixpath.dirname(place), *bases], line.strip())
                picture = picture or _tail(source, line.strip().replace("\\", "/"))
                if picture is None or not source.has(picture):
                    raise ValueError(f"picture {short_repr(line.strip())} is missing")
                yield picture


def partner(picture: str, folder: str, suffix: str) -> str:
    """Return the file of a picture: the last folder `images` in its path becomes `folder`, the ending `suffix`."""
    head, images, tail = f"/{picture}".rpartition("/images/")
    return posixpath.splitext(f"{head}/{folder}/{tail}" if images else f"/{picture}")[0][1:] + suffix


# ---- masks


def _with_masks(
    source: Source, pictures: Named, folder: str, mapping: Any, table: ClassTable, notes: list[str]
) -> Annotated:
    faults, rows, untold = Faults("YOLO with masks"), [], 0
    for split, name in pictures:
        wanted = partner(name, folder.strip("/"), "")
        mask = next((wanted + suffix for suffix in (".png", *IMAGE_SUFFIXES) if source.has(wanted + suffix)), None)
        if mask is None and split == "test":
            untold += 1
            continue
        if mask is None:
            faults.add(source.shown(name), f"its mask {source.shown(wanted + '.png')} is missing", split)
            continue
        rows.append(Picture(source.path(name), name, source.shown(mask), split, mask=source.path(mask)))
    left_out = faults.stop(rows)
    if untold:
        notes.append(f"{untold} test pictures without a mask left out")
    names = table.names if len(table.names) > 1 else ("background", *table.names)  # one class: 0 is none of it
    ids = (
        {value: value for value in range(len(names))} | {IGNORED_VALUE: IGNORED} | _parse_mapping(mapping, len(names))
    )
    return Annotated(
        rows,
        tuple(names),
        "YOLO with masks",
        mask_format="ids",
        id_map=tuple(sorted(ids.items())),
        notes=notes,
        left_out=left_out,
    )


def _parse_mapping(mapping: Any, count: int) -> dict[int, int]:
    if mapping in (None, ""):
        return {}
    if not isinstance(mapping, dict):
        raise ValueError(f"label_mapping must map stored values to class ids, got {short_repr(mapping)}")
    ids = {}
    for value, label in mapping.items():
        try:
            stored = int(value)
            target = IGNORED if label in ("", "ignore_label", "null", "~", str(IGNORED_VALUE)) else int(label)
        except (TypeError, ValueError):
            raise ValueError(f"label_mapping must hold integers or ignore_label, got {value}: {label}") from None
        if target != IGNORED and not 0 <= target < count:
            raise ValueError(f"label_mapping must lead to class ids in 0..{count - 1}, got {value}: {label}")
        if stored >= 0:
            ids[stored] = target
    return ids


# ---- text files


def _with_texts(source: Source, pictures: Named, table: ClassTable, notes: list[str]) -> Annotated:
    rows = []
    missing = 0
    for split, name in pictures:
        text = partner(name, "labels", ".txt")
        there = source.has(text)
        missing += not there
        shapes = _reader(source, text, len(table.names)) if there else ()
        place = source.shown(text if there else name)
        rows.append(Picture(source.path(name), name, place, split, shapes, relative=True, small_on_top=True))
    if rows and missing == len(rows):
        wanted = source.shown(partner(pictures[0][1], "labels", ".txt"))
        raise ValueError(f"YOLO: not one of {len(rows)} pictures has a text file; looked for {wanted} and the like")
    if missing:
        notes.append(f"{missing} pictures without a text file have nothing labelled")
    repeated = sum(count > 1 for count in Counter(name for _, name in pictures).values())
    if repeated:
        notes.append(f"{repeated} pictures are in more than one split")
    return Annotated(rows, table.names, "YOLO", notes=notes)


def _reader(source: Source, text: str, count: int) -> Callable[[], list[Shape]]:
    def shapes() -> list[Shape]:
        lines = [(number, line.split()) for number, line in enumerate(source.text(text).split("\n"), 1)]
        return [_shape(f"line {number}", values, count) for number, values in lines if values]

    return shapes


def _shape(place: str, values: list[str], count: int) -> Shape:
    try:
        numbers = np.array(values, np.float64)
    except ValueError:
        raise ValueError(
            f"{place}: a class and coordinates must be numbers, got {short_repr(' '.join(values))}"
        ) from None
    label, points = numbers[0], numbers[1:]
    if not (label % 1 == 0 and 0 <= label < count):
        raise ValueError(f"{place}: the class must be in 0..{count - 1} ({count} names), got {values[0]}")
    if len(points) == 4:
        raise ValueError(f"{place}: five numbers are a box of a detector, not a polygon; labels of areas are needed")
    if len(points) % 2:
        raise ValueError(f"{place}: coordinates must be pairs of x and y, got an odd number of them: {len(points)}")
    polygon = make_polygon(points.reshape(-1, 2), place)
    outside = points[(points < -BEYOND) | (points > 1 + BEYOND)]
    if outside.size:
        raise ValueError(
            f"{place}: coordinates must be shares of width and height, 0..1 (up to {BEYOND} outside is taken), got "
            f"{outside[0]:g}" + ("; pixels must be divided by width and height" if abs(outside[0]) >= 2 else "")
        )
    return Shape(int(label), (polygon,), place=place)


# ---- without data.yaml


def _names_file(source: Source) -> str | None:
    return next((name for name in NAME_FILES if not source.given and source.has(name)), None)


def _label_texts(source: Source) -> list[str]:
    return [name for name in source.files if name.endswith(".txt") and "labels" in name.split("/")[:-1]]


def _read_folders(source: Source, classes: ClassTable | None) -> Annotated:
    names = _names_file(source)
    if classes is None:
        if names is None:
            raise ValueError(f"{source.shown('')}: no data.yaml, and no class names in {' or '.join(NAME_FILES)}")
        lines = [line.strip() for line in source.named_text(names).split("\n")]
        classes = make_class_table([line for line in lines if line], source=source.shown(names))
    pictures = [(split_of(name), name) for name in source.image_names if "images" in name.split("/")[:-1]]
    return _with_texts(source, pictures, classes, [])
