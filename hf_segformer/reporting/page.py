# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The page itself. It holds no script, and its policy lets a browser load and run nothing."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.metric_values import check_class_names
from ..evaluation.metrics import ConfusionMatrix
from ..files import atomic_file
from ..visualization import smoothed
from .charts import Curve, chart, series
from .confusion import confusion_drawing, most_confused
from .embedding import figure
from .markup import is_number, name, pairs, percent, plain, table
from .style import CSS
from .versions import versions

REPORT_NAME = "report.html"
_MOST_ROWS = 1000  # classes in the table
_MOST_BAD_SAMPLES = 100
_OWN_COLUMNS = ("per_category_iou", "per_category_accuracy", "per_category_dice")
_COUNTS = {"step": "steps to these weights", "steps_taken": "steps taken", "images": "pictures", "seconds": "seconds"}
Picture = Image.Image | str | os.PathLike


@dataclass(kw_only=True)
class Report:
    """What a report shows; what is left out has no section.

    Args:
        title: Heading.
        metrics: What `ConfusionMatrix.compute` returned and more: `step`, `steps_taken`, `images`, `seconds`, and
            `base_lines`, each by its name with its `mean_iou`, and its `class` if it is always the same.
        matrix: The evaluation.
        class_names: K names.
        palette: (K, 3) RGB in 0..255.
        history: A run's logged values, see `hf_segformer.training.state.Progress`.
        worst: The pictures with the lowest scores, or their files, with a caption each.
        pictures: Other ones.
        bad_samples: Samples that were passed over, each with its `reason`.
        left_out: Pictures that are in no split for what is wrong with them: `annotation` and `reason` of each.
        settings: By their names.
        command_line: Words.
    """

    title: str
    metrics: Mapping[str, Any]
    matrix: ConfusionMatrix
    class_names: Sequence[str]
    palette: Any
    history: Sequence[Mapping[str, Any]] = ()
    worst: Iterable[tuple[str, Picture]] = ()
    pictures: Iterable[tuple[str, Picture]] = ()
    bad_samples: Sequence[Mapping[str, Any]] = ()
    left_out: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    command_line: Sequence[str] = ()


def write_report(report: Report, path: str | os.PathLike) -> None:
    """Write a report as one HTML file, whole or not at all.

    Args:
        report: What it shows.
        path: The file; its folder is created.

    Raises:
        ValueError: There is not one name for each class.
        OSError: A picture cannot be read, or the file not be written.
    """
    check_class_names(report.class_names, report.matrix.num_labels)
    matrix = report.matrix.matrix.cpu().numpy()
    sections = [
        ("Curves", _curves(report)),
        ("Base lines", _base_lines(report.metrics)),
        ("Classes", _classes(report, matrix)),
        ("Confusion", confusion_drawing(matrix, report.class_names)),
        ("Most confused", most_confused(matrix, report.class_names)),
        ("Worst pictures", _figures(report.worst)),
        ("Pictures", _figures(report.pictures)),
        ("Bad samples", _bad_samples(report.bad_samples)),
        ("Left out", _left_out(report.left_out)),
        ("Settings", pairs(report.settings.items()) if report.settings else ""),
        ("Command line", f"<pre>{plain(shlex.join(report.command_line), 4000)}</pre>" if report.command_line else ""),
        ("Versions", pairs(versions().items())),
    ]
    body = "\n".join(f"<section><h2>{title}</h2>\n{content}</section>" for title, content in sections if content)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        'style-src \'unsafe-inline\'"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{plain(report.title)}</title><style>{CSS}</style></head>\n<body>{_header(report)}\n{body}\n"
        "</body></html>\n"
    )
    with atomic_file(path) as file:
        file.write(page.encode())


def _header(report: Report) -> str:
    metrics = report.metrics
    tiles = [
        (f"{percent(metrics.get(key))} %", label)
        for key, label in (
            ("mean_iou", "mIoU"),
            ("mean_accuracy", "mean accuracy"),
            ("overall_accuracy", "pixel accuracy"),
            ("mean_dice", "mean Dice"),
            ("mean_boundary_iou", "boundary mIoU"),
            ("mean_iou_thin_classes", "mIoU of thin classes"),
            ("mean_picture_iou", "mean of pictures' mIoU"),
        )
        if is_number(metrics.get(key))
    ]
    tiles += [(f"{metrics[key]:,}", label) for key, label in _COUNTS.items() if is_number(metrics.get(key))]
    shown = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    written = f"hf_segformer, {time.strftime('%Y-%m-%d %H:%M')}"
    return f'<h1>{plain(report.title)}</h1><p class="muted">{written}</p><div class="tiles">{shown}</div>'


def _curves(report: Report) -> str:
    steps, losses = series(report.history, "loss")
    few = len(steps) <= 30
    loss = [Curve("loss" if few else "", steps, losses, "a" if few else "a faint")]
    if not few:
        loss.append(Curve("loss, smoothed", steps, smoothed(losses), "a"))
    scores = []
    for key, label, style in (("mean_iou", "mIoU", "b"), ("mean_iou_ema", "mIoU of averaged weights", "c")):
        steps, values = series(report.history, key)
        if len(steps):
            best = int(values.argmax())
            label = f"{label}, best {100 * values[best]:.2f} % at step {steps[best]:,.0f}"
            scores.append(Curve(label, steps, 100 * values, style))
    if scores:
        ends = np.array([0, scores[0].steps.max()])
        for label, score in base_lines(report.metrics):
            scores.append(Curve(f"{label}: {percent(score)} %", ends, np.full(2, 100 * score), "d dashed"))
    rates = [Curve("", *series(report.history, "learning_rate"), "c")]
    drawn = chart("Loss", loss), chart("Validation mIoU", scores, " %"), chart("Learning rate", rates)
    return f'<div class="grid">{"".join(drawn)}</div>' if any(drawn) else ""


