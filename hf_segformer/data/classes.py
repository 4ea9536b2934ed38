# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Class names, palette and ignored label of a data set, read from the small file that lies beside the pictures."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from ..json_files import read_json, read_text
from ..texts import listed, short_repr

Color = tuple[int, int, int]

MASK_FORMATS = ("ids", "binary", "rgb")
CLASS_FILES = ("classes.json", "classes.txt", "id2label.json")
IGNORE_NAME = "__ignore__"  # labelme's lists begin with it; it has the id -1, so that the next name has the id 0
_INVISIBLE = {"Cc", "Cf", "Zl", "Zp", "Zs"}  # categories of characters without a mark on paper


@dataclass(frozen=True)
class ClassTable:
    """What label ids mean.

    Attributes:
        names: Class names; the position is the label id.
        palette: One (R, G, B) colour in 0..255 per class.
        ignore_index: Label of pixels that belong to no class.
        ignore_color: (R, G, B) of such pixels in RGB-colour masks, or None.
        has_own_palette: Whether the colours come from the data set (only then can RGB-colour masks be read).
        mask_format: How masks hold ids, where the data set says it; see `AnnotationFormat`.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = 255
    ignore_color: Color | None = None
    has_own_palette: bool = True
    mask_format: str | None = None


def default_palette(count: int) -> tuple[Color, ...]:
    """Return `count` different colours, far apart for small counts (the PASCAL VOC bit pattern, black left out).

    Args:
        count: Number of classes, at most 65535.
    """

    def channel(index: int, offset: int) -> int:  # bits offset, offset + 3, ... of the index, highest first
        return sum(((index >> (3 * position + offset)) & 1) << (7 - position) for position in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(1, count + 1))


def make_class_table(
    names: Sequence[str] | Mapping[Any, str],
    palette: Sequence[Sequence[int]] | None = None,
    ignore_index: int = 255,
    ignore_color: Sequence[int] | None = None,
    source: str = "class_names",
) -> ClassTable:
    """Check class names and colours and put them into a table.

    Args:
        names: Class names in the order of their ids, or a mapping from id (int or its decimal string) to name.
        palette: One (R, G, B) in 0..255 per class; None draws up a palette.
        ignore_index: Label of pixels that belong to no class.
        ignore_color: (R, G, B) of such pixels in RGB-colour masks.
        source: Where the names come from, for error messages.

    Raises:
        ValueError: No names, names that are blank or no texts, repeated names, ids with gaps, an `ignore_index` that
            is no integer, or a palette that does not fit.
    """
    if isinstance(names, Mapping):
        names = _names_by_id(names, source)
    names = _check_names(names, source)
    own = palette is not None
    colors = default_palette(len(names)) if palette is None else _check_palette(palette, len(names), source)
    void = None if ignore_color is None else _check_color(ignore_color, "ignore_color", source)
    if not _is_integer(ignore_index) or not -(2**31) <= ignore_index < 2**31:
        raise ValueError(f"{source}: ignore_index must be an integer of 32 bits, got {short_repr(ignore_index)}")
    return ClassTable(names, colors, int(ignore_index), void, own)


def _check_names(names: Any, source: str) -> tuple[str, ...]:
    if isinstance(names, (str, bytes, set, frozenset)) or not isinstance(names, Iterable):
        raise ValueError(f"{source}: class names must be a list or a mapping from id to name, got {short_repr(names)}")
    names = tuple(names)
    if not names:
        raise ValueError(f"{source}: at least one class name is needed, got none")
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"{source}: the name of class {index} must be a text, got {short_repr(name)}")
        if all(unicodedata.category(char) in _INVISIBLE for char in name):
            raise ValueError(f"{source}: the name of class {index} must not be blank, got {short_repr(name)}")
        if re.search("[\x00\ud800-\udfff]", name):  # the first is what UTF-16 looks like, the others no file can hold
            rule = "must hold no NUL and no half of a surrogate pair"
            raise ValueError(f"{source}: the name of class {index} {rule}, got {short_repr(name)}")
    counts = Counter(unicodedata.normalize("NFC", name.strip()) for name in names)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(f"{source}: class names must be unique, repeated: {listed(repeated, 10)}")
    return names


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _names_by_id(names: Mapping[Any, str], source: str) -> list[str]:
    for key in names:
        if not (_is_integer(key) or (isinstance(key, str) and re.fullmatch(r"-?[0-9]{1,9}", key))):
            raise ValueError(f"{source}: ids must be integers, got {short_repr(key)}")
    by_id = {int(key): name for key, name in names.items()}
    if len(by_id) != len(names):
        raise ValueError(f"{source}: ids must be different, got {listed(map(repr, names), 10)}")
    if sorted(by_id) != list(range(len(by_id))):
        raise ValueError(f"{source}: ids must be 0..{len(by_id) - 1} without gaps, got {sorted(by_id)[:20]}")
    return [by_id[index] for index in range(len(by_id))]


def _check_palette(palette: Sequence[Sequence[int]], count: int, source: str) -> tuple[Color, ...]:
    if isinstance(palette, (str, bytes, Mapping)) or not isinstance(palette, Iterable):
        raise ValueError(f"{source}: palette must be a list of colours, got {short_repr(palette)}")
    colors = tuple(_check_color(color, f"palette[{index}]", source) for index, color in enumerate(palette))
    if len(colors) != count:
        raise ValueError(f"{source}: palette must have one colour per class, got {len(colors)} for {count} classes")
    return colors


def _check_color(color: Sequence[int], field: str, source: str) -> Color:
    parts = () if isinstance(color, (str, bytes, Mapping)) or not isinstance(color, Iterable) else tuple(color)
    if len(parts) != 3 or not all(_is_integer(value) and 0 <= value <= 255 for value in parts):
        raise ValueError(f"{source}: {field} must be three integers in 0..255, got {short_repr(color)}")
    red, green, blue = parts
    return int(red), int(green), int(blue)


def read_class_table(path: str | Path) -> ClassTable:
    """Read class names from a file.

    Args:
        path: `*.txt` with one name per line, or `*.json` holding `{"names": [...]}` (optionally `palette`,
            `ignore_index`, `ignore_color`, `mask_format`), a plain list of names, or a mapping from id to name
            (`id2label`). A list may begin with labelme's `__ignore__`, which is no class and takes no id.

    Raises:
        ValueError: The file cannot be read, or its contents do not fit together.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise ValueError(f"{path}: cannot read class names: there is no such file")
    if path.suffix == ".txt":
        text = read_text(path)
        try:
            return class_table_of(names_in_text(text), str(path))
        except ValueError as error:
            raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from None
    return class_table_of(read_json(path, (dict, list)), str(path))


