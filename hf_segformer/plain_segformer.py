# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""When algebra may go around a module's `forward`, and when a computation may be cut into pieces."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from transformers.activations import GELUActivation

from .bilinear_segformer import must_trace

# A FakeTensor does nothing of its own: it is what the module would compute with, too.
_PLAIN_TENSORS = (nn.Parameter, torch.Tensor, FakeTensor)


def is_untouched(module: nn.Module, expected_class: type[nn.Module]) -> bool:
    """Whether `module` is exactly an `expected_class`, without hooks and with its own `forward`."""
    if _class_of(module) is not expected_class or "forward" in module.__dict__:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks)


def _class_of(module: nn.Module) -> type[nn.Module]:
    # For modules of a network that holds one of them under two names `torch.export` makes stand-ins, which share all
    # attributes but have a class of their own.
    bases = type(module).__bases__
    return bases[1] if bases[0].__name__ == "AttrProxy" else type(module)


def is_plain(module: nn.Module, expected_class: type[nn.Module]) -> bool:
    """Whether computing with `module.weight` gives what calling `module` gives.

    Not so for adapters (LoRA), quantised or parametrised layers, layers with hooks or a replaced `forward`, and
    weights that are sharded (FSDP, ZeRO-3, DTensor): algebra that reads weights must call such modules instead.
    `torch.export` puts a `FakeTensor` in a weight's place; one that has tensors inside keeps its class there.

    Args:
        module: A Linear, Conv2d or BatchNorm2d, or what stands in its place.
        expected_class: The class it was built as.
    """
    if not is_untouched(module, expected_class):
        return False
    weight = module.weight
    if type(weight) not in _PLAIN_TENSORS or not weight.is_floating_point():
        return False
    if expected_class is nn.Linear:
        return weight.shape == (module.out_features, module.in_features)
    if expected_class is nn.Conv2d:
        return weight.shape == (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return weight.shape == (module.num_features,)


def is_plain_pointwise(module: nn.Module) -> bool:
    """Whether `module` is a plain 1x1 convolution: a matrix applied to each pixel."""
    if not is_plain(module, nn.Conv2d):
        return False
    return (module.kernel_size, module.stride, module.padding, module.groups) == ((1, 1), (1, 1), (0, 0), 1)


def is_plain_depthwise(module: nn.Module) -> bool:
    """Whether `module` is a plain 3x3 convolution of each channel that keeps the size."""
    if not is_plain(module, nn.Conv2d):
        return False
    shape = (module.kernel_size, module.stride, module.padding, module.dilation)
    return (
        shape == ((3, 3), (1, 1), (1, 1), (1, 1))
        and module.padding_mode == "zeros"
        and module.groups == module.in_channels == module.out_channels
    )


def is_exact_gelu(activation: object) -> bool:
    """Whether `activation` is the GELU with the error function, without hooks."""
    return is_untouched(activation, GELUActivation) and activation.act is F.gelu


def may_stream(values: torch.Tensor) -> bool:
    """Whether a computation on `values` may run piece by piece, to stay in a CPU's caches.

    Not when a gradient is wanted (pieces would all be kept), while compiling or exporting (the compiler decides),
    under autocast, or on other devices, where many small calls cost more than they save.

    Args:
        values: Input of the computation.
    """
    return not torch.is_grad_enabled() and _is_eager_on_cpu(values)


def may_train_in_pieces(values: torch.Tensor) -> bool:
    """Whether a computation on `values` and its backward pass may run piece by piece, to spare a CPU's memory.

    Not while compiling or exporting, under `torch.func`, under autocast, or on other devices.

    Args:
        values: Input of the computation.
    """
    return torch.is_grad_enabled() and _is_eager_on_cpu(values)


def _is_eager_on_cpu(values: torch.Tensor) -> bool:
    return values.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not must_trace(values)
