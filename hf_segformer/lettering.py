# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts from files and users in pictures: bounded, and in a font that has their characters, as far as there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from PIL import ImageFont

from .texts import columns, one_line, public_path

_NAME_LIMIT = 48  # columns of a class name beside an axis or a swatch
_TITLE_LIMIT = 160
_NO_CHARACTER = "\U0010ffff"  # never assigned, so every font draws its sign for missing ones


def plot_names(class_names: Sequence[str]) -> list[str]:
    """Class names for the axes of a plot, to be drawn with `parse_math=False`.

    Args:
        class_names: K names; those with characters that the fonts of matplotlib lack begin with their id.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in FontProperties().get_family()]

    def has(char: str) -> bool:
        return any(font.get_char_index(ord(char)) for font in fonts)

    return [_drawable(name, index, has) for index, name in enumerate(class_names)]


def _drawable(name: Any, index: int, has: Callable[[str], bool]) -> str:
    text = one_line(name, _NAME_LIMIT)
    shown = "".join(char if has(char) else "?" for char in text)
    return text if shown == text else f"{index}: {shown}"


def room_for(names: Sequence[str]) -> float:
    """Inches that the longest name of `plot_names` takes beyond what is usual."""
    return 0.07 * max(max(map(columns, names), default=0) - 20, 0)


def legend_text(name: str, index: int, size: int) -> tuple[str, Any]:
    """A class name for a legend, and the Pillow font that draws it.

    Args:
        name: The name; with characters that the font lacks it begins with its id.
        index: Its id.
        size: Height in pixels.
    """
    font = _font_for(one_line(name, _NAME_LIMIT), size)
    return _drawable(name, index, lambda char: _has(font, char)), font


def title_text(title: str, size: int) -> tuple[str, Any]:
    """A title without the folders of the machine, and the Pillow font that draws it."""
    text = one_line(public_path(title), _TITLE_LIMIT)
    return text, _font_for(text, size)


def shorten(text: str, font: Any, width: float) -> str:
    """Text that takes at most `width` pixels, its end cut off."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font_for(text: str, size: int) -> Any:
    font = _plain_font(size)
    return font if all(_has(font, char) for char in text) else _rich_font(size)


@lru_cache
def _plain_font(size: int) -> Any:
    """Pillow's own font, which has the letters of English and few others."""
    return ImageFont.load_default(size)


@lru_cache
def _rich_font(size: int) -> Any:
    """The font of matplotlib, where that is installed: European, Arabic and many other letters."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return _plain_font(size)
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


@lru_cache(maxsize=4096)
def _has(font: Any, char: str) -> bool:
    return char.isspace() or bytes(font.getmask(char)) != bytes(font.getmask(_NO_CHARACTER))
