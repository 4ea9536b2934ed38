# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Resumable training state: small, on disk either whole or not at all, and read back only if it is what was written.

A run is a function of (seed, step): data order, augmentation, dropout and learning rate follow from the step. So the
state is weights, optimizer, loss scaler, the step, and what was logged and skipped; the best weights so far and the
average of the weights, where there are any.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from ..checkpoints.files import read_pickle
from ..files import fsync_path, replace_path
from .finite import non_finite, optimizer_tensors
from .progress import Progress
from .run_lock import FolderInUse, RunLock, is_occupied

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim.swa_utils import AveragedModel

# Version 0.1 wrote format 1, which has no checksums; format 2 knows no best weights and no average.
_FORMAT = 3
_WITH_CHECKSUMS = 2
_STATE_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY_NAME = re.compile(r"\.(step-\d{8,}\.tmp|(new|old)-step-\d{8,}-[0-9a-f]{32})")
_FILES = ("model.safetensors", "optimizer.pt", "progress.json")
_BEST, _AVERAGE = "best.safetensors", "ema.safetensors"
_OPTIONAL_FILES = (_BEST, _AVERAGE)
_CHECKSUMS = "checksums.json"
_Tensors: TypeAlias = dict[str, torch.Tensor]
# Settings that decide which parameters there are and which of them the optimizer knows.
_FIXED = ("freeze", "lora", "lora_targets")
# What states of format 2, which do not name these settings, were trained with.
_BEFORE = dict.fromkeys(("epochs", "max_grad_norm", "ema", "lora_alpha", "patience", *_FIXED)) | {"min_delta": 0.0}


# ---- the folder of a run


@contextlib.contextmanager
def run_folder(
    output_dir: str | None, default: str, resume: bool, accelerator: Accelerator, take_over: bool = False
) -> Iterator[str]:
    """Choose a folder that holds nothing yet, or with `resume` the one that holds the run, and keep other runs out.

    The folder is locked until the block ends, see `RunLock`; it is removed again if nothing was put into it.

    Args:
        output_dir: The folder that was asked for.
        default: Folder to take otherwise; a number is appended to it as long as it is occupied or in use.
        resume: Whether to go on with the run in it.
        accelerator: The main process chooses for all; every process must make this call.
        take_over: See `RunLock`.

    Yields:
        The folder.

    Raises:
        ValueError: `output_dir` is occupied, in use, cannot be written to, or holds nothing to resume. Raised in all
            processes.
    """
    from accelerate.utils import broadcast_object_list

    lock: RunLock | None = None
    chosen: list[str | None] = [None, None]
    if accelerator.is_main_process:
        try:
            lock = _claim(output_dir, default, resume, take_over)
            chosen = [str(lock.folder), None]
        except ValueError as error:
            chosen = [None, str(error)]
        except OSError as error:
            chosen = [None, f"output_dir {output_dir or default} cannot be used: {error}"]
    folder, refusal = broadcast_object_list(chosen)
    if refusal is not None:
        raise ValueError(refusal)
    try:
        yield folder
    finally:
        if lock is not None:
            lock.release()


def _claim(output_dir: str | None, default: str, resume: bool, take_over: bool) -> RunLock:
    folder, number = Path(output_dir or default), 2
    has_states = bool(_candidates(folder / "states"))
    if resume and not has_states:
        where = ", in a new or empty folder" if folder.is_dir() and is_occupied(folder) else ""
        raise ValueError(
            f"output_dir {str(folder)!r} holds no saved state to resume; start the run without --resume{where}"
        )
    while True:
        try:
            lock = RunLock(folder, take_over)
        except FolderInUse:
            if output_dir is not None or resume:
                raise
        else:
            if resume or not is_occupied(folder):
                return lock
            lock.release()
            if output_dir is not None:
                advice = "add --resume to go on with the run in it, or choose another"
                if not has_states:
                    advice = "it holds no saved state that a run could go on from; empty it, or choose another"
                raise ValueError(f"output_dir must be new or empty, got {output_dir!r}: {advice}")
        folder, number = folder.with_name(f"{Path(default).name}.{number}"), number + 1


# ---- write


