# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of bilinearly upsampled logits: the training loss.

Shapes: B images, K classes, (h, w) points of the logits, (H, W) pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..engine import accelerated
from ..tracing import must_trace
from .bilinear import compute_dtype, on_cpu
from .targets import check_labels, check_logits, check_loss_arguments, target_and_weights, valid_pixels


def upsample_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255, average: str = "valid") -> Tensor:
    """Mean softmax cross-entropy of bilinearly upsampled logits, without the upsampled scores.

    Equal in value and gradient to `F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels)`,
    except that a batch without a valid pixel gives zero with zero gradients. With one class, the binary cross-entropy
    of the upsampled scores.

    Args:
        logits: (B, K, h, w) scores of any floating-point type; computed in float32 (float64 for float64).
        labels: (B, H, W) integer labels in [0, K), for one class integers or floats in [0, 1] (a soft mask), or
            `ignore_index`.
        ignore_index: Label of pixels that carry no loss. For one class, negative labels are ignored too.
        average: "valid" divides by the number of valid pixels, as `transformers` does; "all" by the number of pixels,
            as the original SegFormer code and mmsegmentation do.

    Returns:
        Scalar loss, float32 (float64 for float64 logits).

    Raises:
        ValueError: If `average` is unknown, the shapes do not fit, or (on a CPU) a label is out of range.
    """
    if average not in ("valid", "all"):
        raise ValueError(f'average must be "valid" or "all", got {average!r}')
    total, count = upsample_cross_entropy_sum(logits, labels, ignore_index)
    return total / (count.clamp(min=1) if average == "valid" else max(labels.numel(), 1))


def upsample_cross_entropy_sum(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the softmax cross-entropy of bilinearly upsampled logits over the valid pixels, and their number.

    Sums and numbers can be added over ranks and micro-batches before the division. The gradient with respect to the
    logits is formed together with the loss, band by band, and kept at the logits' size; it cannot be differentiated
    again. While compiling or exporting, the plain expression is traced.

    Args:
        logits: (B, K, h, w) scores of any floating-point type; computed in float32 (float64 for float64).
        labels: (B, H, W) integer labels in [0, K), for one class integers or floats in [0, 1] (a soft mask), or
            `ignore_index`.
        ignore_index: Label of pixels that carry no loss. For one class, negative labels are ignored too.
        class_weights: Optional (K,) factor of the loss of each class's pixels (one class: (2,), for labels 0 and 1; in
            between, the factor in between). It does not change the count.

    Returns:
        Scalar sum of the losses, float32 (float64 for float64 logits), and scalar int64 number of valid pixels.

    Raises:
        ValueError: If the shapes do not fit, or (on a CPU, where looking is cheap) a label is out of range.
    """
    check_logits(logits)
    check_loss_arguments(logits, labels, ignore_index, class_weights)
    labels = labels if labels.is_floating_point() else labels.long()
    if on_cpu(labels) and not must_trace(logits):
        check_labels(labels, logits.shape[1], ignore_index)
    total = cross_entropy_sum(logits, labels, ignore_index, class_weights)
    return total, valid_pixels(labels, logits.shape[1], ignore_index).sum()


@accelerated
def cross_entropy_sum(logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
    """Sum of the losses of `upsample_cross_entropy_sum`, from arguments that are checked; all scores are held.

    Args:
        logits: (B, K, h, w) scores.
        labels: (B, H, W) int64 labels, for one class floats too.
        ignore_index: Label of pixels that carry no loss.
        class_weights: Optional (K,) factors, (2,) for one class.
    """
    scores = logits.to(compute_dtype(logits))
    scores = F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    target, weights = target_and_weights(labels, logits, ignore_index, class_weights)
    if logits.shape[1] == 1:
        losses = F.binary_cross_entropy_with_logits(scores[:, 0], target.to(scores.dtype), reduction="none")
    else:
        losses = F.cross_entropy(scores, target, reduction="none")
    return (losses * weights).sum()
