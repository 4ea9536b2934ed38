# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""SegFormer for the Hugging Face ecosystem: models, image processor, data, training, conversion.

Importing this package makes the Auto classes of `transformers` build the classes below for `model_type: "segformer"`,
in this process. Set the environment variable `HF_SEGFORMER_NO_REGISTER=1` before the import, or call `unregister()`,
to keep the built-in ones.
"""

import json
import os

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
from .functional_segformer import upsample_argmax, upsample_cross_entropy
from .image_processing_segformer import SegformerImageProcessor
from .modeling_segformer import (
    SegformerBackbone,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
    SegformerPreTrainedModel,
)

__version__ = "0.1.0"

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


def _backbone_from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
    """`AutoBackbone.from_pretrained` for folders of SegFormers too; its own asks the Hub about any name."""
    base = AutoBackbone.__base__
    if _is_segformer(pretrained_model_name_or_path, kwargs.get("config"), kwargs.get("subfolder") or ""):
        kwargs.pop("use_timm_backbone", None)
        return super(base, cls).from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
    return super(AutoBackbone, cls).from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


def _is_segformer(name_or_path, config, subfolder: str) -> bool:
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
    IMAGE_PROCESSOR_MAPPING.register(SegformerConfig, _PROCESSORS, exist_ok=True)
    AutoBackbone.from_pretrained = classmethod(_backbone_from_pretrained)


def unregister() -> None:
    """Give `model_type: "segformer"` back to the built-in classes of `transformers`, in this process."""
    CONFIG_MAPPING._extra_content.pop(SegformerConfig.model_type, None)
    for mapping in [*(auto_class._model_mapping for auto_class in _MODELS), IMAGE_PROCESSOR_MAPPING]:
        mapping._extra_content.pop(SegformerConfig, None)
    if "from_pretrained" in AutoBackbone.__dict__:
        del AutoBackbone.from_pretrained


if os.environ.get("HF_SEGFORMER_NO_REGISTER", "0") != "1":
    register()
