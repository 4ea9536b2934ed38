# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of SegFormer and the table of its published variants."""

import difflib
import functools
import os
from collections.abc import Callable
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Table 6 of the paper (arXiv 2105.15203); decoder_hidden_size is the width of the released heads.
VARIANTS: dict[str, dict[str, Any]] = {
    "b0": {"hidden_sizes": (32, 64, 160, 256), "depths": (2, 2, 2, 2), "decoder_hidden_size": 256},
    "b1": {"hidden_sizes": (64, 128, 320, 512), "depths": (2, 2, 2, 2), "decoder_hidden_size": 256},
    "b2": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 4, 6, 3), "decoder_hidden_size": 768},
    "b3": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 4, 18, 3), "decoder_hidden_size": 768},
    "b4": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 8, 27, 3), "decoder_hidden_size": 768},
    "b5": {"hidden_sizes": (64, 128, 320, 512), "depths": (3, 6, 40, 3), "decoder_hidden_size": 768},
}

# Keys that released configuration files carry although nothing reads them.
_INERT_HUB_KEYS = {"downsampling_rates", "image_size", "num_image_channels"}


def _with_value_errors(function: Callable) -> Callable:
    """`@strict` raises errors that are no `ValueError`; users of this package catch `ValueError`."""

    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        try:
            return function(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"SegformerConfig: {' '.join(str(error.__cause__ or error).split())}") from error

    return wrapper


def _translate_strict_errors(cls: type) -> type:
    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, _with_value_errors(getattr(cls, name)))
    return cls


