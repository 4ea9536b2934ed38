# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""CVAT's "Segmentation mask 1.1": the folders of Pascal VOC, and the colour of each class in `labelmap.txt`."""

from __future__ import annotations

import posixpath
from typing import Any

from .annotated import IGNORED, Annotated
from .classes import ClassTable, Color, default_palette, make_class_table
from .file_tree import probe_evenly
from .segmentation_data import open_picture, place_of
from .source import Source
from .voc import LABEL_MAP, mask_roots, read_pictures

IGNORE_NAMES = ("ignored", "ignore", "__ignore__", "void")  # labels of pixels that belong to no class


def recognise(source: Source) -> str | None:
    """See `annotated`."""
    roots = mask_roots(source)
    found = [name for root in roots if source.has(name := posixpath.join(root, LABEL_MAP))]
    return f"{source.shown(found[0])} and masks of CVAT" if found else None


def read(source: Source, classes: ClassTable | None) -> Annotated:
    """See `annotated`."""
    pictures, notes, left_out = read_pictures(source, "CVAT masks")
    (root,) = mask_roots(source)
    name = posixpath.join(root, LABEL_MAP)
    try:
        if not source.has(name):
            raise ValueError("the file is missing")
        labels = parse_label_map(source.text(name))
        table = make_class_table([label for label, _ in labels], [color for _, color in labels])
    except ValueError as error:
        raise ValueError(f"{source.shown(name)}: {error}") from None
    if classes is not None and len(classes.names) != len(labels):
        raise ValueError(
            f"class_names must have one name for each line of {source.shown(name)}, got {len(classes.names)} names "
            f"for {len(labels)} lines"
        )
    names, palette = list((classes or table).names), list(table.palette)
    ignored = next((index for index, label in enumerate(names) if label.lower() in IGNORE_NAMES), None)
    ignore_color = None
    ids = {index: index for index in range(len(names))}
    if ignored is not None:
        notes.append(f"{names[ignored]} belongs to no class")
        ignore_color = palette.pop(ignored)
        names.pop(ignored)
        ids = {k: IGNORED if k == ignored else k - (k > ignored) for k in ids}
    colored = _hold_colors([picture.mask for picture in pictures], set(table.palette))
    return Annotated(
        pictures,
        tuple(names),
        "CVAT masks",
        palette=tuple(palette),
        ignore_color=ignore_color,
        mask_format="rgb" if colored else "ids",
        id_map=tuple(ids.items()) if ignored is not None and not colored else (),
        notes=notes,
        left_out=left_out,
    )


def _hold_colors(masks: list[str], colors: set[Color]) -> bool:
    """Whether masks are pictures in colour, or palette PNGs with the colours of the classes, in whatever order."""
    found: set[Color] = set()
    modes: set[str] = set()

    def probe(mask: str) -> None:
        picture = open_picture(mask, f"annotation {place_of(mask)}")
        modes.add(picture.mode)
        if picture.mode == "P":
            colors_of: Any = picture.convert("RGB").getcolors(maxcolors=256)
            found.update(color for _, color in colors_of)

    probe_evenly(masks, probe)
    return bool(modes & {"RGB", "RGBA"}) or (modes == {"P"} and found <= colors)


def parse_label_map(text: str) -> list[tuple[str, Color]]:
    """Return names and colours of the lines `name:r,g,b:parts:actions`.

    Raises:
        ValueError: A line has another form, or two have the same colour; the message is the reason alone.
    """
    labels: list[tuple[str, Color | None]] = []
    owners: dict[Color, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        fields = line.rsplit(":", 3)
        if len(fields) != 4:
            raise ValueError(f"line {number} must have the form name:r,g,b:parts:actions, got {line!r}")
        color = _color(fields[1], number)
        if color in owners:
            raise ValueError(
                f"line {number}: every class needs a colour of its own, {color} is that of {owners[color]}"
            )
        if color is not None:
            owners[color] = fields[0]
        labels.append((fields[0].strip(), color))
    if not owners:  # then masks have the colours of Pascal VOC
        return [(name, color) for (name, _), color in zip(labels, _voc_colors(len(labels)), strict=True)]
    if missing := [name for name, color in labels if color is None]:
        raise ValueError(f"class {missing[0]} must have a colour r,g,b as the others have")
    return [(name, color) for name, color in labels if color is not None]


def _voc_colors(count: int) -> tuple[Color, ...]:
    return ((0, 0, 0), *default_palette(count))[:count]


def _color(text: str, number: int) -> Color | None:
    if not text.strip():
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) <= 255 for part in parts):
        raise ValueError(f"line {number}: a colour must be r,g,b in 0..255, got {text!r}")
    red, green, blue = map(int, parts)
    return red, green, blue
