# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run says on its way: one line on a terminal, plain lines elsewhere, and all of it in a log file."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..texts import one_line

if TYPE_CHECKING:
    from .state import Progress

_BAR_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class ProgressLine:
    """Steps taken and to take, with what a person asks first: time left, pictures a second, loss, last and best mIoU.

    On a terminal that is one line, drawn anew with each step; elsewhere a plain line for each call of `show`. A file
    gets the plain lines in any case, each with its time, behind those of earlier parts of a resumed run.

    Args:
        progress: Of the run.
        max_steps: Steps to take.
        log_file: File to append to; None shows and writes nothing, as processes beside the main one do.
    """

    def __init__(self, progress: Progress, max_steps: int, log_file: Path | None):
        self.progress, self.max_steps, self.log_file = progress, max_steps, log_file
        self.first_step, self.started = progress.step, time.monotonic()
        self._bar: tqdm | None = None
        self._last: tuple[str, ...] = ()
        self._passed_over = len(progress.bad_samples)

    def __enter__(self) -> ProgressLine:
        hidden = None if self.log_file is not None else True  # None looks whether there is a terminal
        # No smoothing: what is left includes evaluations as often as there were some.
        shown: dict[str, Any] = {"unit": "step", "bar_format": _BAR_FORMAT, "dynamic_ncols": True, "smoothing": 0}
        self._bar = tqdm(total=self.max_steps, initial=self.first_step, disable=hidden, **shown)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @contextlib.contextmanager
    def logging_errors(self) -> Iterator[None]:
        """What ends the block, which goes on beyond the last step, is written to the log."""
        try:
            yield
        except BaseException as error:
            reason = " ".join([f"{type(error).__name__}:", *str(error).split()]).removesuffix(":")
            self.log(f"stopped after step {self.progress.step} by {reason}")
            raise

    def update(self) -> None:
        """Count a step."""
        if self._bar is not None:
            self._bar.update()

    def show(self, loss: float, learning_rate: float, images_per_second: float) -> None:
        """Show where the run is; also written to the log.

        Args:
            loss: Mean since the last call.
            learning_rate: Of the last step.
            images_per_second: Since the last call.
        """
        self._last = (f"{images_per_second:.1f} images/s", f"loss {loss:.4g}")
        self._refresh()
        line = [f"step {self.progress.step}/{self.max_steps}", f"{self.time_left()} left", *self._last]
        self._say(", ".join([*line, *scores_line(self.progress), f"lr {learning_rate:.2e}"]))

    def announce(self, text: str) -> None:
        """Show a line above the one that is drawn anew, and log it."""
        self._refresh()
        if self.log_file is not None:
            tqdm.write(text)
        self.log(text)

    def log(self, text: str) -> None:
        """Write a line to the log alone."""
        if self.log_file is not None:
            with open(self.log_file, "a", encoding="utf-8", errors="backslashreplace") as file:
                print(time.strftime("%Y-%m-%d %H:%M:%S"), one_line(text, 4000), file=file)

    def log_passed_over(self, bad_samples: Sequence[dict[str, Any]]) -> None:
        """Log the samples of a list that is longer than at the last call."""
        for sample in bad_samples[self._passed_over :]:
            self.log(f"passed over: {sample['reason']}")
        self._passed_over = len(bad_samples)

    def time_left(self) -> str:
        """Time for the steps that are left, at the pace since this part of the run began: hours:minutes:seconds."""
        done = self.progress.step - self.first_step
        if not done:
            return "?"
        elapsed = time.monotonic() - self.started
        return tqdm.format_interval(elapsed / done * (self.max_steps - self.progress.step))

    def _refresh(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join([*self._last, *scores_line(self.progress)]))

    def _say(self, text: str) -> None:
        if self._bar is not None and self._bar.disable and self.log_file is not None:
            print(text, flush=True)
        self.log(text)


@contextlib.contextmanager
def bars_on_terminals() -> Iterator[None]:
    """The bars of transformers and the Hub, too, are drawn on terminals only, while the block lasts."""
    hides = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hides:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hides:
            logging.enable_progress_bar()


def scores_line(progress: Progress) -> list[str]:
    """Last and best validation mIoU so far, in percent, if there were evaluations."""
    scores = [(entry["step"], score) for entry in progress.history if (score := _best_score(entry)) is not None]
    if not scores:
        return []
    last = next(entry["mean_iou"] for entry in reversed(progress.history) if entry.get("mean_iou") is not None)
    kept = getattr(progress, "best", None)
    step, best = (kept["step"], kept["mean_iou"]) if kept else max(scores, key=lambda pair: pair[1])
    return [f"mIoU {100 * last:.2f}", f"best {100 * best:.2f} at {step}"]


def _best_score(entry: dict[str, Any]) -> float | None:
    found = [entry.get(name) for name in ("mean_iou", "mean_iou_ema")]
    return max((score for score in found if score is not None and math.isfinite(score)), default=None)
