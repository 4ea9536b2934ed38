# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of SegFormer and the table of its published variants."""

import difflib
import functools
import math
import os
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

_MOST_LABELS, _MOST_STAGES = 1_000_000, 1000  # each gets a name before anything else could refuse

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

# Name of id 0 in the label maps of a model with one logit.
BACKGROUND = "background"


class PixelNames(dict):
    """`id2label` of a segmentation model with one logit: its label maps have two ids, the table one entry.

    It is, and is saved as, {0: NAME}, the name of output 0. Looked up by id it says "background" for 0, NAME for 1.
    """

    def __getitem__(self, label: int) -> str:
        """Name of an id of the label map."""
        if len(self) != 1 or label not in (0, 1):
            return super().__getitem__(label)
        return super().__getitem__(0) if label else BACKGROUND

    def __setitem__(self, label: int, name: str) -> None:
        """Rename an id of the label map; that of id 1 is the name of output 0."""
        super().__setitem__(0 if label == 1 and len(self) == 1 else label, name)

    def get(self, label: int, default: Any = None) -> Any:
        """Name of an id of the label map, or `default`."""
        try:
            return self[label]
        except KeyError:
            return default

    def __contains__(self, label: object) -> bool:
        """Whether label maps have this id."""
        return label in (0, 1) if len(self) == 1 else super().__contains__(label)


def _id_of(key: Any) -> int | None:
    """The integer that `key` is or spells."""
    try:
        number = int(key)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if isinstance(key, float) and key != number else number


def _names_of_outputs(table: Any) -> dict[int, str]:
    """A table with the keys 0 to K - 1 from one with K keys of any kind, as they occur in files."""
    if not isinstance(table, Mapping):
        raise ValueError(f"SegformerConfig: id2label must map ids to names, got {table!r}")
    if wrong := [key for key in table if _id_of(key) is None]:
        raise ValueError(f"SegformerConfig: id2label must have integers as keys, got {wrong[0]!r}")
    given = {label: name for key, name in table.items() if (label := _id_of(key)) is not None}
    found = {output: given.get(output) for output in range(len(given))}
    names = {output: f"LABEL_{output}" if name is None else str(name) for output, name in found.items()}
    if dropped := {label: name for label, name in sorted(given.items()) if label not in names}:
        logger.warning(
            f"SegformerConfig: id2label has {len(given)} entries and so names the outputs 0 to {len(given) - 1}; the "
            f"names of other ids are dropped: {dropped!s:.300}"
        )
    return names


def _ids_of_names(table: Any) -> dict[str, int | None]:
    if not isinstance(table, Mapping):
        raise ValueError(f"SegformerConfig: label2id must map names to ids, got {table!r:.99}")
    return {name if isinstance(name, str) else str(name): _id_of(label) for name, label in table.items()}


def _check_num_labels(name: str, value: Any) -> None:
    if not (isinstance(value, Integral) and int(value) >= 0):
        raise ValueError(f"SegformerConfig: {name} must be an integer >= 0, got {value!r:.99}")
    if int(value) > _MOST_LABELS:
        raise ValueError(f"SegformerConfig: {name} must be at most {_MOST_LABELS}, got {value!r:.99}")


def _check_dtype(name: str, value: Any) -> None:
    known = getattr(torch, value, None) if isinstance(value, str) else value
    if value is not None and not isinstance(known, torch.dtype | dict):
        raise ValueError(f"SegformerConfig: {name} must be a type of PyTorch, such as float32, got {value!r:.99}")


def _check_stage_list(name: str, value: Any) -> None:
    kind, kinds = (str, "names") if name == "out_features" else (Integral, "indices")
    if value is not None and not (isinstance(value, list | tuple) and all(isinstance(entry, kind) for entry in value)):
        raise ValueError(f"SegformerConfig: {name} must be a list of {kinds} of stages, got {value!r:.99}")