def base_lines(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Name and mIoU of each base line, where metrics hold some."""
    found = []
    for kind, scores in (metrics.get("base_lines") or {}).items():
        if isinstance(scores, Mapping) and is_number(scores.get("mean_iou")):
            label = f"always {scores['class']}" if "class" in scores else str(kind).replace("_", " ")
            found.append((label, float(scores["mean_iou"])))
    return found


def _base_lines(metrics: Mapping[str, Any]) -> str:
    found = base_lines(metrics)
    rows = [(name(label), f"{percent(score)} %") for label, score in [*found, ("this model", metrics.get("mean_iou"))]]
    return table(("", "mIoU"), rows) if found else ""


def _classes(report: Report, matrix: np.ndarray) -> str:
    scores, pixels = report.matrix.compute(dice=True), matrix.sum(1)
    further = [
        key
        for key, values in report.metrics.items()
        if key.startswith("per_category_") and key not in _OWN_COLUMNS and len(values) == len(matrix)
    ]
    heads = ["class", "IoU %", "accuracy %", "Dice %", *(_label(key) for key in further), "pixels", "share %"]
    rows = []
    for index, label in enumerate(report.class_names[:_MOST_ROWS]):
        red, green, blue = (int(value) for value in report.palette[index])
        swatch = f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'
        iou, *others = (scores[key][index] for key in _OWN_COLUMNS)
        others += [report.metrics[key][index] for key in further]
        share = percent(pixels[index] / max(pixels.sum(), 1))
        bar = f'<td class="bar" style="--share:{100 * iou if is_number(iou) else 0:.1f}%">{percent(iou)}</td>'
        rows.append([f"{swatch}{name(label)}", bar, *map(percent, others), f"{pixels[index]:,}", share])
    means = [scores["mean_iou"], scores["mean_accuracy"], scores["mean_dice"]]
    means += [report.metrics.get(key.replace("per_category_", "mean_")) for key in further]
    rows.append(["<th><b>mean</b></th>", *(f"<b>{percent(mean)}</b>" for mean in means), f"{pixels.sum():,}", ""])
    more = len(matrix) - _MOST_ROWS
    note = f"<p>The first {_MOST_ROWS:,} classes; {more:,} more are in metrics.json.</p>" if more > 0 else ""
    return f"{_extremes(scores['per_category_iou'], report.class_names)}{note}{table(heads, rows, 'figures')}"


def _label(key: str) -> str:
    return plain(key.removeprefix("per_category_").replace("_", " ").replace("iou", "IoU")) + " %"


def _extremes(ious: Sequence[float], class_names: Sequence[str]) -> str:
    """The classes to look at first, and those of which there is nothing to see."""
    order = sorted((index for index, iou in enumerate(ious) if is_number(iou)), key=lambda index: ious[index])
    texts = []
    if len(order) > 5:
        lowest = ", ".join(f"{name(class_names[index])} {percent(ious[index])}" for index in order[:5])
        texts.append(f"<p>Lowest: {lowest}.</p>")
    if absent := len(ious) - len(order):
        texts.append(f"<p>{absent:,} of {len(ious):,} classes occur neither in the truth nor in the predictions.</p>")
    return "".join(texts)


def _figures(pictures: Iterable[tuple[str, Picture]]) -> str:
    drawn = "".join(figure(picture, caption) for caption, picture in pictures)
    return f'<div class="grid">{drawn}</div>' if drawn else ""


def _bad_samples(bad_samples: Sequence[Mapping[str, Any]]) -> str:
    reasons = list(dict.fromkeys(str(sample.get("reason", sample)) for sample in bad_samples))
    return _reasons(f"{len(reasons):,} passed over, and others taken in their place.", reasons)


def _left_out(left_out: Sequence[Mapping[str, Any]]) -> str:
    reasons = [f"{fault['annotation']}: {fault['reason']}" for fault in left_out]
    head = f"{len(reasons):,} wrong annotations; their pictures are in no split."
    return _reasons("1 wrong annotation; its picture is in no split." if len(reasons) == 1 else head, reasons)


def _reasons(head: str, reasons: Sequence[str]) -> str:
    if not reasons:
        return ""
    items = "".join(f"<li>{plain(reason, 400)}</li>" for reason in reasons[:_MOST_BAD_SAMPLES])
    more = f" The first {_MOST_BAD_SAMPLES}:" if len(reasons) > _MOST_BAD_SAMPLES else ""
    return f"<p>{head}{more}</p><ul>{items}</ul>"


def worst_pictures(metrics: Mapping[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """Caption and file of the pictures with the lowest scores, as far as they are drawn.

    Args:
        metrics: `worst` lists them, each with its `file_name`, its `mean_iou` and the picture's file, its `panel`.
        folder: What the files are relative to.
    """
    listed = [(one, folder / one["panel"]) for one in metrics.get("worst") or () if "panel" in one]
    return [(f"{one['file_name']}: mIoU {percent(one['mean_iou'])} %", path) for one, path in listed if path.is_file()]
