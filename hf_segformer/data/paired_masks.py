# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures beside masks: `images/` and one of `masks/`, `labels/`, `annotations/`, `gt/` ..., or both in one folder.

Splits may be folders above or below these, or in their names (`train_images`, `trainannot`); pictures may also lie in
the folder around that of the masks. A mask has the stem of its picture, or this with `_mask`, `_label`, `_seg` and the
like at its end, or `mask_` before it; in one folder it must have one of these.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable

from ..texts import listed, short_repr
from .annotated import Annotated, Faults, Picture
from .classes import CLASS_FILES, ClassTable, class_table_of, names_in_text
from .file_names import SPLIT_NAMES, split_of
from .file_tree import probe_evenly
from .labels import stored_values
from .segmentation_data import open_picture, place_of
from .source import Source, loose_name

WHAT = "Pictures beside masks"
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pictures")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "ground_truth", "groundtruth"),
    *("segmentations", "segmentation", "annotated", "gts", "annot", "ann"),
)
_MASK = "masks?|labels?|segmentation|seg|gt|annotation|labelids|labeltrainids"
_IMAGE = "image|img|rgb|sat"
_MASK_END = re.compile(rf"[_.-]({_MASK})$|^({_MASK})[_-](?=.)", re.IGNORECASE)
_IMAGE_END = re.compile(rf"[_.-]({_IMAGE})$|^({_IMAGE})[_-](?=.)", re.IGNORECASE)
TEXT_FILES = ("labels.txt", "class_names.txt")
_COLOR_TABLE = re.compile(r"class_dict\w*\.csv", re.IGNORECASE)  # with a first line name,r,g,b


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    if source.given:
        return None
    images, masks = _sides(source)
    if not images or not masks:
        return None
    folder = next(iter(masks.values()))[0].rpartition("/")[0]
    return f"masks in {source.shown(folder) if folder else 'the same folder as pictures'}"


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    images, masks = _sides(source)
    faults = Faults(WHAT)
    pictures = []
    for key in sorted(images.keys() | masks.keys()):
        mine, theirs = images.get(key, []), masks.get(key, [])
        shown, split = source.shown((mine or theirs)[0]), split_of(f"{key[0]}/")
        if len(mine) > 1 or len(theirs) > 1:
            several = [source.shown(name) for name in (mine if len(mine) > 1 else theirs)]
            faults.add(
                shown, f"one picture and one mask must have the stem {key[1]!r}, got {listed(several, 3)}", split
            )
        elif not theirs:
            faults.add(shown, f"no mask with the stem {key[1]!r} beside it", split)
        elif not mine:
            faults.add(shown, f"no picture with the stem {key[1]!r} beside this mask", split)
        else:
            with faults.of(shown, split):
                path, mask = source.path(mine[0]), source.path(theirs[0])
                pictures.append(Picture(path, mine[0], source.shown(theirs[0]), split, mask=mask))
    left_out = faults.stop(pictures)
    table, note = _class_table(source, classes, pictures)
    return Annotated(
        pictures,
        table.names,
        WHAT,
        palette=table.palette if table.has_own_palette else None,
        ignore_index=table.ignore_index,
        ignore_color=table.ignore_color,
        mask_format=table.mask_format or "auto",
        notes=[note] if note else [],
        left_out=left_out,
    )


Sides = dict[tuple[str, str], list[str]]  # (place, stem) -> files


def _sides(source: Source) -> tuple[Sides, Sides]:
    """Return pictures and masks by the place that they share, and their common stem."""
    found: dict[str, Sides] = {kind: defaultdict(list) for kind in ("image", "mask")}
    rest: Sides = defaultdict(list)
    for name in source.image_names:
        *folders, last = name.split("/")
        kinds = [(i, *_kind(f)) for i, f in enumerate(folders) if _kind(f)[0]]
        position, kind, split = kinds[-1] if kinds else (len(folders), "", "")
        place = "/".join((*folders[:position], *filter(None, [split]), *folders[position + 1 :]))
        (found[kind] if kind else rest)[place, last.rpartition(".")[0]].append(name)
    images, masks = found["image"], found["mask"]
    if masks and not images:
        places = {place for place, _ in masks}
        images = {key: names for key, names in rest.items() if key[0] in places}
    sides = _matched(images, masks) if images and masks else _in_one_folder(source.image_names)
    return _with_loose_partners(*sides)


