# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Curves as SVG within HTML: lines take any width, texts keep their size, colours are those of the style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .markup import is_number, plain

_SIDE = 1000  # units of the drawing, both ways
_MOST_POINTS = 1200  # of a line; of more, the lowest and highest of each piece are drawn
_DOTS = 30  # points at most that are also marked


@dataclass
class Curve:
    """One line of a chart.

    Args:
        label: For the legend; a plain text.
        steps: (N,) where its points are.
        values: (N,) finite.
        style: Class for the style sheet: a, b or c, and `faint` or `dashed`.
    """

    label: str
    steps: np.ndarray
    values: np.ndarray
    style: str = "a"


def series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a key in a run's history, in the order of steps."""
    points = sorted((entry["step"], entry[key]) for entry in history if is_number(entry.get(key)))
    steps, values = np.array(points, float).reshape(-1, 2).T
    return steps, values


def chart(title: str, curves: Sequence[Curve], unit: str = "", top: float | None = None) -> str:
    """A chart of lines over the steps of a run, from 0 on; nothing where no line has a point.

    Args:
        title: A plain text.
        curves: The lines; each has its points in the order of steps.
        unit: Behind each number of the upright axis.
        top: Where the axis ends at least.
    """
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        return ""
    values = np.concatenate([curve.values for curve in curves])
    upright = _ticks(min(values.min(), 0), max(values.max(), top or -math.inf))
    level = _ticks(0, max(curve.steps.max() for curve in curves), whole=True)
    lines = "".join(_line(curve, level[-1], (upright[0], upright[-1])) for curve in curves)
    grid = "".join(f"M0 {_SIDE - _place(tick, upright)}H{_SIDE}" for tick in upright)
    ys = "".join(f'<span style="bottom:{_place(tick, upright) / 10}%">{tick:.10g}{unit}</span>' for tick in upright)
    xs = "".join(f'<span style="left:{_place(tick, level) / 10}%">{tick:,.0f}</span>' for tick in level)
    legend = "".join(
        f'<span class="key"><i class="{curve.style}"></i>{plain(curve.label)}</span>'
        for curve in curves
        if curve.label
    )
    return (
        f'<figure class="chart"><figcaption><b>{plain(title)}</b>{legend}</figcaption><div class="plot">'
        f'<div class="y">{ys}</div><svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{plain(title)}">'
        f'<path class="grid" d="{grid}"/>{lines}</svg><div class="x">{xs}</div></div></figure>'
    )


def _line(curve: Curve, last_step: float, ends: tuple[float, float]) -> str:
    steps, values = _thinned(curve.steps, curve.values)
    xs = (_SIDE * steps / last_step).round(1)
    ys = (_SIDE * (ends[1] - values) / (ends[1] - ends[0])).round(1)
    points = " ".join(f"{x:g},{y:g}" for x, y in zip(xs, ys, strict=True))
    line = f'<polyline class="{curve.style}" points="{points}"/>'
    if len(steps) > _DOTS or "faint" in curve.style or "dashed" in curve.style:
        return line
    # A stroke of no length has round ends, which stay round when the drawing is stretched.
    dots = (
        f'<path class="{curve.style} dot" d="M{x:g} {y:g}h0"><title>step {step:,.0f}: {value:.6g}</title></path>'
        for x, y, step, value in zip(xs, ys, steps, values, strict=True)
    )
    return line + "".join(dots)


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST_POINTS` points, with every peak: the lowest and the highest of each piece."""
    if len(steps) <= _MOST_POINTS:
        return steps, values
    kept = []
    for piece in np.array_split(np.arange(len(steps)), _MOST_POINTS // 2):
        kept += sorted({piece[values[piece].argmin()], piece[values[piece].argmax()]})
    return steps[kept], values[kept]


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers, at most seven, of which the first and the last enclose a range."""
    span = high - low if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    pitch = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 5 * 0.999)
    if whole:
        pitch = max(round(pitch), 1)
    first, last = math.floor(low / pitch + 1e-9), math.ceil((low + span) / pitch - 1e-9)
    return [index * pitch for index in range(first, last + 1)]


def _place(tick: float, ticks: Sequence[float]) -> float:
    return round(_SIDE * (tick - ticks[0]) / (ticks[-1] - ticks[0]), 1)
