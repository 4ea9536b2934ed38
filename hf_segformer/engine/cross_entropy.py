# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of upsampled logits without the (K, H, W) score tensor, its gradient formed in the same pass.

Shapes: B images, K classes, (h, w) points of the logits, (H, W) pixels; points and slabs as in `scores.bilinear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..scores.bilinear import (
    BilinearAxis,
    Slab,
    bands,
    bands_backward,
    bilinear_axis,
    compute_dtype,
    image_slabs,
    on_cpu,
    widen,
    widen_backward,
)
from ..scores.targets import target_and_weights
from .allocator import keep_freed_memory
from .eligibility import no_bands_of_pixels
from .kernel_choice import choose
from .losses_in_bands import losses_in_bands, over_classes, softmax_layout
from .seam import implements


@implements("cross_entropy_sum", unless=no_bands_of_pixels)
def cross_entropy_in_bands(logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
    """Sum of the losses, a band of pixels at a time or by a kernel of a GPU; it cannot be differentiated twice."""
    keep_freed_memory()
    if torch.is_grad_enabled() and logits.requires_grad:
        return _UpsampleCrossEntropy.apply(logits, labels, ignore_index, class_weights)
    return _loss_and_gradient(logits.detach(), labels, ignore_index, class_weights, False)[0]


class _UpsampleCrossEntropy(torch.autograd.Function):
    """`_cross_entropy` whose gradient is computed in the forward pass, while a band's softmax is at hand."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
        # In float32 even for half-precision logits: the gradient of a sum over pixels is scaled down only afterwards.
        total, gradient = _loss_and_gradient(logits, labels, ignore_index, class_weights, True)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        # Gradients are recorded only when the backward pass itself shall be differentiated.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "upsample_cross_entropy has no second derivative; within hf_segformer.engine.off() it has one"
            )
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_output).to(ctx.dtype), None, None, None


def _loss_and_gradient(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
    """`_cross_entropy`, by a kernel where there is one for it."""
    with torch.autocast(logits.device.type, enabled=False):
        if logits.shape[1] == 1:
            return _cross_entropy(logits, *arguments)
        return choose("upsample_cross_entropy", _cross_entropy, logits, *arguments, by_time=False)


def _cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses and, if wanted, its gradient with respect to the logits, by PyTorch's operations."""
    dtype, width = compute_dtype(logits), labels.shape[2]
    total = torch.zeros((), dtype=dtype, device=logits.device)
    gradient = torch.zeros_like(logits, dtype=dtype) if wants_gradient else None
    rows, columns = (
        bilinear_axis(logits.shape[2], labels.shape[1], logits),
        bilinear_axis(logits.shape[3], width, logits),
    )
    for images, slab in image_slabs(logits, rows, width):
        target, weights = target_and_weights(labels[images, slab.pixels], logits, ignore_index, class_weights)
        wide = widen(logits[images, :, slab.points].to(dtype), width, softmax_layout(logits))
        if gradient is None:
            losses = losses_in_bands(wide, rows, slab, target)
        else:
            losses, wide_gradient = _losses_and_gradient(wide, rows, slab, target, weights)
            gradient[images, :, slab.points] += widen_backward(wide_gradient, columns)
        total += (losses * weights).sum()
    return total, gradient


def _losses_and_gradient(
    wide: Tensor, rows: BilinearAxis, slab: Slab, target: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`losses_in_bands`, and the gradient of their weighted sum with respect to `wide`."""
    wide_gradient, chosen = torch.zeros_like(wide), torch.empty_like(target, dtype=wide.dtype)
    for band, scores in bands(wide, rows, slab):
        part = slice(band.start - slab.pixels.start, band.stop - slab.pixels.start)
        wanted = target[:, None, part]
        if scores.shape[1] == 1:
            gradient = scores.sigmoid().sub_(wanted)
        else:
            gradient = over_classes(torch.softmax, scores)
            probability = gradient.gather(1, wanted)
            chosen[:, part] = probability[:, 0]
            gradient.scatter_(1, wanted, probability - 1)
        gradient *= weights[:, None, part]
        bands_backward(wide_gradient, gradient, rows, slab, band)
    # A probability that has underflowed has lost its logarithm. (To look, another device would have to be waited for.)
    if wide.shape[1] == 1 or not on_cpu(wide) or float(chosen.min()) < torch.finfo(wide.dtype).tiny:
        return losses_in_bands(wide, rows, slab, target), wide_gradient
    return chosen.log_().neg_(), wide_gradient
