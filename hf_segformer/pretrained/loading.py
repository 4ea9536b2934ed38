# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What a SegFormer model can do besides computing: load for other channels, checkpoint gradients, take adapters."""

import functools
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel, load_state_dict
from transformers.utils import ModelOutput, logging

from ..configuration_segformer import SegformerConfig
from ..engine import remembering
from .adapter_statistics import warn_when_loaded, warn_when_saved, watch_adapters

logger = logging.get_logger(__name__)

# Whether the call of `from_pretrained` at hand asks for a number of channels of its own.
_ASKS_FOR_CHANNELS: ContextVar[bool] = ContextVar("asks_for_channels", default=False)


class SegformerLoading(PreTrainedModel):
    """Loading and saving, and what `PreTrainedModel` wants to know; no part of the network."""

    config: SegformerConfig
    config_class = SegformerConfig
    base_model_prefix = "segformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    # `Trainer` reads this: the loss is a mean over the batch at hand, so gradients must be divided by the accumulation
    # steps.
    accepts_loss_kwargs = False
    _no_split_modules = ["SegformerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PretrainedConfig | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load weights as `PreTrainedModel.from_pretrained` does, inflating the first filters for another
        `num_channels`.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *model_args: Passed on.
            config: Configuration to use instead of the stored one, which is then not looked for.
            **kwargs: Passed on; `num_channels` and other configuration fields override the stored ones.
        """
        is_given = isinstance(config, SegformerConfig)
        token = _ASKS_FOR_CHANNELS.set(is_given or "num_channels" in kwargs)
        try:
            result = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        except (pickle.UnpicklingError, RuntimeError) as error:
            if "weights_only" not in str(error):
                raise
            # PyTorch advises to switch off its protection.
            refused = re.search(r"GLOBAL (\S+)|(?:function|but got) (<.*?>)", str(error))
            reason = f"refers to {refused[1] or refused[2]}" if refused else "is damaged or holds more than weights"
            raise ValueError(
                f"the pickle of weights in {pretrained_model_name_or_path} {reason} and was not read: where you trust "
                "it, save its state dict alone, with `torch.save` or as safetensors"
            ) from None
        finally:
            _ASKS_FOR_CHANNELS.reset(token)
        model = result[0] if isinstance(result, tuple) else result
        wanted = model.config.num_channels
        stored = getattr(model.get_input_embeddings().proj, "in_channels", wanted)  # an adapter may lie around it
        if stored != wanted:
            if is_given:
                logger.warning(
                    f"The weights have {stored} input channels and the configuration has num_channels={wanted}: the "
                    "first filters are repeated or summed, see resize_num_channels."
                )
            model.resize_num_channels(wanted)
        return result

    @staticmethod
    def _load_pretrained_model(
        model: Any,
        state_dict: dict[str, torch.Tensor] | None,
        checkpoint_files: list[str] | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Give the first convolution as many channels as the weights have, where another number may be asked for."""
        stored = _stored_num_channels(state_dict, checkpoint_files) if _ASKS_FOR_CHANNELS.get() else None
        convolution = model.get_input_embeddings().proj
        weight = convolution.weight
        if stored not in (None, convolution.in_channels) and weight.ndim == 4:  # sharded weights are flat
            convolution.in_channels = stored
            convolution.weight = nn.Parameter(weight.new_empty(weight.shape[0], stored, *weight.shape[2:]))
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The first patch embedding, where an image enters."""
        base: Any = self.base_model
        return base.encoder.patch_embeddings[0]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the first patch embedding."""
        base: Any = self.base_model
        base.encoder.patch_embeddings[0] = value

    @torch.no_grad()
    def resize_num_channels(self, num_channels: int) -> None:
        """Change the number of input channels, keeping pretrained filters.

        More channels repeat the filters in turn, each divided by how often it occurs; fewer channels share the
        filters' sum. So an image whose channels are all equal gives the same features as before.

        Args:
            num_channels: New number of channels, at least 1.

        Raises:
            ValueError: `num_channels` is below 1.
        """
        if num_channels < 1:
            raise ValueError(f"num_channels must be >= 1, got {num_channels}")
        embed: Any = self.get_input_embeddings()
        old = embed.proj.weight  # (C, channels, kernel, kernel)
        if num_channels > old.shape[1]:
            source = torch.arange(num_channels, device=old.device) % old.shape[1]
            weight = old[:, source] / source.bincount()[source].view(-1, 1, 1)
        else:
            weight = old.sum(dim=1, keepdim=True).expand(-1, num_channels, -1, -1) / num_channels
        embed.proj.in_channels = num_channels
        embed.proj.weight = nn.Parameter(weight.to(old.dtype).contiguous(), requires_grad=old.requires_grad)
        self.config.num_channels = num_channels

    def _as_requested(self, outputs: ModelOutput, return_dict: bool | None) -> Any:
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()

    def post_init(self) -> None:
        """Watch for adapters, besides what `PreTrainedModel` does once all modules are there."""
        super().post_init()
        watch_adapters(self)

    def get_adapter_state_dict(self, *args: Any, **kwargs: Any) -> dict:
        """Weights of an adapter that `add_adapter` made, as `save_pretrained` writes them."""
        warn_when_saved(self)
        return super().get_adapter_state_dict(*args, **kwargs)

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter (PEFT) into this model, as `PreTrainedModel.load_adapter` does."""
        result = super().load_adapter(*args, **kwargs)
        warn_when_loaded(self)
        return result

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs: Any
    ) -> None:
        function = functools.partial(_checkpointed, gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, **kwargs)


def _checkpointed(function: Callable, layer_forward: Callable, *args: Any) -> Sequence[torch.Tensor]:
    output = function(remembering(layer_forward), *args)
    _warn_if_cut_off(layer_forward, output)
    return output


def _warn_if_cut_off(layer_forward: Any, output: Sequence[torch.Tensor]) -> None:
    """Reentrant checkpointing gives parameters a gradient only if the layer's input needs one as well."""
    if not torch.is_grad_enabled() or output[0].requires_grad:
        return
    # A `functools.partial` of the layer's method, or (transformers 5.17) of its bound method.
    layer = layer_forward.args[0] if layer_forward.args else layer_forward.func.__self__
    if any(parameter.requires_grad for parameter in layer.parameters()):
        logger.warning_once(
            "Gradient checkpointing with use_reentrant=True cuts off layers whose input needs no gradient: what is to "
            "be trained in them (an adapter, say) gets none and stays as it is. Call "
            "model.enable_input_require_grads(), or checkpoint with use_reentrant=False."
        )


def _stored_num_channels(state_dict: Mapping[str, torch.Tensor] | None, files: Sequence[str] | None) -> int | None:
    """Input channels of the weights that are about to be loaded; None if they have no first convolution."""
    parts = [state_dict] if state_dict is not None else (load_state_dict(file, "meta") for file in files or ())
    name = "encoder.patch_embeddings.0.proj.weight"
    found = (tensor.shape[1] for part in parts for key, tensor in part.items() if key.endswith(name))
    return next(found, None)
