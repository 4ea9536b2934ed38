# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm statistics that an adapter (PEFT) leaves behind.

While an adapter is trained, BatchNorm in training mode goes on counting in the base model. An adapter holds its own
weights and whole modules that `modules_to_save` names, but no statistics of any other module.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging

logger = logging.get_logger(__name__)

_PEFT_PREFIX = "base_model.model."  # what PEFT's wrapper puts before the names of a model's parameters
_SAVED_WHOLE = {"modules_to_save", "original_module"}  # PEFT's names for the two copies of such a module
_REMEDY = 'put the decode head into the adapter with modules_to_save=["decode_head"]'


def watch_adapters(model: nn.Module) -> None:
    """Warn when PEFT collects an adapter's weights from `model`, or loads them, without BatchNorm's statistics."""
    model.register_state_dict_pre_hook(_before_saving)
    model.register_load_state_dict_pre_hook(_before_loading)


def warn_when_saved(model: nn.Module) -> None:
    """Warn if an adapter saved from `model` leaves statistics behind."""
    if names := _left_behind(model):
        logger.warning(
            f"An adapter saved from this {type(model).__name__} does not hold the running statistics of {names}, "
            f"which training changes unless they are frozen: loaded again, it then gives other results. To keep them, "
            f"{_REMEDY}."
        )


def warn_when_loaded(model: nn.Module, loaded: Collection[str] = ()) -> None:
    """Warn if an adapter that is loaded into `model` comes without statistics, apart from the tensors `loaded`."""
    if names := _left_behind(model, loaded):
        logger.warning(
            f"The adapter does not hold the running statistics of {names}: if these were not frozen while it was "
            f"trained, this {type(model).__name__} gives other results than then. To keep them, {_REMEDY} in training."
        )


def _left_behind(model: nn.Module, loaded: Collection[str] = ()) -> str:
    """Names of the BatchNorms that no adapter saves and whose mean is not `loaded`, joined by commas."""
    modules = model.named_modules()
    norms = [name for name, module in modules if isinstance(module, _BatchNorm) and module.track_running_stats]
    norms = [name for name in norms if f"{name}.running_mean" not in loaded]
    return ", ".join(name for name in norms if not _SAVED_WHOLE & set(name.split(".")))


def _before_saving(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    # PEFT asks for names and tensors while it loads as well; what is loaded for inference alone will not be saved.
    if prefix.endswith(_PEFT_PREFIX) and any(parameter.requires_grad for parameter in model.parameters()):
        warn_when_saved(model)


def _before_loading(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    if prefix.endswith(_PEFT_PREFIX) and state_dict:
        warn_when_loaded(model, {name.removeprefix(prefix) for name in state_dict})
