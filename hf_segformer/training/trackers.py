# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: Accelerate's, told of settings, losses, scores and six pictures, once of each step."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import atomic_file
from ..texts import one_line
from .wandb_log import last_logged_step

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "segformer"
RUN_IDS = "trackers.json"  # in the run's folder: what a tracker's service calls the run
_WITH_PICTURES = ("tensorboard", "wandb")
_RUN_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_TRACKIO = (
    "; its versions up to 0.43 at least want Pillow below 13, which pip then puts in the place of a newer one: "
    "Pillow 11 and 12 do here too"
)


def tracker_names(report_to: str | None) -> list[str]:
    """The trackers that a flag names, each once.

    Args:
        report_to: Names separated by commas; `all` are those installed, and `none` is none.

    Raises:
        ValueError: A name is unknown, which lists the known ones, or its package is not installed, which says what to
            install.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if report_to is None or report_to.strip() == "none":
        return []
    names, known = [name.strip() for name in report_to.split(",")], sorted(map(str, LOGGER_TYPE_TO_CLASS))
    for name in names:
        if name not in (*known, "all"):
            close = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"report_to must be none, all, or trackers separated by commas, of {', '.join(known)}; "
                f"got {name!r:.100}{hint}"
            )
    # Classes that the user's own code has registered need no package.
    installed = {str(name) for name in get_available_trackers()} | (set(known) - set(LoggerType.list()))
    for name in names:
        if name not in installed and name != "all":
            raise ValueError(f"report_to {name} is not installed: pip install {name}{_TRACKIO * (name == 'trackio')}")
    if "all" in names and not installed:
        raise ValueError(f"report_to all finds no tracker installed: pip install one of {', '.join(known)}")
    return list(dict.fromkeys(names))


class Trackers:
    """What the trackers of a run are told; the main process tells them.

    A resumed run goes on in the same run of tensorboard, which hides what was told of the steps that are taken anew,
    and of wandb, which is not told twice. The other trackers begin a run of their own. As a context, it ends their
    runs when an error ends this one.

    Args:
        accelerator: Made with `log_with`. Every process must make this call.
        folder: The run's folder; wandb's id of the run is kept in it.
        config: Settings of the run, plain values.
        step: Steps taken so far; 0 is a new run.
        history: What was logged up to there.
        is_over: Whether all steps are taken, and the last one's scores are told anew.

    Raises:
        ValueError: A tracker cannot start, or the id that was kept is damaged. Raised in all processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        config: Mapping[str, Any],
        step: int = 0,
        history: Sequence[Mapping[str, Any]] = (),
        is_over: bool = False,
    ):
        self.accelerator, self._told_before = accelerator, {"wandb": -1}
        self.last_scored = -1  # the last step whose scores were told
        if not accelerator.log_with:
            return
        from accelerate.utils import broadcast_object_list

        refusal: list[str | None] = [None]
        if accelerator.is_main_process:
            outside: tuple[type[BaseException], ...] = (ImportError, *_wandb_errors(self.names))
            before = set(os.listdir(folder)) if folder.is_dir() else set()
            try:
                self._start(folder, config, step, is_over)
                self._catch_up(folder, step, history, is_over)
            except outside as error:
                refusal = [f"report_to {','.join(self.names)} cannot start: {error}"]
                if not step:  # so that the same command can be given again
                    _remove_others(folder, before)
            except ValueError as error:  # of the id
                refusal = [str(error)]
        broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise ValueError(refusal[0])

    @property
    def names(self) -> list[str]:
        """Which trackers there are."""
        return [str(getattr(name, "value", name)) for name in self.accelerator.log_with]

    @property
    def take_pictures(self) -> bool:
        """Whether one of them, of this process, shows pictures."""
        return any(tracker.name in _WITH_PICTURES for tracker in self.accelerator.trackers)

    def _start(self, folder: Path, config: Mapping[str, Any], step: int, is_over: bool) -> None:
        options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": step + (not is_over)} if step else {}}
        project = PROJECT
        if "wandb" in self.names:
            options["wandb"] = {
                "dir": str(folder),
                "name": folder.resolve().name,
                "resume": "allow",
                "id": run_id(folder),
            }
            project = os.environ.get("WANDB_PROJECT") or PROJECT
        self.accelerator.init_trackers(project, init_kwargs=options)
        for tracker in self.accelerator.trackers:
            # The settings of tensorboard are a run of their own beside the run.
            if not (tracker.name == "tensorboard" and step):
                tracker.store_init_configuration(dict(config))

    def _catch_up(self, folder: Path, step: int, history: Sequence[Mapping[str, Any]], is_over: bool) -> None:
        """Tell a resumed run's trackers what they lost: wandb when the run was killed, tensorboard just now."""
        if not step:
            return
        if "wandb" in self.names:
            run = self.accelerator.get_tracker("wandb", unwrap=True)
            self._told_before["wandb"] = _told_to_wandb(run, folder)
        for entry in history:
            values = {name: value for name, value in entry.items() if name != "step" and value is not None}
            self.log(values, entry["step"], only="wandb")
            if is_over and entry["step"] == step and "loss" in values:
                self.log(values, step, only="tensorboard")

    def log(self, values: Mapping[str, float], step: int, only: str | None = None) -> None:
        """Tell numbers of a step, in the order of steps.

        Args:
            values: By their names; those that are not finite are left out.
            step: Optimizer steps taken.
            only: Name of the one tracker to tell.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for tracker in self._trackers_at(step):
            if only in (None, tracker.name):
                tracker.log(finite, step=step)

    def log_pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Show pictures, uint8 (H, W, 3), by their names, where that can be done."""
        for tracker in self._trackers_at(step):
            if tracker.name not in _WITH_PICTURES:
                continue
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            for name, picture in pictures.items():
                tracker.log_images({name: picture[None]}, step=step, **options)

    def _trackers_at(self, step: int) -> list[Any]:
        return [one for one in self.accelerator.trackers if step > self._told_before.get(one.name, -1)]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for tracker in self.accelerator.trackers if kind is not None else ():
            if tracker.name == "wandb":
                tracker.run.finish(exit_code=1)
            else:
                tracker.finish()


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove what lies in a folder but for those names."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in names:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _wandb_errors(names: Sequence[str]) -> tuple[type[BaseException], ...]:
    """No network, no account, and the like."""
    if "wandb" not in names:
        return ()
    import wandb

    return (wandb.Error,)


