# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Robustness to image corruptions: what is evaluated, averaged and reported, as in Cityscapes-C.

Source: section 4.4 of the SegFormer paper (arXiv 2105.15203), whose averages take the first three severities of noise
and all five of the other corruptions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..texts import markdown_text, one_line, table_row
from ..visualization import new_figure, save_figure

Scores = Mapping[str, Mapping[int, float]]  # mIoU by corruption and severity


@dataclass(frozen=True)
class Corruption:
    """A corruption as `change_image` of `hf_segformer.evaluation.loop`; each image has draws of its own.

    Attributes:
        name: One of `hf_segformer.data.corruptions.CORRUPTIONS`.
        severity: 1 to 5.
        frost_textures: Folder with photographs of frost; None draws it.
    """

    name: str
    severity: int
    frost_textures: str | None = None

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        from ..data.corruptions import corrupt

        return corrupt(image, self.name, self.severity, seed=index, frost_textures=self.frost_textures)


def chosen_corruptions(name: str, severity: str, frost_textures: str | None = None) -> list[Corruption]:
    """Corruptions to evaluate.

    Args:
        name: One of them, or "all".
        severity: "1" to "5", or "all": those over which the paper averages.
        frost_textures: Folder with photographs of frost; None draws it.

    Raises:
        ValueError: The name or the severity is unknown.
    """
    from ..data.corruptions import CORRUPTIONS

    if name != "all" and name not in CORRUPTIONS:
        raise ValueError(f"corruption must be all or one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity != "all" and severity not in tuple("12345"):
        raise ValueError(f"severity must be all or 1 to 5, got {severity!r}")
    return [
        Corruption(chosen, level, frost_textures)
        for chosen in (CORRUPTIONS if name == "all" else [name])
        for level in (range(1, CORRUPTIONS[chosen] + 1) if severity == "all" else [int(severity)])
    ]


def average_scores(scores: Scores) -> dict[str, float]:
    """Mean over the severities of each corruption, and over the corruptions under "mean"."""
    means = {name: float(np.mean(list(levels.values()))) for name, levels in scores.items()}
    return means | {"mean": float(np.mean(list(means.values())))}


def robustness_table(clean: float, scores: Scores) -> str:
    """Results as a table in Markdown, in percent.

    Args:
        clean: mIoU without corruption, a fraction.
        scores: mIoU by corruption and severity, fractions.
    """
    levels = sorted({level for row in scores.values() for level in row})
    means = average_scores(scores)
    header = ["corruption", *(f"severity {level}" for level in levels), "mean", "of clean"]
    rows = [["none", *("" for _ in levels), _percent(clean), _percent(1.0)]]
    for name, row in scores.items():
        cells = [_percent(row[level]) if level in row else "" for level in levels]
        rows.append([markdown_text(name), *cells, _percent(means[name]), _share(means[name], clean)])
    rows.append(["**mean**", *("" for _ in levels), _percent(means["mean"]), _share(means["mean"], clean)])
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(map(table_row, lines))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _share(score: float, clean: float) -> str:
    return _percent(score / clean) if clean > 0 else "-"


def robustness_plot(clean: float, scores: Scores, path: str | os.PathLike) -> None:
    """Plot mIoU over the severities of each corruption.

    Args:
        clean: mIoU without corruption, a fraction; drawn as severity 0.
        scores: mIoU by corruption and severity, fractions.
        path: File to write, PNG unless its suffix names another format; its folder is created.
    """
    columns = min(len(scores), 4)
    rows = -(-len(scores) // columns)
    figure = new_figure(1.2 + 2.4 * columns, 0.8 + 2.1 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(scores) :]:
        axes.set_visible(False)
    for axes, (name, levels) in zip(grid.flat, scores.items(), strict=False):
        points = {0: clean, **levels}
        axes.plot(list(points), [100 * value for value in points.values()], marker="o", markersize=3)
        axes.set_title(one_line(name.replace("_", " "), 40), fontsize=10, parse_math=False)
        axes.set_ylim(0, None)
        axes.set_xlim(-0.2, 5.2)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("severity (0: clean)", fontsize=10)
    figure.supylabel("mIoU (%)", fontsize=10)
    save_figure(figure, path)
