# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The Mix-FFN, some rows or images at a time on a CPU, by a kernel on a GPU, for those who run an ONNX file.

Its hidden maps are the largest of the encoder: 33 MB each for two images in stage 1 of B2. Such blocks come from the
system page by page, which takes longer than the arithmetic on them. In inference a band of rows at a time goes through
all three layers, so that no hidden map exists. In training some images at a time do. Of the three hidden maps two are
kept: GELU is computed again in the backward pass, and its gradient replaces the one it is computed from. Linear layers
are differentiated as 1x1 convolutions, whose gradients oneDNN computes.

Shapes: B images, H W height and width of the map, C its channels, E those of the hidden map, N = H*W tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .allocator import keep_freed_memory
from .eligibility import (
    Part,
    mix_ffn_parameters,
    no_convolution_in_onnx,
    no_depthwise_kernel,
    no_mix_ffn_in_bands,
    no_mix_ffn_training,
)
from .kernel_choice import choose
from .onednn import depthwise_gelu, matrix_product, pixel_product
from .seam import implements

# Bytes of a hidden map that inference works on at a time. Found, like the next, by
# `python -m hf_segformer.benchmark.constants`.
_BAND_BYTES = 8 << 20
# Bytes of a hidden map to hold at a time in training: far enough below the 32 MiB from which glibc asks the system for
# each block.
_CHUNK_BYTES = 18 << 20