def save_state(
    folder: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    scaler: torch.amp.GradScaler | None = None,
    keep: int = 2,
    *,
    average: AveragedModel | None = None,
    best: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write `folder/step-N`, then drop all but the newest `keep` states up to it. Call it in one process only.

    The files and their checksums are written to a temporary folder and flushed to disk before that folder gets its
    name, so a run killed at any moment leaves its last complete state. What else lies in the folder is left alone.

    Args:
        folder: Where states are kept; created if missing.
        model: Unwrapped model.
        optimizer: Unwrapped optimizer.
        progress: Step and logged values.
        scaler: Loss scaler of fp16 training.
        keep: Number of states to keep, at least 1.
        average: Average of the weights.
        best: The weights that `progress.best` speaks of.

    Returns:
        The folder written.

    Raises:
        FloatingPointError: A weight, a statistic or the optimizer is not finite; nothing was written.
        OSError: The files could not be written; the states before are still there.
    """
    folder = Path(folder)
    files = _weights_by_file(model, average, best)
    named = {f"{name} in {file}": tensor for file in files for name, tensor in files[file].items()}
    if wrong := non_finite(named | optimizer_tensors(model, optimizer)):
        raise FloatingPointError(f"state of step {progress.step} not saved: {wrong[0]} is not finite")
    final = folder / f"step-{progress.step:08d}"
    temporary = folder / f".new-{final.name}-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        for name, weights in files.items():
            safetensors.torch.save_file(weights, temporary / name)
        state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None}
        torch.save(state, temporary / "optimizer.pt")
        _write_json(temporary / "progress.json", vars(progress) | {"format": _FORMAT})
        _seal(temporary)
        _put_in_place(temporary, final)
    # PyTorch reports a full disk as RuntimeError, safetensors as an error of its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(f"{final}: cannot write the state: {error}; the states before it are kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _drop_old(folder, progress.step, keep)
    return final


def _weights_by_file(model: nn.Module, average: AveragedModel | None, best: _Tensors | None) -> dict[str, _Tensors]:
    found: dict[str, _Tensors | None] = {
        "model.safetensors": model.state_dict(),
        _AVERAGE: None if average is None else average.state_dict(),
        _BEST: best,
    }
    present = {file: weights for file, weights in found.items() if weights is not None}
    return {file: {name: tensor.contiguous() for name, tensor in present[file].items()} for file in present}


def _drop_old(folder: Path, step: int, keep: int) -> None:
    """Later states, from before the run went back to an older one, neither count nor go."""
    for _, old in [found for found in _candidates(folder) if found[0] <= step][max(keep, 1) :]:
        shutil.rmtree(old, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Write the checksums of all files, and flush everything to disk."""
    _write_json(folder / _CHECKSUMS, {path.name: _sha256(path) for path in sorted(folder.iterdir())})
    for path in [*folder.iterdir(), folder]:
        fsync_path(path)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename; a folder of that name, from before an interruption, goes only when the new one is there."""
    old = final.with_name(f".old-{final.name}-{uuid.uuid4().hex}")
    if final.exists():
        replace_path(final, old)
    replace_path(temporary, final)
    fsync_path(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    for entry in folder.iterdir():
        if _TEMPORARY_NAME.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- read


@dataclass(frozen=True)
class FoundState:
    """Which of the saved states to go on from.

    Attributes:
        path: The newest one that verifies, or None.
        passed_over: What is wrong with the newer ones, one message each.
        damaged: Their folders.
    """

    path: Path | None
    passed_over: tuple[str, ...]
    damaged: tuple[Path, ...] = ()

    def set_aside(self) -> None:
        """Rename what was passed over, so that it neither counts as a state nor is lost."""
        for path in self.damaged:
            replace_path(path, path.with_name(f"damaged-{path.name}-{uuid.uuid4().hex[:8]}"))


def find_state(folder: str | os.PathLike) -> FoundState:
    """Newest state in `folder` that is complete, has its checksums and holds finite numbers only.

    Names other than `step-N` are not looked at. States of version 0.1, which have no checksums, are read to their end.

    Args:
        folder: Where `save_state` keeps states.

    Raises:
        OSError: A file could not be read for reasons of the disk or network: that is no damage.
    """
    passed_over: list[str] = []
    damaged: list[Path] = []
    for _, path in _candidates(Path(folder)):
        try:
            _read_state(path)
            return FoundState(path, tuple(passed_over), tuple(damaged))
        except ValueError as error:
            passed_over.append(str(error))
            damaged.append(path)
    return FoundState(None, tuple(passed_over), tuple(damaged))


def latest_state(folder: str | os.PathLike) -> Path | None:
    """Newest state in `folder` that verifies, or None; see `find_state`."""
    return find_state(folder).path


def load_state(
    path: str | os.PathLike,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict,
    scaler: torch.amp.GradScaler | None = None,
    allow_changes: bool = False,
    average: AveragedModel | None = None,
) -> Progress:
    """Restore what `save_state` wrote into `model`, `optimizer`, `scaler` and `average`; see `load_best` for the rest.

    Args:
        path: A folder returned by `save_state` or `find_state`.
        model: Unwrapped model.
        optimizer: Unwrapped optimizer.
        settings: Settings of the run to be resumed.
        scaler: Loss scaler of fp16 training.
        allow_changes: Whether settings may differ. Differences are listed in the progress, and the optimizer keeps
            its own learning rates and weight decay.
        average: Average of the weights; it begins with those of a state that has none.

    Returns:
        The progress of the interrupted run, with the new settings.

    Raises:
        ValueError: `settings` differ from those of the interrupted run, which names each difference; or the state is
            damaged, or that of another model.
    """
    path = Path(path)
    weights, state, progress, has_checksums, averaged = _read_state(path)
    if not has_checksums:
        warnings.warn(f"{path} was written by version 0.1, without checksums: damage would not be seen", stacklevel=2)
    settings = json.loads(json.dumps(settings))
    before = _BEFORE | progress.settings
    # Other flags that the version that wrote the state did not know yet cannot have differed.
    differing = [name for name in settings if name in before and settings[name] != before[name]]
    changes = ", ".join(f"{name}={settings[name]!r:.200} (was {before[name]!r:.200})" for name in differing)
    if fixed := [name for name in differing if name in _FIXED]:
        raise ValueError(f"cannot resume {path} with other settings: {changes}; {fixed[0]} is for a whole run")
    if differing and not allow_changes:
        raise ValueError(f"cannot resume {path} with other settings: {changes}; --allow_changes does it all the same")
    for name in differing:
        change = {"step": progress.step, "setting": name, "before": before[name], "after": settings[name]}
        progress.changes.append(change)
    progress.settings |= settings
    own = [{key: group[key] for key in ("lr", "initial_lr", "weight_decay")} for group in optimizer.param_groups]
    try:
        model.load_state_dict(weights)
        optimizer.load_state_dict(state["optimizer"])
        if average is not None and averaged is not None:
            average.load_state_dict(averaged)
        elif average is not None:
            average.module.load_state_dict(weights)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is the state of another model: {' '.join(str(error).split())}") from error
    for group, values in zip(optimizer.param_groups, own, strict=True) if differing else ():
        group.update(values)
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    return progress


def load_best(path: str | os.PathLike) -> dict[str, torch.Tensor] | None:
    """The best weights that a state has, on the CPU; None where it has none.

    Args:
        path: A folder returned by `find_state`, which verifies it.
    """
    return _read_tensors(Path(path) / _BEST) if (Path(path) / _BEST).exists() else None


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    """States by their names, newest first."""
    if not folder.is_dir():
        return []
    named = [(_STATE_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir()]
    return sorted(((int(match[1]), entry) for match, entry in named if match and entry.is_dir()), reverse=True)


def _read_state(path: Path) -> tuple[_Tensors, dict[str, Any], Progress, bool, _Tensors | None]:
    """Weights, optimizer and scaler, progress, whether there were checksums, and averaged weights."""
    for name in _FILES:
        if not (path / name).is_file():
            raise ValueError(f"{path / name} is missing")
    has_checksums = _check_checksums(path)
    progress, version = _read_progress(path)
    if version >= _WITH_CHECKSUMS and not has_checksums:
        raise ValueError(f"{path / _CHECKSUMS} is missing")
    if progress.best is not None and not (path / _BEST).is_file():
        raise ValueError(f"{path / _BEST} is missing")
    weights = _read_tensors(path / "model.safetensors")
    averaged = _read_tensors(path / _AVERAGE) if (path / _AVERAGE).exists() else None
    state = read_pickle(path / "optimizer.pt")
    if not has_checksums:
        with zipfile.ZipFile(path / "optimizer.pt") as archive:  # PyTorch itself does not check these checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{path / 'optimizer.pt'} is damaged: wrong checksum of {damaged}")
    _check_optimizer(state, path / "optimizer.pt")
    moments = {
        f"{kind} of parameter {index} in {path / 'optimizer.pt'}": value
        for index, values in state["optimizer"]["state"].items()
        for kind, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    named = {f"{name} in {path / 'model.safetensors'}": tensor for name, tensor in weights.items()}
    if wrong := non_finite(named | moments):
        raise ValueError(f"{wrong[0]} is not finite")
    return weights, state, progress, has_checksums, averaged


def _read_tensors(file: Path) -> _Tensors:
    try:
        return safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _check_optimizer(state: Any, file: Path) -> None:
    """Raise ValueError for what no optimizer's state can be; files of version 0.1 have no checksum that tells."""
    optimizer = state.get("optimizer") if isinstance(state, dict) else None
    is_state = (
        isinstance(optimizer, dict)
        and isinstance(state.get("scaler"), (dict, type(None)))
        and isinstance(optimizer.get("state"), dict)
        and all(isinstance(values, dict) for values in optimizer["state"].values())
        and isinstance(optimizer.get("param_groups"), list)
        and all(isinstance(group, dict) for group in optimizer["param_groups"])
    )
    if not is_state:
        raise ValueError(f"{file} holds no state of an optimizer")


def _check_checksums(path: Path) -> bool:
    """Whether there are checksums; raises ValueError where a file has another one."""
    file = path / _CHECKSUMS
    if not file.exists():
        return False
    if not file.is_file():
        raise ValueError(f"{file} is no file")
    expected = _read_json(file)
    for name in (*_FILES, *(name for name in _OPTIONAL_FILES if name in expected or (path / name).exists())):
        if not (path / name).is_file():
            raise ValueError(f"{path / name} is missing")
        if expected.get(name) != _sha256(path / name):
            raise ValueError(f"{path / name} is damaged: its checksum is not the one in {_CHECKSUMS}")
    return True


def _read_progress(path: Path) -> tuple[Progress, int]:
    file = path / "progress.json"
    fields = _read_json(file)
    version = fields.pop("format", 1)
    if version not in range(1, _FORMAT + 1):
        raise ValueError(f"{file}: format must be at most {_FORMAT}, got {version!r}: a newer version wrote it")
    if fields.get("best") is None:
        fields.pop("best", None)
    kinds = {"step": int, "history": list, "settings": dict, "bad_samples": list, "changes": list, "best": dict}
    if unknown := fields.keys() - kinds.keys():
        raise ValueError(f"{file} has unknown fields: {', '.join(sorted(unknown))}")
    for name, kind in kinds.items():
        if name in fields and not isinstance(fields[name], kind):
            raise ValueError(f"{file}: {name} must be of type {kind.__name__}, got {fields[name]!r:.100}")
    for entry in fields.get("history", []):
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ValueError(f"{file}: history must hold objects with a step, got {entry!r:.100}")
    if "best" in fields:
        _check_best(fields["best"], file)
    if f"step-{fields.get('step', -1):08d}" != path.name:
        raise ValueError(f"{file}: step must be that of the folder's name, got {fields.get('step')}")
    return Progress(**fields), version


def _check_best(best: dict[str, Any], file: Path) -> None:
    kinds = {"step": int, "mean_iou": float, "weights": str}
    is_best = best.keys() == kinds.keys() and all(isinstance(best[name], kind) for name, kind in kinds.items())
    if not is_best or best["weights"] not in ("raw", "ema"):
        raise ValueError(f"{file}: best must have step, mean_iou and weights (raw or ema), got {best!r:.100}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it must hold a JSON object")
    return content