def _check_palette(name: str, value: Any) -> None:
    """Only what could not be written: what the colours are is for those who draw with them."""
    colors = [color for color in value if isinstance(color, list | tuple)] if isinstance(value, list | tuple) else []
    if any(isinstance(channel, list | tuple) for color in colors for channel in color):
        raise ValueError(f"SegformerConfig: {name} must be a list of (R, G, B), got {value!r:.99}")


# Fields of the base class and beside the dataclass, whose types nothing else looks at.
_FIELD_CHECKS = {
    "num_labels": _check_num_labels,
    "dtype": _check_dtype,
    "torch_dtype": _check_dtype,
    "out_features": _check_stage_list,
    "out_indices": _check_stage_list,
    "palette": _check_palette,
}


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _with_value_errors(function: Callable) -> Callable:
    """`@strict` raises errors that are no `ValueError`; users of this package catch `ValueError`."""

    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
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
    and the other way round. The fields from `conv_decoder_hidden_size` on are additions. The defaults are those of
    [nvidia/segformer-b0-finetuned-ade-512-512](https://huggingface.co/nvidia/segformer-b0-finetuned-ade-512-512).

    There are as many outputs K as `id2label` has entries. Output i bears the name of key i, otherwise LABEL_i; names
    of other keys (255 for "ignore", say) are dropped with a warning, and `label2id` follows `id2label`. A segmentation
    model with one output has two ids in its label maps: id 0 is "background", id 1 bears the name of output 0, and
    `model.config.id2label` says so when it is looked up by id.

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
            `conv_decoder_hidden_size` is set: `transformers` rejects a file whose `decoder_hidden_size` is null, so it
            can never load such a checkpoint into the other head with random weights.
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

    if TYPE_CHECKING:
        num_labels: int  # where there are labels, as here

    model_type = "segformer"
    attribute_map = {"num_hidden_layers": "num_encoder_blocks"}

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
    def for_variant(cls, variant: str, **kwargs: Any) -> "SegformerConfig":
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

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("stage_names", None)
        for other, name in self.attribute_map.items():
            if other in kwargs and getattr(self, name) not in (getattr(type(self), name), kwargs[other]):
                raise ValueError(
                    f"SegformerConfig: {other} is another name of {name} and must not differ from it: got "
                    f"{kwargs[other]!r:.99} and {getattr(self, name)}"
                )
        for name in _FIELD_CHECKS.keys() & kwargs.keys():
            _FIELD_CHECKS[name](name, kwargs[name])
        if not 1 <= self.num_encoder_blocks <= _MOST_STAGES:
            rule = ">= 1" if self.num_encoder_blocks < 1 else f"at most {_MOST_STAGES}"
            raise ValueError(
                f"SegformerConfig: num_encoder_blocks must be {rule}, got {self.num_encoder_blocks!r:.99}"
            )
        self.stage_names = [f"stage{stage}" for stage in range(1, self.num_encoder_blocks + 1)]
        self._warn_about_misspelt(kwargs)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        names, ids = self.id2label, self.label2id
        super().__post_init__(**kwargs)
        if names is None or names == self.id2label:  # otherwise num_labels made new ones
            self.label2id = ids  # as it was given, for validate_label_names to look at

    def _warn_about_misspelt(self, kwargs: dict[str, Any]) -> None:
        fields = list(self.__dataclass_fields__)
        for name in kwargs:
            if name.startswith("_") or name in _INERT_HUB_KEYS or hasattr(type(self), name):
                continue
            if close := difflib.get_close_matches(name, fields, n=1, cutoff=0.8):
                logger.warning(
                    f"SegformerConfig has no field {name!r}, so it has no effect. Did you mean {close[0]!r}?"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.attribute_map:  # under the name whose type is checked
            return setattr(self, self.attribute_map[name], value)
        if name in _FIELD_CHECKS:
            _FIELD_CHECKS[name](name, value)
        if name == "label2id" and value is not None:
            value = _ids_of_names(value)
        if name == "id2label" and value is not None:
            value = type(self.__dict__.get("id2label") or {})(_names_of_outputs(value))
        super().__setattr__(name, value)
        if name == "id2label" and value is not None:
            self._let_label2id_follow()

    def _let_label2id_follow(self) -> dict[str, Any]:
        """Make `label2id` the inverse of `id2label`; returns its entries that said otherwise about an output."""
        names: dict[Any, Any] = dict(self.id2label or {})
        given = self.__dict__.get("label2id")
        found = {name: _id_of(label) for name, label in given.items()} if isinstance(given, Mapping) else {}
        follows = set(found) == set(names.values()) and all(names.get(label) == name for name, label in found.items())
        inverse: dict[str, Any] = found if follows else {name: label for label, name in names.items()}
        self.label2id = inverse
        return {name: label for name, label in found.items() if label in names and names[label] != name}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each id of a segmentation model's label maps; with one output these are 0 and 1."""
        names = tuple((self.id2label or {}).values())
        return (BACKGROUND, *names) if len(names) == 1 else names

    @property
    def class_palette(self) -> list | tuple | None:
        """Colour of each id of a segmentation model's label maps; black for the background that one output lacks."""
        palette = self.palette
        if palette is not None and len(palette) == self.num_labels == 1:
            return [[0, 0, 0], *palette]
        return palette

    def name_pixels(self, wanted: bool) -> None:
        """Let look-ups in `id2label` mean ids of a label map, which differ from outputs where there is only one.

        Args:
            wanted: False to mean outputs again, for classification.
        """
        if self.num_labels == 1:
            self.__dict__["id2label"] = (PixelNames if wanted else dict)(self.id2label or {})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        source = kwargs.get("name_or_path", config_dict.get("name_or_path"))
        for name in _FIELD_CHECKS.keys() & kwargs.keys():
            if kwargs[name] is not None:
                _FIELD_CHECKS[name](name, kwargs[name])
        try:
            result = super().from_dict(config_dict, **kwargs)
            config = result[0] if isinstance(result, tuple) else result
            # Keyword overrides are assigned one by one after construction, so the rules across fields run again.
            config.validate()
        except ValueError as error:
            raise ValueError(f"{error} (configuration of {os.fspath(source)})" if source else str(error)) from error
        return result

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:  # type: ignore[override]
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            raise ValueError(f"{error} (configuration of {pretrained_model_name_or_path})") from error

    def to_dict(self) -> dict[str, Any]:
        return _as_lists(super().to_dict())

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; where a configuration was read from, and tuple or list, make no difference."""
        if type(other) is not type(self):
            return NotImplemented
        ours, theirs = ({**config.to_dict(), "_name_or_path": None} for config in (self, other))
        return ours == theirs

    def validate_stages(self) -> None:
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

    def validate_ranges(self) -> None:
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
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("block_norm_eps", "embed_norm_eps", "layer_norm_eps", "initializer_range"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}")
        if self.classifier_dropout_mode not in ("element", "channel"):
            raise ValueError(
                f"classifier_dropout_mode must be 'element' or 'channel', got {self.classifier_dropout_mode!r}"
            )

    def validate_decode_head(self) -> None:
        """Exactly one decode head is chosen."""
        widths = (self.decoder_hidden_size, self.conv_decoder_hidden_size)
        if sum(width is not None for width in widths) != 1:
            raise ValueError(
                "exactly one of decoder_hidden_size and conv_decoder_hidden_size must be set, got "
                f"{widths[0]} and {widths[1]}"
            )
        (width,) = (width for width in widths if width is not None)
        if width < 1:
            raise ValueError(f"the decode head's width must be >= 1, got {width}")

    def validate_label_names(self) -> None:
        """`id2label` names the outputs and `label2id` is its inverse: made so where it was changed in place."""
        if self.id2label is None:
            return
        if list(self.id2label) != list(range(len(self.id2label))):
            self.id2label = self.id2label
        if others := self._let_label2id_follow():
            said, counts = str(others), str(dict(self.id2label or {}))
            logger.warning(f"SegformerConfig: label2id said {said:.300}, but id2label counts: {counts:.300}")
