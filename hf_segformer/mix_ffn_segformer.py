# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The Mix-FFN's training step on a CPU, some images at a time.

Its hidden maps are the largest of the encoder: 33 MB each for two images in stage 1 of B2. Such blocks come from the
system page by page, which takes longer than the arithmetic on them; some images at a time they stay smaller. Of the
three hidden maps two are kept: GELU is computed again in the backward pass, and its gradient replaces the one it is
computed from. Linear layers are differentiated as 1x1 convolutions, whose gradients oneDNN computes.

Shapes: B images, H W height and width of the map, C its channels, E those of the hidden map.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .onednn_segformer import matrix_product

# Bytes of a hidden map to hold at a time: far enough below the 32 MiB from which glibc asks the system for each block.
_CHUNK_BYTES = 18 << 20


class MixFeedForward(torch.autograd.Function):
    """Linear layer, 3x3 depthwise convolution, exact GELU, linear layer: (B, H, W, C) to (B, H, W, C).

    Inputs: tokens (B, H, W, C); weight (E, C) and bias (E,); kernel (E, 1, 3, 3) and bias (E,); weight (C, E) and bias
    (C,). A second derivative is that of the plain expression.
    """

    @staticmethod
    def forward(ctx, tokens, weight, bias, kernel, kernel_bias, out_weight, out_bias):
        result, kept = torch.empty_like(tokens, memory_format=torch.contiguous_format), []
        ctx.step = max(_CHUNK_BYTES // max(tokens[0, :, :, 0].numel() * len(weight) * tokens.element_size(), 1), 1)
        for part, output in zip(tokens.split(ctx.step), result.split(ctx.step), strict=True):
            hidden = _as_image(matrix_product(part, weight, bias))
            mixed = F.conv2d(hidden, kernel, kernel_bias, padding=1, groups=len(kernel))
            output.copy_(matrix_product(_as_tokens(F.gelu(mixed)), out_weight, out_bias))
            kept += [hidden, mixed]
        ctx.save_for_backward(tokens, weight, bias, kernel, kernel_bias, out_weight, out_bias, *kept)
        return result

    @staticmethod
    def backward(ctx, gradient):
        saved = ctx.saved_tensors  # to be asked for once only: gradient checkpointing computes them at that moment
        inputs, kept = saved[:7], saved[7:]
        if torch.is_grad_enabled():
            return _differentiable_gradients(inputs, ctx.needs_input_grad, gradient)
        tokens, weight, _, kernel, _, out_weight, _ = inputs
        wants_tokens, *wants_parameters = ctx.needs_input_grad
        wants = [wants_parameters[index : index + 2] for index in (0, 2, 4)]  # weight and bias of each layer
        needs_hidden = wants_tokens or any(wants[0])
        needs_mixed = needs_hidden or any(wants[1])
        grad_tokens, sums = torch.empty_like(tokens) if wants_tokens else None, [None] * 6
        parts = zip(tokens.split(ctx.step), gradient.split(ctx.step), kept[::2], kept[1::2], strict=True)
        for index, (part, flowing, hidden, mixed) in enumerate(parts):
            flowing, part = _as_image(flowing.contiguous()), _as_image(part)
            activated = F.gelu(mixed)
            flowing, *last = _pointwise_gradients(flowing, activated, out_weight, [needs_mixed, *wants[2]])
            middle = first = [None, None]
            if needs_mixed:
                torch.ops.aten.gelu_backward.grad_input(flowing, mixed, grad_input=flowing)
                flowing, *middle = _depthwise_gradients(flowing, hidden, kernel, [needs_hidden, *wants[1]])
            if needs_hidden:
                flowing, *first = _pointwise_gradients(flowing, part, weight, [wants_tokens, *wants[0]])
            if wants_tokens:
                grad_tokens[index * ctx.step : (index + 1) * ctx.step] = _as_tokens(flowing)
            added = [*first, *middle, *last]
            sums = [more if total is None else total.add_(more) for total, more in zip(sums, added, strict=True)]
        return grad_tokens, *sums


def _differentiable_gradients(inputs, wanted, gradient):
    """Gradients with a graph of their own, for a second derivative."""
    tokens, weight, bias, kernel, kernel_bias, out_weight, out_bias = inputs
    hidden = _as_image(F.linear(tokens, weight, bias))
    mixed = F.conv2d(hidden, kernel, kernel_bias, padding=1, groups=len(kernel))
    result = F.linear(_as_tokens(F.gelu(mixed)), out_weight, out_bias)
    chosen = [given for given, wants in zip(inputs, wanted, strict=True) if wants]
    gradients = iter(torch.autograd.grad(result, chosen, gradient, create_graph=True))
    return tuple(next(gradients) if wants else None for wants in wanted)


def _pointwise_gradients(gradient: Tensor, image: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    """Gradients of a linear layer's input, weight and bias."""
    geometry = [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    of_image, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, image, weight[:, :, None, None], [len(weight)], *geometry, wanted
    )
    return [of_image, of_weight.flatten(1) if wanted[1] else None, of_bias]


def _depthwise_gradients(gradient: Tensor, image: Tensor, kernel: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    """Gradients of the depthwise convolution's input, kernel and bias."""
    geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], len(kernel)
    return list(torch.ops.aten.convolution_backward(gradient, image, kernel, [len(kernel)], *geometry, wanted))


def _as_image(tokens: Tensor) -> Tensor:
    return tokens.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


def _as_tokens(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
