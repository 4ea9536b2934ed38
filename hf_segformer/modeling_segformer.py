# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""SegFormer (arXiv 2105.15203): the models for segmentation, classification and backbones.

Shapes: B batch, C channels, H W height and width of the feature map at hand, N = H*W tokens, N' reduced tokens, A
attention heads, S stages, K classes.

Parameter names are the layout of every published checkpoint: `state_dict()` is the file format.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import PreTrainedModel, load_state_dict
from transformers.utils import logging

from .adapter_statistics_segformer import warn_when_loaded, warn_when_saved, watch_adapters
from .bilinear_segformer import must_trace
from .configuration_segformer import SegformerConfig
from .decode_head_segformer import SegformerDecodeHead
from .encoder_segformer import SegformerEncoder
from .functional_segformer import upsample_cross_entropy

logger = logging.get_logger(__name__)

# Whether the call of `from_pretrained` at hand asks for a number of channels of its own.
_ASKS_FOR_CHANNELS: ContextVar[bool] = ContextVar("asks_for_channels", default=False)


class SegformerPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by all SegFormer models."""

    config_class = SegformerConfig
    base_model_prefix = "segformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
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
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
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
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
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
        return self.base_model.encoder.patch_embeddings[0]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the first patch embedding."""
        self.base_model.encoder.patch_embeddings[0] = value

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
        embed = self.base_model.encoder.patch_embeddings[0]
        old = embed.proj.weight  # (C, channels, kernel, kernel)
        if num_channels > old.shape[1]:
            source = torch.arange(num_channels, device=old.device) % old.shape[1]
            weight = old[:, source] / source.bincount()[source].view(-1, 1, 1)
        else:
            weight = old.sum(dim=1, keepdim=True).expand(-1, num_channels, -1, -1) / num_channels
        embed.proj.in_channels = num_channels
        embed.proj.weight = nn.Parameter(weight.to(old.dtype).contiguous(), requires_grad=old.requires_grad)
        self.config.num_channels = num_channels


def _stored_num_channels(state_dict: Mapping[str, torch.Tensor] | None, files: Sequence[str] | None) -> int | None:
    """Input channels of the weights that are about to be loaded; None if they have no first convolution."""
    parts = [state_dict] if state_dict is not None else (load_state_dict(file, "meta") for file in files or ())
    name = "encoder.patch_embeddings.0.proj.weight"
    found = (tensor.shape[1] for part in parts for key, tensor in part.items() if key.endswith(name))
    return next(found, None)


class SegformerModel(SegformerPreTrainedModel):
    """The Mix Transformer encoder.

    Args:
        config: Configuration.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        self.encoder = SegformerEncoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple:
        """Encode images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, floating point, any H and W from `smallest_side(config)`
                on: 29 for the published configurations.
            output_attentions: Also return each layer's attention weights (B, A, N, N'), N' the reduced tokens.
            output_hidden_states: Also return each stage's feature map (B, C, H/s, W/s), s = 4, 8, 16, 32.
            return_dict: False for a plain tuple.

        Returns:
            `last_hidden_state` is the last stage's map, as (B, N, C) if `config.reshape_last_stage` is False. Maps are
            channels-last in memory.

        Raises:
            ValueError: `pixel_values` is not 4-D, has another number of channels, or (not while compiling or
                exporting) is too small.
        """
        config = self.config
        self._check_pixel_values(pixel_values)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        feature_maps, attentions = self.encoder(pixel_values, bool(output_attentions))
        outputs = BaseModelOutput(
            last_hidden_state=feature_maps[-1],
            hidden_states=feature_maps if output_hidden_states else None,
            attentions=attentions,
        )
        return _as_requested(outputs, return_dict, config)

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> None:
        channels = self.encoder.num_channels
        if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
            got = getattr(pixel_values, "dtype", type(pixel_values).__name__)
            raise ValueError(f"pixel_values must be a floating-point tensor, got {got}")
        if pixel_values.ndim != 4 or channels not in (None, pixel_values.shape[1]):
            raise ValueError(
                f"pixel_values must have the shape (batch, num_channels={channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. from_pretrained(..., num_channels=...) loads for another number"
            )
        smallest = self.encoder.smallest_side
        if not must_trace(pixel_values) and min(pixel_values.shape[2:]) < smallest:
            raise ValueError(
                f"pixel_values must be at least {smallest} pixels high and wide, got {tuple(pixel_values.shape[2:])}: "
                "hf_segformer.inference.segment pads smaller images, and so does the processor's do_pad with pad_size"
            )


def _as_requested(outputs, return_dict: bool | None, config: SegformerConfig):
    return_dict = config.return_dict if return_dict is None else return_dict
    return outputs if return_dict else outputs.to_tuple()


class SegformerForImageClassification(SegformerPreTrainedModel):
    """Encoder, global average pooling and a linear classifier, as pretrained on ImageNet.

    Args:
        config: Configuration.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        config.name_pixels(False)
        self.num_labels = config.num_labels
        self.segformer = SegformerModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple:
        """Classify images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, floating point.
            labels: (B,) int64 class indices, or floats when `config.problem_type` is "regression".
            output_attentions: See `SegformerModel.forward`.
            output_hidden_states: See `SegformerModel.forward`.
            return_dict: False for a plain tuple.

        Returns:
            `logits` (B, K) and, with labels, `loss`.
        """
        outputs = self.segformer(pixel_values, output_attentions, output_hidden_states, return_dict=True)
        # (B, C, H, W) or, with reshape_last_stage=False, (B, N, C)
        tokens = outputs.last_hidden_state
        pooled = tokens.mean(dim=(2, 3)) if tokens.ndim == 4 else tokens.mean(dim=1)
        logits = self.classifier(pooled)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        outputs = ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return _as_requested(outputs, return_dict, self.config)


