# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What of a run its trackers, its line and its log are told."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..data.tolerance import listed_faults
from ..evaluation.pictures import ShownPicture, shown_pictures, tracked_pictures
from ..evaluation.protocols import Protocol
from ..reporting.versions import versions
from .progress_line import ProgressLine
from .run_lock import LOG_NAME
from .trackers import Trackers, tracked_scores

if TYPE_CHECKING:
    from .run import Run


def start_trackers(run: Run) -> Trackers:
    """The trackers that the flags name, told the settings; every process must make this call."""
    progress = run.progress
    is_over = progress.step >= run.recipe.max_steps and not progress.is_evaluated  # but for the last scores
    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for name, value in progress.settings.items()
    }
    return Trackers(run.accelerator, run.folder, plain, progress.step, progress.history, is_over)


def progress_line(run: Run) -> ProgressLine:
    """Steps taken and to take, shown and logged by the main process."""
    log_file = run.folder / LOG_NAME if run.accelerator.is_main_process else None
    return ProgressLine(run.progress, run.recipe.max_steps, log_file)


def log_start(run: Run) -> None:
    """Log what is run, by what, from which step on, and which pictures are left out of the data."""
    line, step, faults = run.line, run.progress.step, run.data.left_out
    command = shlex.join(map(str, run.command_line))
    line.log(f"{'resumed at step ' + str(step) if step else 'started'}: {command}".rstrip(": "))
    line.log(", ".join(f"{name} {version}" for name, version in versions().items()))
    if faults:
        for text in listed_faults(f"{len(faults)} with wrong annotations", faults).split("\n  "):
            line.log(f"left out: {text}")


def track(run: Run, metrics: Mapping[str, Any]) -> None:
    """Tell the trackers the scores of this step, and show them the same pictures each time; once a step."""
    trackers, step = run.trackers, run.progress.step
    if step == trackers.last_scored:
        return
    trackers.last_scored = step
    trackers.log(tracked_scores(metrics, run.data.class_names), step)
    if trackers.take_pictures:
        trackers.log_pictures(tracked_pictures(run_pictures(run), run.data.palette), step)


def run_pictures(run: Run) -> Iterator[ShownPicture]:
    """Six validation pictures as the model sees them now, by the run's protocol without test-time augmentation."""
    protocol = Protocol.named(run.recipe.protocol)
    return shown_pictures(run.model, run.image_processor, run.data, protocol)
