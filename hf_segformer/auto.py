# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The public names, and their registration with the Auto classes of `transformers`, which importing this does."""

import json
import os
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from .configuration_segformer import VARIANTS, SegformerConfig
from .image_processing_segformer import SegformerImageProcessor
from .modeling_segformer import (
    SegformerBackbone,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
    SegformerPreTrainedModel,
)
from .scores.cross_entropy import upsample_cross_entropy
from .scores.label_map import upsample_argmax

__all__ = [
    "VARIANTS",
    "SegformerBackbone",
    "SegformerConfig",
    "SegformerForImageClassification",
    "SegformerForSemanticSegmentation",
    "SegformerImageProcessor",
    "SegformerModel",
    "SegformerPreTrainedModel",
    "register",
    "unregister",
    "upsample_argmax",
    "upsample_cross_entropy",
]

_MODELS = {
    AutoModel: SegformerModel,
    AutoModelForSemanticSegmentation: SegformerForSemanticSegmentation,
    AutoModelForImageClassification: SegformerForImageClassification,
    AutoBackbone: SegformerBackbone,
}
# Under both backends: with torchvision installed its one is the default, and that would be the built-in processor.
# Files of early checkpoints name a feature extractor, which leads here by the name of its class alone.
_PROCESSORS = {
    "pil": SegformerImageProcessor,
    "torchvision": SegformerImageProcessor,
    "feature_extractor": type("SegformerFeatureExtractor", (SegformerImageProcessor,), {}),
}


def _backbone_from_pretrained(
    cls: Any, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any
) -> Any:
    """`AutoBackbone.from_pretrained` for folders of SegFormers too; its own asks the Hub about any name."""
    base: Any = AutoBackbone.__base__
    if _is_segformer(pretrained_model_name_or_path, kwargs.get("config"), kwargs.get("subfolder") or ""):
        kwargs.pop("use_timm_backbone", None)
        return super(base, cls).from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
    return super(AutoBackbone, cls).from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


def _is_segformer(name_or_path: str | os.PathLike, config: object, subfolder: str) -> bool:
    """Whether a configuration at hand, or in a folder here, is a SegFormer's."""
    if config is not None or not os.path.isdir(name_or_path or ""):
        return isinstance(config, SegformerConfig)
    try:
        with open(os.path.join(name_or_path, subfolder, "config.json"), encoding="utf-8") as file:
            fields = json.load(file)
    except (OSError, ValueError):
        return False  # what is wrong with the folder is for AutoBackbone to say
    return isinstance(fields, dict) and fields.get("model_type") == SegformerConfig.model_type


def register() -> None:
    """Make the Auto classes build this SegFormer instead of the built-in one, as importing the package does."""
    AutoConfig.register(SegformerConfig.model_type, SegformerConfig, exist_ok=True)
    for auto_class, model_class in _MODELS.items():
        auto_class.register(SegformerConfig, model_class, exist_ok=True)
    IMAGE_PROCESSOR_MAPPING.register(SegformerConfig, _PROCESSORS, exist_ok=True)  # type: ignore[arg-type]
    AutoBackbone.from_pretrained = classmethod(_backbone_from_pretrained)  # type: ignore[method-assign, assignment]


def unregister() -> None:
    """Give `model_type: "segformer"` back to the built-in classes of `transformers`, in this process."""
    CONFIG_MAPPING._extra_content.pop(SegformerConfig.model_type, None)
    mappings: list[Any] = [*(auto_class._model_mapping for auto_class in _MODELS), IMAGE_PROCESSOR_MAPPING]
    for mapping in mappings:
        mapping._extra_content.pop(SegformerConfig, None)
    if "from_pretrained" in AutoBackbone.__dict__:
        del AutoBackbone.from_pretrained


if os.environ.get("HF_SEGFORMER_NO_REGISTER", "0") != "1":
    register()