@_translate_strict_errors
@strict
class SegformerConfig(BackboneConfigMixin, PretrainedConfig):
    """Configuration of a SegFormer encoder and its heads.

    The fields of `transformers.SegformerConfig` keep their names, defaults and meaning; files written here load there
    and the other way round. The fields from `conv_decoder_hidden_size` on are additions.

    Args:
        num_channels: Channels of the input image.
        num_encoder_blocks: Number of stages S; every list below has S entries.
        depths: Transformer layers of each stage.
        sr_ratios: Sequence reduction ratio of each stage's attention.
        hidden_sizes: Width of each stage.
        patch_sizes: Kernel size of each stage's patch embedding.
        strides: Stride of each stage's patch embedding.
        num_attention_heads: Attention heads of each stage; must divide the stage's width.
        mlp_ratios: Hidden width of each stage's Mix-FFN divided by the stage's width.
        hidden_act: Activation of the Mix-FFN, a name known to `transformers.activations.ACT2FN`.
        hidden_dropout_prob: Dropout probability in attention outputs and Mix-FFN, in [0, 1).
        attention_probs_dropout_prob: Dropout probability of attention weights, in [0, 1).
        classifier_dropout_prob: Dropout probability before the segmentation classifier, in [0, 1).
        initializer_range: Standard deviation of freshly initialised weights.
        drop_path_rate: Stochastic depth of the last layer, in [0, 1); grows linearly from 0 over all layers.
        layer_norm_eps: Stored in every published file but read by no implementation that wrote them. Inert here too;
            see `block_norm_eps` and `embed_norm_eps`.
        decoder_hidden_size: Width E of the all-MLP decode head, or None for the convolutional head.
        semantic_loss_ignore_index: Label that takes no part in the loss.
        reshape_last_stage: Whether the last stage is returned as (B, C, H, W) rather than (B, H*W, C).
        conv_decoder_hidden_size: Width E of mmsegmentation's decode head, where each stage's projection is a 1x1
            convolution without bias, BatchNorm and ReLU. Exactly one of `decoder_hidden_size` and
            `conv_decoder_hidden_size` is
            set: `transformers` rejects a file whose `decoder_hidden_size` is null, so it can never load such a
                checkpoint
            into the other head with random weights.
        block_norm_eps: Epsilon of the LayerNorms of layers and stages. 1e-5 is what `transformers` computes;
            checkpoints of NVlabs and mmsegmentation were trained with 1e-6.
        embed_norm_eps: Epsilon of the LayerNorms after patch embedding and sequence reduction. 1e-5 in `transformers`
            and NVlabs, 1e-6 in mmsegmentation.
        classifier_dropout_mode: "element" drops single values before the classifier (`transformers`), "channel" whole
            feature maps (NVlabs, mmsegmentation).
        palette: (R, G, B) colour of each class in 0..255, for pictures; None if the checkpoint has none.
        out_features: Stages a `SegformerBackbone` returns, of "stage1" to "stageS"; the last one by default.
        out_indices: The same as indices from 0.

    Raises:
        ValueError: A field has the wrong type or breaks a rule above; names the field, the rule and the value.
    """

    model_type = "segformer"
    attribute_map = {"num_hidden_layers": "num_encoder_blocks"}
    # Set on configurations read from a file: `from_pretrained(..., num_channels=4)` must know how many the weights
    # have.
    num_channels_in_file: ClassVar[int | None] = None

    num_channels: int = 3
    num_encoder_blocks: int = 4
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    sr_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    hidden_sizes: list[int] | tuple[int, ...] = (32, 64, 160, 256)
    patch_sizes: list[int] | tuple[int, ...] = (7, 3, 3, 3)
    strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: list[int] | tuple[int, ...] = (4, 4, 4, 4)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-6
    decoder_hidden_size: int | None = 256
    semantic_loss_ignore_index: int = 255
    reshape_last_stage: bool = True
    conv_decoder_hidden_size: int | None = None
    block_norm_eps: float = 1e-5
    embed_norm_eps: float = 1e-5
    classifier_dropout_mode: str = "element"
    palette: list | tuple | None = None

    @classmethod
    def for_variant(cls, variant: str, **kwargs) -> "SegformerConfig":
        """Configuration of a published variant.

        Args:
            variant: "b0" to "b5".
            **kwargs: Any field, overriding the variant's own.

        Raises:
            ValueError: The variant is unknown.
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {sorted(VARIANTS)}, got {variant!r}")
        fields = dict(VARIANTS[variant])
        if kwargs.get("conv_decoder_hidden_size") is not None:
            fields["decoder_hidden_size"] = None
        return cls(**{**fields, **kwargs})

    def __post_init__(self, **kwargs):
        kwargs.pop("stage_names", None)
        self.stage_names = [f"stage{stage}" for stage in range(1, self.num_encoder_blocks + 1)]
        self._warn_about_misspelt(kwargs)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def _warn_about_misspelt(self, kwargs: dict[str, Any]) -> None:
        fields = list(self.__dataclass_fields__)
        for name in kwargs:
            if name.startswith("_") or name in _INERT_HUB_KEYS or hasattr(type(self), name):
                continue
            if close := difflib.get_close_matches(name, fields, n=1, cutoff=0.8):
                logger.warning(
                    f"SegformerConfig has no field {name!r}, so it has no effect. Did you mean {close[0]!r}?"
                )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        source = kwargs.get("name_or_path", config_dict.get("name_or_path"))
        num_channels_in_file = config_dict.get("num_channels", cls.num_channels)
        try:
            result = super().from_dict(config_dict, **kwargs)
            config = result[0] if isinstance(result, tuple) else result
            # Keyword overrides are assigned one by one after construction, so the rules across fields run again.
            config.validate()
        except ValueError as error:
            raise ValueError(f"{error} (configuration of {os.fspath(source)})" if source else str(error)) from error
        if source:
            config.num_channels_in_file = num_channels_in_file
        return result

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        kwargs.setdefault("name_or_path", str(pretrained_model_name_or_path))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.pop("num_channels_in_file", None)
        return output

    def validate_stages(self):
        """Every per-stage list has one positive entry for each stage, and heads divide widths."""
        names = ("depths", "sr_ratios", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")
        for name in names:
            values = getattr(self, name)
            if len(values) != self.num_encoder_blocks:
                raise ValueError(
                    f"{name} must have num_encoder_blocks={self.num_encoder_blocks} entries, got {list(values)}"
                )
            if min(values) < 1:
                raise ValueError(f"{name} must have entries >= 1, got {list(values)}")
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=True):
            if width % heads:
                raise ValueError(
                    f"hidden_sizes must be multiples of num_attention_heads, got {list(self.hidden_sizes)} and "
                    f"{list(self.num_attention_heads)}"
                )

    def validate_ranges(self):
        """Scalars lie in their ranges."""
        for name in ("num_channels", "num_encoder_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        probabilities = (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout_prob",
            "drop_path_rate",
        )
        for name in probabilities:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("block_norm_eps", "embed_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}")
        if self.classifier_dropout_mode not in ("element", "channel"):
            raise ValueError(
                f"classifier_dropout_mode must be 'element' or 'channel', got {self.classifier_dropout_mode!r}"
            )

    def validate_decode_head(self):
        """Exactly one decode head is chosen, and the label names cover the classes."""
        widths = (self.decoder_hidden_size, self.conv_decoder_hidden_size)
        if sum(width is not None for width in widths) != 1:
            raise ValueError(
                "exactly one of decoder_hidden_size and conv_decoder_hidden_size must be set, got "
                f"{widths[0]} and {widths[1]}"
            )
        (width,) = (width for width in widths if width is not None)
        if width < 1:
            raise ValueError(f"the decode head's width must be >= 1, got {width}")
        labels = sorted(self.id2label)
        if labels != list(range(len(labels))):
            raise ValueError(f"id2label must have the keys 0 to {len(labels) - 1}, got {labels[:10]}")
