# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""SegFormer for the Hugging Face ecosystem: models, image processor, data, training, conversion.

Importing this package makes the Auto classes of `transformers` build the classes below for `model_type: "segformer"`,
in this process. Set the environment variable `HF_SEGFORMER_NO_REGISTER=1` before the import, or call `unregister()`,
to keep the built-in ones.
"""

import os
import sys
import sysconfig
from itertools import pairwise
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

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


def _is_command_line() -> bool:
    """Whether Python was started as `segformer` or `python -m hf_segformer`, which load the rest when it is needed.

    A program of the user's that happens to have that name lies elsewhere than among Python's own scripts.
    """
    program = os.path.realpath(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    if sys.argv[:1] == ["-m"]:  # while Python looks for the module
        return any(flag[:1] == "-" and flag[-1:] == "m" and name == __name__ for flag, name in pairwise(sys.orig_argv))
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    folders = {os.path.realpath(sysconfig.get_path("scripts", scheme)) for scheme in schemes}
    return os.path.basename(program) in ("segformer", "segformer.exe") and os.path.dirname(program) in folders


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import auto

    return getattr(auto, name)


if TYPE_CHECKING or not _is_command_line():
    from .auto import (
        VARIANTS,
        SegformerBackbone,
        SegformerConfig,
        SegformerForImageClassification,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
        SegformerModel,
        SegformerPreTrainedModel,
        register,
        unregister,
        upsample_argmax,
        upsample_cross_entropy,
    )
