# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What the network can take, and what is said of anything else.

Shapes: B batch, C channels, H W height and width of an image or feature map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..configuration_segformer import SegformerConfig
from ..tracing import must_trace


def smallest_side(config: SegformerConfig) -> int:
    """Pixels that each side of an image must have at least, so that every convolution finds its kernel's worth."""
    side = 1
    stages = zip(config.patch_sizes, config.strides, config.sr_ratios, strict=True)
    for kernel, stride, ratio in reversed(list(stages)):
        side = max((max(side, ratio) - 1) * stride + kernel - 2 * (kernel // 2), 1)
    return side


def points_of(config: SegformerConfig, pixels: int) -> int:
    """Points of the first stage's map, and of the logits, along a side of so many pixels."""
    kernel, stride = config.patch_sizes[0], config.strides[0]
    return (pixels + 2 * (kernel // 2) - kernel) // stride + 1


def check_pixel_values(model: Any, pixel_values: torch.Tensor) -> None:
    """Check what enters the encoder.

    Args:
        model: `SegformerModel`.
        pixel_values: What should be (B, num_channels, H, W), floating point.

    Raises:
        ValueError: It is no such tensor, has another number of channels, or (not while compiling or exporting) is too
            small.
    """
    if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
        got = getattr(pixel_values, "dtype", type(pixel_values).__name__)
        raise ValueError(f"pixel_values must be a floating-point tensor, got {got}")
    channels = _input_channels(model.encoder.patch_embeddings[0])
    if pixel_values.ndim != 4 or channels not in (None, pixel_values.shape[1]):
        raise ValueError(
            f"pixel_values must have the shape (batch, num_channels={channels}, height, width), got "
            f"{tuple(pixel_values.shape)}. from_pretrained(..., num_channels=...) loads for another number"
        )
    if must_trace(pixel_values):
        return
    smallest = smallest_side(model.config)
    if min(pixel_values.shape[2:]) < smallest:
        raise ValueError(
            f"pixel_values must be at least {smallest} pixels high and wide, got {tuple(pixel_values.shape[2:])}: "
            "hf_segformer.inference.segment pads smaller images, and so does the processor's do_pad with pad_size"
        )


def _input_channels(embedding: nn.Module) -> int | None:
    """Channels that the first convolution takes, also where another one was put in its place; None if unknown."""
    projection: Any = getattr(embedding, "proj", embedding)
    if not hasattr(projection, "in_channels"):
        projection = next((m for m in projection.modules() if isinstance(m, nn.Conv2d)), None)
    return getattr(projection, "in_channels", None)


def check_feature_maps(head: Any, feature_maps: Sequence[torch.Tensor]) -> None:
    """Check what enters the decode head.

    Args:
        head: `SegformerDecodeHead`.
        feature_maps: What should be one map (B, C, H, W) for each stage.

    Raises:
        ValueError: There is not one map for each stage, or one has another width than its stage.
    """
    widths = [getattr(getattr(stage, "proj", None), "in_features", None) for stage in head.linear_c]
    fits = isinstance(feature_maps, Sequence) and len(feature_maps) == len(widths)
    if fits and all(_is_map(m, w) for m, w in zip(feature_maps, widths, strict=True)):
        return
    got = [tuple(getattr(m, "shape", ())) for m in feature_maps] if isinstance(feature_maps, Sequence) else []
    raise ValueError(
        f"feature_maps must be {len(widths)}, one (B, C, H, W) for each stage with C = {widths}, stage 1 first, "
        f"got {len(got)} of shapes {got}"
    )


def _is_map(feature_map: torch.Tensor, width: int | None) -> bool:
    return isinstance(feature_map, torch.Tensor) and feature_map.ndim == 4 and width in (None, feature_map.shape[1])
