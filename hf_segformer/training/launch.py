# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What `accelerate config` and `accelerate launch` ask for: taken unless a flag says otherwise, checked, and told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

# How launchers tell each process the number of all; the first that is there counts.
_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_PLUGINS = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def make_accelerator(mixed_precision: str | None = None, **options: Any) -> Accelerator:
    """An `Accelerator` by the user's configuration, refused where it would not do what was asked for.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; None takes what `accelerate config` or `launch` say, else "no".
        **options: Further arguments of `Accelerator`.

    Raises:
        ValueError: A precision this device does not have, a package that is not installed, or several processes that
            do not know of each other.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    try:
        # The loops count their forward passes themselves; otherwise the number in the environment would also divide
        # every loss.
        counting = GradientAccumulationPlugin(num_steps=1)
        accelerator = Accelerator(mixed_precision=mixed_precision, gradient_accumulation_plugin=counting, **options)
    except (ImportError, NotImplementedError, RuntimeError) as error:  # the last from plugins that find no GPU
        raise ValueError(f"accelerate cannot do what its configuration asks for: {error}") from error
    _check_processes(accelerator)
    _check_precision(accelerator)
    return accelerator


def _check_precision(accelerator: Accelerator) -> None:
    """What `accelerate` does not know or this device does not do, it leaves out without a word."""
    precision = accelerator.mixed_precision
    if precision not in ("no", "fp16", "bf16", "fp8"):
        raise ValueError(f"mixed_precision must be no, fp16 or bf16, got {precision!r}")
    if precision != "no" and not accelerator.native_amp:
        kind = accelerator.device.type
        raise ValueError(f"mixed_precision {precision} is not computed on this device ({kind}): take bf16 or no")


def _check_processes(accelerator: Accelerator) -> None:
    name = next((name for name in _WORLD_SIZES if name in os.environ), None)
    asked = os.environ[name] if name else str(accelerator.num_processes)
    if asked != str(accelerator.num_processes):
        plugins = [name for name in _PLUGINS if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]
        cause = f"; {plugins[0]}, which was asked for, needs GPUs" if plugins else ""
        raise ValueError(
            f"{name} says {asked} processes, but accelerate runs {accelerator.num_processes} here, so that each would "
            f"take itself for the only one{cause}. Use `accelerate launch --multi_gpu --num_processes {asked}` "
            "(on CPUs with ACCELERATE_USE_CPU=1), or one process"
        )


def refuse_sharding(accelerator: Accelerator) -> None:
    """Refuse plugins that cut the model into pieces: the training loop keeps it whole on each process.

    Raises:
        ValueError: Names the plugin.
    """
    kind = accelerator.distributed_type.value
    if kind in _PLUGINS:
        raise ValueError(
            f"distributed_type {kind} cuts the model into pieces, which saved states and evaluation here do not know; "
            "choose MULTI_GPU (accelerate launch --multi_gpu): even B5 takes 0.4 GB a GPU for its weights"
        )


def launched_accumulation() -> int | None:
    """Forward passes per optimizer step that `accelerate` was told of; None where it was not.

    Raises:
        ValueError: The environment holds no positive number.
    """
    asked = os.environ.get(_ACCUMULATION)
    if asked is None:
        return None
    if not (asked.isascii() and asked.isdigit()) or int(asked) < 1:
        raise ValueError(f"{_ACCUMULATION} must be a number > 0 in the environment, got {asked!r}")
    return int(asked)


def describe_launch(accelerator: Accelerator) -> dict[str, Any]:
    """What really runs, as plain values: processes, device, precision, compiler, threads and trackers."""
    import torch
    from accelerate.utils import DynamoBackend

    backend = accelerator.state.dynamo_plugin.backend
    return {
        "num_processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "dynamo_backend": None if backend == DynamoBackend.NO else backend.value.lower(),
        "num_threads": torch.get_num_threads(),
        "trackers": [str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with],
    }
