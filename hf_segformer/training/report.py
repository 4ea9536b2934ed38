# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What the report of a training run shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.metrics import ConfusionMatrix
from ..reporting import Report, worst_pictures
from ..texts import without_paths

if TYPE_CHECKING:
    from .run import Run


def run_report(run: Run, matrix: ConfusionMatrix, metrics: dict[str, Any], pictures: Sequence[str]) -> Report:
    """The report of a run whose folder is written, without the machine's paths.

    Args:
        run: The run.
        matrix: Its last evaluation.
        metrics: What `collect_metrics` made of it.
        pictures: Files in its folder that are shown, relative to it.
    """
    args, data, progress = run.args, run.data, run.progress
    classes = ("class_names", "class_weight_values")  # which are long, and shown with the scores
    settings = {name: value for name, value in progress.settings.items() if name not in classes and value is not None}
    further = run.recipe.to_dict() | run.describe()
    settings |= {name: value for name, value in further.items() if name != "bad_samples"}
    private = {"folders": [args.data_root, args.data, args.output_dir]}
    return Report(
        title=f"{run.folder.resolve().name}: SegFormer-{run.recipe.variant.upper()} on {data.name}",
        metrics=metrics,
        matrix=matrix,
        class_names=data.class_names,
        palette=data.palette,
        history=progress.history,
        worst=worst_pictures(metrics, run.folder),
        pictures=[(Path(name).stem, run.folder / name) for name in pictures],
        bad_samples=without_paths(progress.bad_samples, **private),
        left_out=without_paths(left_out(run), **private),
        settings=without_paths(settings, **private),
        command_line=without_paths(list(run.command_line), **private),
    )


def left_out(run: Run) -> list[dict[str, str]]:
    """`annotation` and `reason` of the pictures that are in no split of the run's data set."""
    return [fault.within(run.args.data or "") for fault in run.data.left_out]