class SegformerForSemanticSegmentation(SegformerPreTrainedModel):
    """Encoder and decode head: logits at a quarter of the image's resolution.

    Args:
        config: Configuration.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        config.name_pixels(True)
        self.segformer = SegformerModel(config)
        self.decode_head = SegformerDecodeHead(config)
        watch_adapters(self)
        self.post_init()

    def get_adapter_state_dict(self, *args, **kwargs) -> dict:
        """Weights of an adapter that `add_adapter` made, as `save_pretrained` writes them."""
        warn_when_saved(self)
        return super().get_adapter_state_dict(*args, **kwargs)

    def load_adapter(self, *args, **kwargs):
        """Load an adapter (PEFT) into this model, as `PreTrainedModel.load_adapter` does."""
        result = super().load_adapter(*args, **kwargs)
        warn_when_loaded(self)
        return result

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple:
        """Segment images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, floating point, any H and W.
            labels: (B, H', W') int64 class indices in [0, K) or `config.semantic_loss_ignore_index`; the loss is
                computed at their size. With K = 1, 0 and 1.
            output_attentions: See `SegformerModel.forward`.
            output_hidden_states: See `SegformerModel.forward`.
            return_dict: False for a plain tuple.

        Returns:
            `logits` (B, K, ceil(H/4), ceil(W/4)), channels-last in memory. `loss`, with labels: cross-entropy (binary
            if K = 1) of the bilinearly upsampled logits, averaged over valid pixels; 0 if there are none.

        Raises:
            ValueError: `pixel_values` has the wrong shape, or `labels` hold a value that is no class.
        """
        show_hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        outputs = self.segformer(pixel_values, output_attentions, output_hidden_states=True, return_dict=True)
        logits = self.decode_head(self._as_maps(outputs.hidden_states, pixel_values.shape[2:]))
        loss = None
        if labels is not None:
            loss = upsample_cross_entropy(logits, labels, self.config.semantic_loss_ignore_index)
        outputs = SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states if show_hidden_states else None,
            attentions=outputs.attentions,
        )
        return _as_requested(outputs, return_dict, self.config)

    def _as_maps(self, hidden_states: Sequence[torch.Tensor], image_size: Sequence[int]) -> list[torch.Tensor]:
        if self.config.reshape_last_stage:
            return list(hidden_states)
        height, width = image_size
        for kernel, stride in zip(self.config.patch_sizes, self.config.strides, strict=True):
            height, width = ((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in (height, width))
        return [*hidden_states[:-1], hidden_states[-1].unflatten(1, (height, width)).permute(0, 3, 1, 2)]


class SegformerBackbone(BackboneMixin, SegformerPreTrainedModel):
    """The encoder as a backbone for other heads.

    Args:
        config: Configuration; `out_features` or `out_indices` choose the stages.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        self.num_features = list(config.hidden_sizes)
        self.segformer = SegformerModel(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple:
        """Encode images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, floating point.
            output_hidden_states: Also return all stages.
            output_attentions: Also return each layer's attention weights.
            return_dict: False for a plain tuple.

        Returns:
            `feature_maps`, the chosen stages (B, C_s, H_s, W_s), channels-last in memory.
        """
        show_hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        outputs = self.segformer(pixel_values, output_attentions, output_hidden_states=True, return_dict=True)
        chosen = [self.stage_names.index(name) for name in self.out_features]
        outputs = BackboneOutput(
            feature_maps=tuple(outputs.hidden_states[stage] for stage in chosen),
            hidden_states=outputs.hidden_states if show_hidden_states else None,
            attentions=outputs.attentions,
        )
        return _as_requested(outputs, return_dict, self.config)
