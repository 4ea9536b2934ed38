# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts, numbers and tables as HTML, in which a text from a file is never more than a text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from ..texts import NAME_LIMIT, TEXT_LIMIT, one_line


def plain(value: Any, limit: int = TEXT_LIMIT) -> str:
    """A value as text that shows as itself, in elements and in quoted attributes.

    Args:
        value: Anything; `str` of it is shown.
        limit: Columns at most.
    """
    return html.escape(one_line(value, limit), quote=True)


def name(value: Any) -> str:
    """A name, which may be cut off, with the whole of it where the pointer rests."""
    whole, short = plain(value, 1000), plain(value, NAME_LIMIT)
    return short if whole == short else f'<span title="{whole}">{short}</span>'


def percent(fraction: Any) -> str:
    """A fraction in percent; a dash where there is none."""
    return f"{100 * fraction:.2f}" if is_number(fraction) else "-"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that can be moved sideways where there is little room.

    Args:
        heads: HTML of the first row.
        rows: HTML of the cells; one that begins with `<td` or `<th` is taken as it is.
        kind: Class for the style sheet.
    """
    head = f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in heads)}</tr></thead>" if heads else ""
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def _cell(content: str) -> str:
    return content if content.startswith(("<td", "<th")) else f"<td>{content}</td>"


def pairs(values: Iterable[tuple[Any, Any]], limit: int = 400) -> str:
    """A table of names and values.

    Args:
        values: The pairs, as they are.
        limit: Columns of a value at most.
    """
    return table((), ((f"<th>{name(key)}</th>", f"<td>{plain(value, limit)}</td>") for key, value in values), "pairs")