def names_in_text(text: str) -> list[str]:
    """Return the names in a text, one a line; numbers before them are taken away where they are the ids.

    Raises:
        ValueError: The lines are numbered from 1.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    numbered = [re.fullmatch(r"([0-9]{1,5})\s*[:;,.\s]\s*(\S.*)", line) for line in lines]
    numbers = [int(found[1]) for found in numbered if found]
    if len(numbers) < max(len(lines), 2) or numbers not in ([*range(len(lines))], [*range(1, len(lines) + 1)]):
        return lines
    if numbers[0] == 1:
        raise ValueError(f"the first line has the id 0, lines must be numbered from 0 or not at all, got {lines[0]!r}")
    return [found[2] for found in numbered if found]


def class_table_of(content: Any, source: str) -> ClassTable:
    """Return the class table in the contents of a class file; see `read_class_table`.

    Args:
        content: A list of names, or an object of JSON.
        source: Where it comes from, for error messages.

    Raises:
        ValueError: The contents do not fit together.
    """
    if isinstance(content, dict) and "names" in content:
        known = ("palette", "ignore_index", "ignore_color")
        table = make_class_table(
            content["names"], **{key: content[key] for key in known if key in content}, source=source
        )
        return replace(
            table, mask_format=_check_mask_format(content.get("mask_format"), table.has_own_palette, source)
        )
    if isinstance(content, dict) and "id2label" in content:
        content = content["id2label"]
    if isinstance(content, list) and content and content[0] == IGNORE_NAME:
        content = content[1:]
    return make_class_table(content, source=source)


def _check_mask_format(mask_format: Any, has_own_palette: bool, source: str) -> str | None:
    if mask_format not in (None, "auto", *MASK_FORMATS):
        known = ", ".join(("auto", *MASK_FORMATS))
        raise ValueError(f"{source}: mask_format must be one of {known}, got {short_repr(mask_format)}")
    if mask_format == "rgb" and not has_own_palette:
        raise ValueError(f"{source}: mask_format 'rgb' needs a \"palette\" with one colour per class")
    return None if mask_format == "auto" else mask_format


def find_class_table(folder: str | Path) -> ClassTable:
    """Read the class file of a data set folder.

    Raises:
        ValueError: None of `CLASS_FILES` lies in `folder`.
    """
    for name in CLASS_FILES:
        if os.path.lexists(Path(folder) / name):
            return read_class_table(Path(folder) / name)
    raise ValueError(
        f'{folder}: no class names found; put a classes.json ({{"names": [...], "palette": [[r, g, b], ...]}}, '
        f"palette optional) or a classes.txt (one name per line, first line = id 0) there"
    )
