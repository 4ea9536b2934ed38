# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Resumable training state: small, and on disk either whole or not at all.

A run is a function of (seed, step): data order, augmentation, dropout and learning rate follow from the step. So the
state is weights, optimizer, loss scaler, the step and what was logged.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator

_PREFIX = "step-"


@dataclass
class Progress:
    """What a run has done so far.

    Args:
        step: Optimizer steps taken.
        history: Logged values, one dict a log entry with the keys `step`, `loss`, `learning_rate` or `mean_iou`.
        settings: Arguments that determine the run; a resumed run must have the same.
    """

    step: int = 0
    history: list[dict] = field(default_factory=list)
    settings: dict = field(default_factory=dict)


def step_seed(seed: int, step: int, micro_step: int = 0, rank: int = 0) -> int:
    """Seed of the random numbers drawn in one micro-step of one process, in [0, 2**63)."""
    return int(np.random.SeedSequence([seed, step, micro_step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def new_run_folder(output_dir: str | None, default: str, resume: bool, accelerator: Accelerator) -> str:
    """Choose a folder that holds nothing yet, or with `resume` the one that holds the run.

    Args:
        output_dir: The folder that was asked for.
        default: Folder to take otherwise; a number is appended to it as long as it is occupied.
        resume: Whether to go on with the run in it.
        accelerator: The main process chooses for all; every process must make this call.

    Raises:
        ValueError: `output_dir` is occupied, or holds nothing to resume.
    """
    from accelerate.utils import broadcast_object_list

    chosen = [output_dir, None]
    if accelerator.is_main_process:
        folder = Path(output_dir or default)
        occupied = folder.is_dir() and any(folder.iterdir())
        number = 2
        while occupied and not resume and output_dir is None:
            folder = folder.with_name(f"{Path(default).name}.{number}")
            occupied = folder.is_dir() and any(folder.iterdir())
            number += 1
        chosen = [str(folder) if resume or not occupied else None, str(folder)]
    chosen = broadcast_object_list(chosen)
    if chosen[0] is None:
        raise ValueError(
            f"output_dir must be new or empty, got {chosen[1]!r}: add --resume to go on with the run in it, or choose "
            "another"
        )
    if resume and latest_state(Path(chosen[0]) / "states") is None:
        raise ValueError(f"output_dir {chosen[0]!r} holds no saved state to resume; start the run without --resume")
    return chosen[0]


def save_state(
    folder: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    scaler: torch.amp.GradScaler | None = None,
    keep: int = 2,
) -> Path:
    """Write `folder/step-N`, then drop all but the newest `keep` states. Call it in one process only.

    The files are written to a temporary folder and flushed to disk before that folder gets its name, so a run killed
    at any moment leaves its last complete state.

    Args:
        folder: Where states are kept; created if missing.
        model: Unwrapped model.
        optimizer: Unwrapped optimizer.
        progress: Step and logged values.
        scaler: Loss scaler of fp16 training.
        keep: Number of states to keep, at least 1.

    Returns:
        The folder written.
    """
    final = Path(folder) / f"{_PREFIX}{progress.step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, temporary / "model.safetensors")
    state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None}
    torch.save(state, temporary / "optimizer.pt")
    (temporary / "progress.json").write_text(json.dumps(vars(progress)))
    for path in [*temporary.iterdir(), temporary]:
        _flush(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _flush(final.parent)
    for old in sorted(final.parent.glob(f"{_PREFIX}*"))[: -max(keep, 1)]:
        shutil.rmtree(old)
    return final


def latest_state(folder: str | os.PathLike) -> Path | None:
    """Newest complete state in `folder`, or None."""
    states = sorted(Path(folder).glob(f"{_PREFIX}*"))
    return states[-1] if states else None


def load_state(
    path: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict,
    scaler: torch.amp.GradScaler | None = None,
) -> Progress:
    """Restore what `save_state` wrote into `model`, `optimizer` and `scaler`.

    Args:
        path: A folder returned by `save_state` or `latest_state`.
        model: Unwrapped model.
        optimizer: Unwrapped optimizer.
        settings: Settings of the run to be resumed.
        scaler: Loss scaler of fp16 training.

    Returns:
        The progress of the interrupted run.

    Raises:
        ValueError: `settings` differ from those of the interrupted run; names each difference.
    """
    path = Path(path)
    progress = Progress(**json.loads((path / "progress.json").read_text()))
    settings = json.loads(json.dumps(settings))
    differing = [name for name in settings if settings[name] != progress.settings.get(name)]
    if differing:
        changes = ", ".join(f"{name}={settings[name]!r} (was {progress.settings.get(name)!r})" for name in differing)
        raise ValueError(f"cannot resume {path} with other settings: {changes}")
    model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors"))
    state = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return progress


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
