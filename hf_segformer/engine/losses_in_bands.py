# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of pixels, a band of rows at a time.

Shapes: B images, K classes, R rows of a slab, W pixels of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scores.bilinear import BilinearAxis, Slab, bands, on_cpu


def losses_in_bands(wide: Tensor, rows: BilinearAxis, slab: Slab, target: Tensor) -> Tensor:
    """Losses (B, R, W) of a slab's R rows of pixels at the given target (B, R, W)."""
    losses = torch.empty_like(target, dtype=wide.dtype)
    for band, scores in bands(wide, rows, slab):
        part = slice(band.start - slab.pixels.start, band.stop - slab.pixels.start)
        wanted = target[:, None, part]
        if scores.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(scores, wanted.to(scores.dtype), reduction="none")
        else:
            loss = -over_classes(torch.log_softmax, scores).gather(1, wanted)
        losses[:, part] = loss[:, 0]
    return losses


def softmax_layout(logits: Tensor) -> torch.memory_format:
    # The CPU's softmax wants many classes innermost, few outermost.
    return torch.channels_last if on_cpu(logits) and logits.shape[1] >= 32 else torch.contiguous_format


def over_classes(function: Callable[..., Tensor], scores: Tensor) -> Tensor:
    """Apply softmax or log_softmax along dimension 1 in the scores' own layout (they would copy to contiguous)."""
    if scores.is_contiguous():
        return function(scores, 1)
    return function(scores.permute(0, 2, 3, 1), 3).permute(0, 3, 1, 2)