@implements("SegformerMixFFN.forward", unless=no_mix_ffn_in_bands)
def feed_forward_in_bands(ffn: Part, tokens: Tensor, size: Sequence[int]) -> Tensor:
    """One image and band of rows at a time: the hidden map is never held.

    The convolution sees one row beyond each end of a band, so those are computed twice.
    """
    keep_freed_memory()
    feature_map = tokens.reshape(len(tokens), *size, tokens.shape[2])  # (B, H, W, C)
    batch, height, width, _ = feature_map.shape
    row_bytes = width * ffn.dense1.out_features * tokens.element_size()
    bands = max(-(-height * row_bytes // _BAND_BYTES), 1)
    if bands == 1 and batch == 1:
        return _band(ffn, feature_map, slice(None)).reshape(tokens.shape)
    result = torch.empty_like(feature_map)
    step = max(-(-height // bands), 1)
    for image, output in zip(feature_map.split(1), result.split(1), strict=True):
        for top in range(0, height, step):
            bottom, above, below = min(top + step, height), max(top - 1, 0), min(top + step + 1, height)
            rows = slice(top - above, bottom - above)
            output[:, top:bottom] = _band(ffn, image[:, above:below], rows)
    return result.reshape(tokens.shape)


def _band(ffn: Part, feature_map: Tensor, rows: slice) -> Tensor:
    """Some rows of the result for some rows of one image."""
    hidden = _as_image(matrix_product(feature_map, ffn.dense1.weight, ffn.dense1.bias))
    hidden = _as_tokens(depthwise_gelu(ffn.dwconv.dwconv, ffn.intermediate_act_fn, hidden))
    return matrix_product(hidden[:, rows], ffn.dense2.weight, ffn.dense2.bias)


@implements("SegformerMixFFN.forward", unless=no_mix_ffn_training)
def feed_forward_in_chunks(ffn: Part, tokens: Tensor, size: Sequence[int]) -> Tensor:
    """A training step, some images at a time."""
    keep_freed_memory()
    feature_map = tokens.reshape(len(tokens), *size, tokens.shape[2])
    return MixFeedForward.apply(feature_map, *mix_ffn_parameters(ffn)).reshape(tokens.shape)


@implements("SegformerMixFFN.forward", unless=no_depthwise_kernel)
def feed_forward_by_kernel(ffn: Part, tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Convolution and activation by one kernel of a GPU, where that was seen to agree and to be faster."""
    hidden, convolution = ffn.dense1(tokens), ffn.dwconv.dwconv

    def convolve_and_activate(feature_map: Tensor, *_: Tensor) -> Tensor:
        return ffn.intermediate_act_fn(_as_tokens(convolution(_as_image(feature_map))))

    feature_map = hidden.reshape(len(hidden), *size, hidden.shape[2])
    if hidden.dtype == convolution.weight.dtype:
        parameters = convolution.weight, convolution.bias
        feature_map = choose("depthwise_gelu", convolve_and_activate, feature_map, *parameters)
    else:
        feature_map = convolve_and_activate(feature_map)
    return ffn.dropout(ffn.dense2(ffn.dropout(feature_map.reshape(hidden.shape))))


@implements("SegformerMixFFN.forward", unless=no_convolution_in_onnx)
def feed_forward_in_onnx(ffn: Part, tokens: Tensor, size: Sequence[int]) -> Tensor:
    """The layer before the convolution is written as one as well, and no layout changes between them.

    See `pixel_product`. Reshaping between two transpositions would keep ONNX Runtime from joining them.
    """
    batch, points, channels = tokens.shape
    hidden = pixel_product(tokens.reshape(batch, *size, channels), ffn.dense1.weight, ffn.dense1.bias)
    hidden = ffn.intermediate_act_fn(_as_tokens(ffn.dwconv.dwconv(_as_image(hidden))))
    hidden = hidden.reshape(batch, points, ffn.dense1.out_features)
    return ffn.dropout(ffn.dense2(ffn.dropout(hidden)))


class MixFeedForward(torch.autograd.Function):
    """Linear layer, 3x3 depthwise convolution, exact GELU, linear layer: (B, H, W, C) to (B, H, W, C).

    Inputs: tokens (B, H, W, C); weight (E, C) and bias (E,); kernel (E, 1, 3, 3) and bias (E,); weight (C, E) and bias
    (C,). A second derivative is that of the plain expression.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor,
        kernel_bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
    ) -> Tensor:
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # to be asked for once only: gradient checkpointing computes them at that moment
        inputs, kept = saved[:7], saved[7:]
        if torch.is_grad_enabled():
            return _differentiable_gradients(inputs, ctx.needs_input_grad, gradient)
        tokens, weight, _, kernel, _, out_weight, _ = inputs
        wants_tokens, *wants_parameters = ctx.needs_input_grad
        wants = [wants_parameters[index : index + 2] for index in (0, 2, 4)]  # weight and bias of each layer
        needs_hidden = wants_tokens or any(wants[0])
        needs_mixed = needs_hidden or any(wants[1])
        grad_tokens = torch.empty_like(tokens) if wants_tokens else None
        sums: list[Tensor | None] = [None] * 6
        parts = zip(tokens.split(ctx.step), gradient.split(ctx.step), kept[::2], kept[1::2], strict=True)
        for index, (part, flowing, hidden, mixed) in enumerate(parts):
            flowing, part = _as_image(flowing.contiguous()), _as_image(part)
            activated = F.gelu(mixed)
            flowing, *last = _pointwise_gradients(flowing, activated, out_weight, [needs_mixed, *wants[2]])
            middle: list[Any] = [None, None]
            first: list[Any] = [None, None]
            if needs_mixed:
                torch.ops.aten.gelu_backward.grad_input(flowing, mixed, grad_input=flowing)
                flowing, *middle = _depthwise_gradients(flowing, hidden, kernel, [needs_hidden, *wants[1]])
            if needs_hidden:
                flowing, *first = _pointwise_gradients(flowing, part, weight, [wants_tokens, *wants[0]])
            if grad_tokens is not None:
                grad_tokens[index * ctx.step : (index + 1) * ctx.step] = _as_tokens(flowing)
            added = [*first, *middle, *last]
            sums = [more if total is None else total.add_(more) for total, more in zip(sums, added, strict=True)]
        return grad_tokens, *sums


def _differentiable_gradients(
    inputs: Sequence[Tensor], wanted: Sequence[bool], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients with a graph of their own, for a second derivative."""
    tokens, weight, bias, kernel, kernel_bias, out_weight, out_bias = inputs
    hidden = _as_image(F.linear(tokens, weight, bias))
    mixed = F.conv2d(hidden, kernel, kernel_bias, padding=1, groups=len(kernel))
    result = F.linear(_as_tokens(F.gelu(mixed)), out_weight, out_bias)
    chosen = [given for given, wants in zip(inputs, wanted, strict=True) if wants]
    gradients = iter(torch.autograd.grad(result, chosen, gradient, create_graph=True))
    return tuple(next(gradients) if wants else None for wants in wanted)


def _pointwise_gradients(gradient: Tensor, image: Tensor, weight: Tensor, wanted: list[bool]) -> list[Any]:
    """Gradients of a linear layer's input, weight and bias."""
    geometry = [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    of_image, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, image, weight[:, :, None, None], [len(weight)], *geometry, wanted
    )
    return [of_image, of_weight.flatten(1) if wanted[1] else None, of_bias]


def _depthwise_gradients(gradient: Tensor, image: Tensor, kernel: Tensor, wanted: list[bool]) -> list[Any]:
    """Gradients of the depthwise convolution's input, kernel and bias."""
    geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], len(kernel)
    return list(torch.ops.aten.convolution_backward(gradient, image, kernel, [len(kernel)], *geometry, wanted))


def _as_image(tokens: Tensor) -> Tensor:
    return tokens.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


def _as_tokens(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
