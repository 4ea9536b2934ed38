# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers of inference on a CPU through oneDNN's kernels, which come with PyTorch for x86.

PyTorch gives float32 matrix products to MKL; oneDNN's take 5 to 60 % less time for SegFormer's shapes, the most where
a matrix is narrow, and can apply GELU to a convolution's result while that is in a register. The operators are those
that `torch.compile` calls. It packs weights for them; here they get the weights as they are, at each call, so that
nothing can be out of date. Where they are missing, or must not be used, the modules are called.

Products of whole feature maps are written as convolutions for those who run an ONNX file.
"""

import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bilinear_segformer import must_trace
from .plain_segformer import is_exact_gelu, is_plain, may_stream

# Bytes of attention weights to hold at a time.
_WEIGHTS_BYTES = 8 << 20
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

# glibc gives freed memory back to the system beyond a limit that it learns from the largest block freed so far, up to
# 32 MiB. Small networks never free one that large, and would pay for their memory anew, page by page, in each forward.
torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)


def linear(module: nn.Module, values: Tensor) -> Tensor:
    """What `module(values)` gives, through oneDNN where `module` is a plain Linear in inference on a CPU.

    Args:
        module: A Linear, or what stands in its place.
        values: (..., C_in) of the module's precision.
    """
    if is_plain(module, nn.Linear) and _knows(values, module.weight, module.bias):
        return _product(values, module.weight, module.bias)
    return module(values)


def pixel_linear(module: nn.Module, feature_map: Tensor) -> Tensor:
    """What `module(feature_map)` gives for a map that a convolution reads next: see `pixel_product`.

    Args:
        module: A Linear, or what stands in its place.
        feature_map: (B, H, W, C_in).
    """
    if is_plain(module, nn.Linear) and _exports_to_onnx(feature_map):
        return _convolve(feature_map, module.weight, module.bias)
    return module(feature_map)


def pixel_product(feature_map: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`matrix_product`, in an ONNX file written as a 1x1 convolution.

    Between other convolutions that keeps the map in the layout of ONNX Runtime's kernels, which then resize it, add to
    it and activate it without a pass of its own. In PyTorch, compiled or not, a product of matrices is faster.

    Args:
        feature_map: (B, H, W, C_in).
        weight: (C_out, C_in).
        bias: (C_out,) or None.
    """
    return (_convolve if _exports_to_onnx(feature_map) else matrix_product)(feature_map, weight, bias)


def _exports_to_onnx(values: Tensor) -> bool:
    return must_trace(values) and torch.onnx.is_in_onnx_export()


def _convolve(feature_map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(feature_map.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def matrix_product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, through oneDNN in inference on a CPU.

    Args:
        values: (..., C_in).
        weight: (C_out, C_in).
        bias: (C_out,) or None.
    """
    return (_product if _knows(values, weight, bias) else F.linear)(values, weight, bias)


def _product(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Strided operands would be computed by a reference implementation a thousand times slower.
    return torch.ops.mkldnn._linear_pointwise(values.contiguous(), weight.contiguous(), bias, "none", [], "")


def depthwise_gelu(convolution: nn.Conv2d, activation: Callable[[Tensor], Tensor], feature_map: Tensor) -> Tensor:
    """`activation(convolution(feature_map))`, in one pass where the activation is the exact GELU.

    Args:
        convolution: Plain depthwise convolution, as `SegformerDWConv` has it.
        activation: What follows it, known to have no hooks.
        feature_map: (B, C, H, W), channels-last in memory, without gradients.
    """
    weight, bias = convolution.weight, convolution.bias
    if not is_exact_gelu(activation) or not _knows(feature_map, weight, bias):
        return activation(convolution(feature_map))
    shape = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
    return torch.ops.mkldnn._convolution_pointwise(feature_map, weight, bias, *shape, "gelu", [], "none")


def prefers_explicit_attention(values: Tensor) -> bool:
    """Whether `explicit_attention` is faster than `F.scaled_dot_product_attention`.

    So it is for bfloat16 on processors without AMX, where that one takes longer than in float32.

    Args:
        values: Input of the attention layer.
    """
    return values.dtype == torch.bfloat16 and _knows(values, values, None) and not _has_amx()


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention by matrix products and softmax, some queries at a time.

    Here the scores are rounded to bfloat16 before the softmax. To lose less by it, the mean of the keys is taken off:
    it adds the same number to all scores of a query, which softmax ignores, and leaves smaller ones.

    Args:
        query: (B, A, N, D) bfloat16.
        key: (B, A, N', D).
        value: (B, A, N', D).
        scaling: Factor of the scores.

    Returns:
        (B, N, A, D).
    """
    key = key.float()
    key = ((key - key.mean(dim=2, keepdim=True)) * scaling).to(query.dtype).transpose(2, 3)
    batch, heads, queries, size = query.shape
    result = torch.empty((batch, queries, heads, size), dtype=query.dtype, device=query.device)
    step = max(_WEIGHTS_BYTES // (batch * heads * key.shape[3] * query.element_size()), 1)
    for start in range(0, queries, step):
        part = slice(start, start + step)
        weights = (query[:, :, part] @ key).softmax(dim=-1)
        result[:, part] = (weights @ value).transpose(1, 2)
    return result


def _has_amx() -> bool:
    return torch.cpu._is_amx_tile_supported()


def _knows(values: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN may compute this: inference on x86, one precision for all, which the processor has."""
    dtype = values.dtype
    return (
        may_stream(values)
        and _IS_X86
        and dtype in (torch.float32, torch.bfloat16)
        and weight.dtype == dtype
        and (bias is None or bias.dtype == dtype)
        and values.numel() > 0
        and torch.backends.mkldnn.enabled
        and _has_operators(dtype)
    )


def _has_operators(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
