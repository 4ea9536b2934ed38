# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label map of bilinearly upsampled logits, optionally with the winner's softmax probability.

Shapes: B images, K classes, (h, w) points of the logits, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch.nn.functional as F
from torch import Tensor

from ..engine import accelerated
from .bilinear import finite_scores
from .targets import check_logits


@overload
def upsample_argmax(logits: Tensor, size: Sequence[int], return_confidence: Literal[False] = False) -> Tensor: ...


@overload
def upsample_argmax(
    logits: Tensor, size: Sequence[int], return_confidence: Literal[True]
) -> tuple[Tensor, Tensor]: ...


@overload
def upsample_argmax(
    logits: Tensor, size: Sequence[int], return_confidence: bool
) -> Tensor | tuple[Tensor, Tensor]: ...


def upsample_argmax(
    logits: Tensor, size: Sequence[int], return_confidence: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Label map of bilinearly upsampled logits, without the upsampled scores.

    Equal to `F.interpolate(logits, size, mode="bilinear").argmax(1)` up to the rounding of ties; with one class, to
    `sigmoid(score) > 0.5`. Half-precision logits are interpolated in float32. A NaN counts as the lowest score, an
    infinity as a very large finite one. No gradient flows.

    While compiling or exporting, the plain expression is traced, which holds all scores.

    Args:
        logits: (B, K, h, w) scores of any floating-point type and memory format.
        size: (H, W) of the label map in pixels; larger than, equal to or smaller than (h, w).
        return_confidence: Also return the softmax (one class: sigmoid) probability of each pixel's label. This needs
            every class at every pixel and takes correspondingly longer.

    Returns:
        (B, H, W) int64 labels in [0, K), or in {0, 1} for one class; with `return_confidence` a tuple of these and
        (B, H, W) float32 probabilities.

    Raises:
        ValueError: If `logits` is not a floating-point (B, K, h, w) tensor or `size` not two positive numbers.
    """
    check_logits(logits)
    if not _is_size(size):
        raise ValueError(f"size must be two positive numbers (height, width), got {size!r:.99}")
    height, width = size
    labels, confidence = label_map(logits.detach(), (height, width), return_confidence)
    return labels if confidence is None else (labels, confidence)


@accelerated
def label_map(logits: Tensor, size: tuple[int, int], return_confidence: bool) -> tuple[Tensor, Tensor | None]:
    """Labels and confidences of `upsample_argmax`, from arguments that are checked; all scores are held.

    Args:
        logits: (B, K, h, w) scores that need no gradient.
        size: (H, W) of the label map in pixels.
        return_confidence: Whether to compute the confidences.

    Returns:
        (B, H, W) int64 labels, and (B, H, W) float32 probabilities of these labels or None.
    """
    confidence: Tensor | None = None
    scores = F.interpolate(finite_scores(logits), size=size, mode="bilinear", align_corners=False)
    if scores.shape[1] == 1:
        labels, confidence = (scores[:, 0] > 0).long(), scores[:, 0].abs().sigmoid()
    else:
        labels = scores.argmax(1)
        if return_confidence:
            confidence = scores.log_softmax(1).amax(1).exp()
    return labels, confidence.float() if return_confidence and confidence is not None else None


def _is_size(size: Any) -> bool:
    try:
        return (
            len(size) == 2
            and min(size) >= 1
            and max(size) < 2**31
            and not any(isinstance(side, float) for side in size)
        )
    except TypeError:
        return False
