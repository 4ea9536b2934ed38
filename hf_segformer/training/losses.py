# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Training losses as (sum, count), so that a loop can divide by the count over all processes and micro-batches."""

import torch

from ..functional_segformer import upsample_cross_entropy_sum


def count_pixels(labels: torch.Tensor, ignore_index: int = 255, average: str = "valid") -> torch.Tensor:
    """Number of pixels a loss is averaged over, known before the forward pass.

    Args:
        labels: (B, H, W) int64.
        ignore_index: Label of pixels without a class.
        average: "valid" counts pixels with a class (`transformers`), "all" counts every pixel (NVlabs,
            mmsegmentation).

    Returns:
        Scalar int64.

    Raises:
        ValueError: `average` is neither.
    """
    if average not in ("valid", "all"):
        raise ValueError(f"average must be 'valid' or 'all', got {average!r}")
    if average == "all":
        return torch.tensor(labels.numel(), device=labels.device)
    return (labels != ignore_index).sum()


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """Cross-entropy of bilinearly upsampled logits, summed over valid pixels.

    Args:
        logits: (B, K, h, w) at the network's resolution.
        labels: (B, H, W) int64.
        ignore_index: Label of pixels without a class.

    Returns:
        Scalar, float32 or wider.
    """
    return upsample_cross_entropy_sum(logits, labels, ignore_index)[0]