def run_id(folder: Path) -> str:
    """Id of the folder's run at wandb: the one kept there, or a new one, which is kept.

    Raises:
        ValueError: What is kept is none.
    """
    path = folder / RUN_IDS
    if path.exists():
        try:
            kept = json.loads(path.read_bytes())["wandb"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: remove it to begin a new run at wandb ({error!r:.100})") from error
        if not isinstance(kept, str) or not _RUN_ID.fullmatch(kept):
            raise ValueError(f"{path}: wandb must be an id of letters, digits, - and _, got {kept!r:.100}")
        return kept
    new = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:16]
    with atomic_file(path) as file:
        file.write(json.dumps({"wandb": new}).encode() + b"\n")
    return new


def _told_to_wandb(run: Any, folder: Path) -> int:
    """The last step that wandb has of a resumed run: its server knows, or without network the run's files."""
    return last_logged_step(folder / "wandb", run.id) if run.offline else run.step - 1


def tracked_scores(metrics: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, float]:
    """Scores for trackers: the means, and `iou/NAME` for each class that has one.

    Args:
        metrics: What `ConfusionMatrix.compute` returned, and more.
        class_names: K names.
    """
    means = {
        name: value
        for name, value in metrics.items()
        if name.startswith(("mean_", "overall_")) and isinstance(value, float)
    }
    ious = zip(score_names(class_names), metrics["per_category_iou"], strict=True)
    return means | {f"iou/{name}": value for name, value in ious}


def score_names(class_names: Sequence[str]) -> list[str]:
    """Names of classes of which trackers, which know letters, digits, - and _, make no two the same."""
    plain = [re.sub(r"[^\w-]", "_", one_line(name, 60)) for name in class_names]
    lower = [name.lower() for name in plain]  # wandb's charts and files on some disks do not tell cases apart
    return [f"{index}_{name}" if lower.count(name.lower()) > 1 else name for index, name in enumerate(plain)]
