# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts from files and users on pages: on one line, bounded, inert as Markdown, and without paths of the machine.

Only what people read goes through here. config.json and metrics.json keep every name as it is.
"""

from __future__ import annotations

import os
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

NAME_LIMIT = 60  # columns of a name in a table
TEXT_LIMIT = 200  # columns of any other text
_JOINERS = "\u200c\u200d"  # needed to spell Persian and Indian languages, and in emoji
# What renderers look for once the markup is resolved, so that escapes do not help: addresses, mentions, formulas.
_ACTIVE = re.compile(r"//|@|\$|[\w-]\.[^\W\d]|:[\w+-]+:")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\|~\\")  # a drive, a share or the home; on POSIX all could be names
_MARKUP = re.compile(r"[!#&*+<>\[\\\]^`{|}~]|(?<![^\W_])_|_(?![^\W_])")

_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = _SHORT_REPR.maxlong = 60
_SHORT_REPR.maxlevel = 2


def one_line(text: Any, limit: int = TEXT_LIMIT) -> str:
    """Text for one line of a page: line breaks, control and bidirectional characters as escapes, the end cut off.

    Args:
        text: Anything; `str` of it is shown.
        limit: Columns at most, at least 3; East Asian wide characters take two.
    """
    parts = [_visible(char) for char in str(text)[: limit + 1]]
    if columns("".join(parts)) <= limit:
        return "".join(parts)
    width, count = 3, 0
    while (width := width + columns(parts[count])) <= limit:
        count += 1
    return "".join(parts[:count]) + "..."


def _visible(char: str) -> str:
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS
    return char.encode("unicode_escape").decode() if hidden else char


def columns(text: str) -> int:
    """Columns of a text in a fixed-width font."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def padded(text: str, width: int) -> str:
    """A text filled up with blanks to `width` columns."""
    return text + " " * (width - columns(text))


def short_repr(value: Any) -> str:
    """A value as error messages show it: one line, with the middle of long ones left out."""
    return one_line(_SHORT_REPR.repr(value))


def listed(names: Iterable[Any], limit: int = 20) -> str:
    """Names in a row, for messages; beyond `limit` only how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(one_line(name) for name in names[:limit]) + more


def markdown_text(text: Any, limit: int = TEXT_LIMIT) -> str:
    """Text that shows as itself within a heading, a paragraph or a `table_row` of a Markdown page.

    Args:
        text: Anything; `str` of it is shown.
        limit: Columns at most.
    """
    text = one_line(text, limit)
    if _ACTIVE.search(text):
        return code_span(text)
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def code_span(text: Any, limit: int = TEXT_LIMIT) -> str:
    """The same as code."""
    if not (text := one_line(text, limit)):
        return ""  # two backticks would open a span
    fence = "`" * _unused_run(text, start=1)
    return f"{fence} {text} {fence}" if len(fence) > 1 or text != text.strip() else f"{fence}{text}{fence}"


def table_row(cells: Iterable[str]) -> str:
    """Row of a Markdown table.

    Args:
        cells: Results of `markdown_text` and `code_span`, or Markdown of one's own.
    """
    # Tables are cut into cells before code is read; whether the backslash before "|" may be escaped differs.
    cells = [re.sub(r"\\(?=\|)", r"\\ ", cell).replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(cells)} |"


def without_code(markdown: str) -> str:
    """A Markdown page without blocks and spans of code, in which nothing is a link or a picture."""
    markdown = re.sub(r"^(`{3,})[^`\n]*\n.*?^\1`*\s*?$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown)


def fenced(text: str, language: str = "", limit: int = 2 * TEXT_LIMIT) -> str:
    """Lines of text as a block of code, which nothing in them can close.

    Args:
        text: The lines.
        language: What to highlight them as.
        limit: Columns of a line at most.
    """
    text = "\n".join(one_line(line, limit) for line in text.split("\n"))
    fence = "`" * _unused_run(text, start=3)
    return f"{fence}{language}\n{text}\n{fence}"


def _unused_run(text: str, start: int) -> int:
    """Length of a row of backticks longer than all in `text`, at least `start`."""
    return max([start, *(len(run) + 1 for run in re.findall("`+", text))])


def public_path(text: Any) -> str:
    """A path without what it says about the machine: from the working directory if below it, else its last name.

    Relative paths that stay below the working directory, Hub ids and any other texts are returned as they are.

    Args:
        text: Path, Hub id or another text.
    """
    text = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    path = text.removeprefix("file://")
    if os.name != "nt" and _WINDOWS.match(path):
        return _last_name(PureWindowsPath(path))
    if "://" in path or not (path != text or os.path.isabs(path) or path[:1] == "~" or ".." in Path(path).parts):
        return text
    place = Path(os.path.abspath(os.path.expanduser(path)))
    return place.relative_to(Path.cwd()).as_posix() if place.is_relative_to(Path.cwd()) else _last_name(place)


def _last_name(path: PurePath) -> str:
    home = path.parent.name in ("home", "Users") or path == Path.home()  # whose name is the user's
    return "~" if home else path.name or "."


def without_paths(value: Any, folders: Iterable[str | os.PathLike | None] = ()) -> Any:
    """A value of JSON in which every text has gone through `public_path`; keys stay.

    Args:
        value: Numbers, texts, paths, lists and dictionaries.
        folders: Folders whose paths are also cut out of the middle of texts, as are the working directory and home.
    """
    if isinstance(value, dict):
        return {key: without_paths(item, folders) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item, folders) for item in value]
    if not isinstance(value, (str, os.PathLike)):
        return value
    text = public_path(value)
    known = [os.path.abspath(folder) for folder in (*folders, ".", os.path.expanduser("~")) if folder]
    for folder in sorted({*known, *map(os.path.realpath, known)} - {os.sep}, key=len, reverse=True):
        text = text.replace(f"{folder}{os.sep}", "")
    return text