def _kind(folder: str) -> tuple[str, str]:
    """Whether a folder is one of images or masks, and the split in its name."""
    name = folder.lower()
    split = next((s for s in sorted(SPLIT_NAMES, key=len, reverse=True) if name.startswith(s)), "")
    for word, start in ((name, ""), (name[len(split) :].lstrip("_- "), folder[: len(split)])):
        kind = "image" if word in IMAGE_FOLDERS else "mask" if word in MASK_FOLDERS else ""
        if kind:
            return kind, start
    return "", ""


def _matched(images: Sides, masks: Sides) -> tuple[Sides, Sides]:
    """Shorten stems that have no partner as they are."""

    def shortened(mine: Sides, theirs: Sides, end: re.Pattern) -> Sides:
        result: Sides = defaultdict(list)
        for (place, stem), names in mine.items():
            whole = (place, stem) in theirs
            result[place, stem if whole else end.sub("", stem)].extend(names)
        return result

    short_masks = shortened(masks, images, _MASK_END)
    if images.keys() & short_masks.keys():
        return dict(images), dict(short_masks)
    return dict(shortened(images, short_masks, _IMAGE_END)), dict(short_masks)


def _with_loose_partners(images: Sides, masks: Sides) -> tuple[Sides, Sides]:
    """Give masks without a picture the stem of the only one that differs as `loose_name` takes away."""
    alone: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for place, stem in images.keys() - masks.keys():
        alone[place, loose_name(stem)].append((place, stem))
    renamed: Sides = defaultdict(list)
    for (place, stem), names in masks.items():
        partners = [] if (place, stem) in images else alone.get((place, loose_name(stem)), [])
        renamed[partners[0] if len(partners) == 1 else (place, stem)].extend(names)
    return images, dict(renamed)


def _in_one_folder(names: Iterable[str]) -> tuple[Sides, Sides]:
    images: Sides = defaultdict(list)
    masks: Sides = defaultdict(list)
    for name in names:
        place, _, last = name.rpartition("/")
        stem = last.rpartition(".")[0]
        if _MASK_END.search(stem):
            masks[place, _MASK_END.sub("", stem)].append(name)
        else:
            images[place, _IMAGE_END.sub("", stem)].append(name)
    return (dict(images), dict(masks)) if images.keys() & masks.keys() else ({}, {})


def _class_table(source: Source, classes: ClassTable | None, pictures: list[Picture]) -> tuple[ClassTable, str]:
    if classes is not None:
        return classes, ""
    for name in source.files:
        folder, _, last = name.rpartition("/")
        if (last in (*CLASS_FILES, *TEXT_FILES) or _COLOR_TABLE.fullmatch(last)) and folder.count("/") < 2:
            return _read_table(source, name), ""
    values: set[int] = set()

    def probe(path: str) -> None:
        picture_name = f"annotation {place_of(path)}"
        picture = open_picture(path, picture_name)
        hint = "name the classes and their colours in a classes.json beside images and masks"
        values.update(stored_values(picture, picture_name, hint).ravel().tolist())

    probe_evenly([picture.mask for picture in pictures], probe)
    if values <= {0, 1} or values <= {0, 255}:
        return class_table_of(["background", "foreground"], WHAT), "masks of 0 and 1 or 255, no class names found"
    raise ValueError(
        f"{source.shown('')}: no class names found for masks with values {listed(sorted(values))}; class_names names "
        f"them, or a classes.json or classes.txt there"
    )


def _color_table(text: str) -> dict[str, list]:
    """Names and colours of a table with a line `name,r,g,b` and one for each class."""
    rows = [[field.strip() for field in row] for row in csv.reader(text.split("\n")) if row]
    if not rows or [field.lower() for field in rows[0]] != ["name", "r", "g", "b"]:
        raise ValueError(f"its first line must be name,r,g,b, got {short_repr(','.join(rows[0]) if rows else '')}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 4 or not all(field.isascii() and field.isdigit() for field in row[1:]):
            raise ValueError(f"line {number} must be a name and three integers, got {short_repr(','.join(row))}")
    return {"names": [row[0] for row in rows[1:]], "palette": [[*map(int, row[1:])] for row in rows[1:]]}


def _read_table(source: Source, name: str) -> ClassTable:
    shown = source.shown(name)
    try:
        if name.endswith(".txt"):
            return class_table_of(names_in_text(source.text(name)), shown)
        if name.lower().endswith(".csv"):
            return class_table_of(_color_table(source.text(name)), shown)
        content = source.json(name, (dict, list))
    except ValueError as error:
        raise ValueError(f"{shown}: {error}" if not str(error).startswith(shown) else str(error)) from None
    return class_table_of(content, shown)
