# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""What labels mean to a loss: which are valid, what they weigh, and what is said of wrong ones.

Shapes: B images, K classes, (H, W) pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tracing import must_trace
from .bilinear import compute_dtype


def valid_pixels(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Whether each pixel carries a loss, (B, H, W) bool."""
    valid = labels != ignore_index
    return valid & (labels >= 0) if classes == 1 else valid


def target_and_weights(
    labels: Tensor, logits: Tensor, ignore_index: int, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Labels with zeros where they are ignored, and the factor of each pixel's loss, zero there."""
    valid = valid_pixels(labels, logits.shape[1], ignore_index)
    target, weights = labels * valid, valid.to(compute_dtype(logits))
    return target, weights if class_weights is None else weights * weight_of(target, class_weights.to(weights))


def weight_of(target: Tensor, class_weights: Tensor) -> Tensor:
    """Weight of each pixel's class; that of a soft label lies between those of 0 and 1.

    Args:
        target: Labels of any shape, none of them ignored.
        class_weights: (K,), or (2,) for soft labels.
    """
    if target.is_floating_point():
        low, high = class_weights
        return torch.lerp(low, high, target.to(class_weights))
    return class_weights[target]


def check_label_dtype(labels: Tensor, classes: int) -> None:
    """Check that labels are integers, or belong to one logit.

    Raises:
        ValueError: Soft masks for several classes.
    """
    if labels.is_floating_point() and classes > 1:
        raise ValueError(
            f"labels must be of an integer dtype for logits of {classes} classes, each a class index (float masks are "
            f"labels for a model with num_labels=1), got {labels.dtype} of shape {tuple(labels.shape)}"
        )


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Check that labels are in range.

    Raises:
        ValueError: A label is no class and is not ignored.
    """
    last = max(classes - 1, 1)
    if not labels.numel() or (bool(labels.max() <= last) and bool(labels.min() >= 0)):
        return
    wrong = ~((labels >= 0) & (labels <= last)) & (labels != ignore_index)  # a NaN is neither
    if classes == 1:
        wrong &= ~(labels < 0)
    if wrong.any():
        raise ValueError(
            f"labels must lie in [0, {last}] (the logits have {classes} class{'es' * (classes > 1)}) or equal "
            f"ignore_index {ignore_index}, got {labels[wrong][0].item()}"
        )


def check_logits(logits: Tensor) -> None:
    """Check what comes out of the network.

    Raises:
        ValueError: No floating-point (B, K, h, w), or (not while compiling or exporting) an empty one.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be a floating-point tensor of shape (batch, classes, height, width), got {described(logits)}"
        )
    if not must_trace(logits) and 0 in logits.shape[1:]:
        raise ValueError(f"logits must have at least one class and one point, got {described(logits)}")


def check_loss_arguments(logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> None:
    """Check types and shapes of what the loss takes besides the logits.

    Raises:
        ValueError: One of them does not fit the logits.
    """
    if not isinstance(labels, Tensor) or labels.is_complex():
        raise ValueError(f"labels must be a tensor of integers (batch, height, width), got {described(labels)}")
    if not must_trace(logits) and 0 in labels.shape[1:]:
        raise ValueError(f"labels must have at least one pixel, got {described(labels)}")
    if not isinstance(ignore_index, int):
        raise ValueError(f"ignore_index must be a whole number, got {ignore_index!r:.99}")
    weights = max(logits.shape[1], 2)
    if class_weights is not None and getattr(class_weights, "shape", None) != (weights,):
        raise ValueError(f"class_weights must be a tensor of shape ({weights},), got {described(class_weights)}")
    if labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(
            f"labels must be integers of shape (batch, height, width) for logits of shape {tuple(logits.shape)}, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    check_label_dtype(labels, logits.shape[1])


def described(value: object) -> str:
    """A value in words: type and shape of tensors, the beginning of anything else."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.99}"
