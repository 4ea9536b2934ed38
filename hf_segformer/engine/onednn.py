# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers of inference on a CPU through oneDNN's kernels, which come with PyTorch for x86.

PyTorch gives float32 matrix products to MKL; oneDNN's take 5 to 60 % less time for SegFormer's shapes, depending on
the processor (`python -m hf_segformer.benchmark.constants --products`), and can apply GELU to a convolution's result
while that is in a register. The operators are those that `torch.compile` calls. It packs weights for them; here they
get the weights as they are, at each call, so that nothing can be out of date.

Products of whole feature maps are written as convolutions for those who run an ONNX file.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .allocator import keep_freed_memory
from .eligibility import Part, no_exact_gelu, no_onednn, no_onednn_linear, no_onnx_export
from .seam import accelerated, implements, note


@accelerated
def linear(module: Part, values: Tensor) -> Tensor:
    """What `module(values)` gives.

    Args:
        module: A Linear, or what stands in its place.
        values: (..., C_in) of the module's precision.
    """
    return module(values)


@implements("linear", unless=no_onednn_linear)
def onednn_linear(module: Part, values: Tensor) -> Tensor:
    """A plain Linear by oneDNN."""
    return _product(values, module.weight, module.bias)


def matrix_product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, through oneDNN in inference on a CPU.

    Args:
        values: (..., C_in).
        weight: (C_out, C_in).
        bias: (C_out,) or None.
    """
    return F.linear(values, weight, bias) if no_onednn(values, weight, bias) else _product(values, weight, bias)


def _product(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    keep_freed_memory()
    # Strided operands would be computed by a reference implementation a thousand times slower.
    return torch.ops.mkldnn._linear_pointwise(values.contiguous(), weight.contiguous(), bias, "none", [], "")


def pixel_product(feature_map: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`matrix_product`, in an ONNX file written as a 1x1 convolution.

    Between other convolutions that keeps the map in the layout of ONNX Runtime's kernels, which then resize it, add to
    it and activate it without a pass of its own. In PyTorch, compiled or not, a product of matrices is faster.

    Args:
        feature_map: (B, H, W, C_in).
        weight: (C_out, C_in).
        bias: (C_out,) or None.
    """
    if no_onnx_export(feature_map):
        return matrix_product(feature_map, weight, bias)
    return F.conv2d(feature_map.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def depthwise_gelu(convolution: nn.Conv2d, activation: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """`activation(convolution(image))`, in one pass where the activation is the exact GELU.

    Args:
        convolution: Plain depthwise convolution, as `SegformerDWConv` has it.
        activation: What follows it, known to have no hooks.
        image: (B, C, H, W), channels-last in memory, without gradients.
    """
    weight, bias = convolution.weight, convolution.bias
    if refusal := no_exact_gelu(activation) or no_onednn(image, weight, bias):
        note(f"convolution and activation one after another: {refusal}")
        return activation(convolution(image))
    shape = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
    return torch.ops.mkldnn._convolution_pointwise(image, weight, bias, *shape, "gelu", [], "none")
