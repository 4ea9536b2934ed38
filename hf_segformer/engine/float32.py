# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""bfloat16 on a CPU that has no instructions for it: each part of the network is computed in float32.

There PyTorch's bfloat16 takes six to eight times float32's time. With weights and values made float32 for one part at
a time, and the result bfloat16 again, it takes float32's time, needs little more memory, and rounds less.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .eligibility import Part, no_float32_inside
from .seam import implements


def _in_float32(name: str) -> Callable:
    """Register, for an accelerated method of a part of the network, the same method of its copy in float32."""
    method = name.rpartition(".")[2]

    @implements(name, unless=no_float32_inside)
    def in_float32(part: Part, *arguments: Any, **keywords: Any) -> Any:
        given = [_cast(argument, torch.float32) for argument in arguments]
        named = {key: _cast(argument, torch.float32) for key, argument in keywords.items()}
        return _cast(getattr(_copy(part), method)(*given, **named), torch.bfloat16)

    return in_float32


def _copy(part: Part) -> Part:
    """The same modules with float32 parameters and buffers. The part itself stays as it is: others may be using it."""
    copy = part._replicate_for_data_parallel()
    copy.__dict__["replica_of"] = part  # for `explain`, and not as a module of its own
    for name, tensor in part._parameters.items():
        copy._parameters[name] = None if tensor is None else _cast(tensor.detach(), torch.float32)
    copy._buffers.update({name: _cast(tensor, torch.float32) for name, tensor in part._buffers.items()})
    copy._modules.update({name: module and _copy(module) for name, module in part._modules.items()})
    return copy


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Tensors of bfloat16 or float32, also in tuples and lists, of the given one; anything else as it is."""
    if isinstance(values, Tensor):
        return values.to(dtype) if values.dtype in (torch.bfloat16, torch.float32) else values
    return type(values)(_cast(value, dtype) for value in values) if type(values) in (tuple, list) else values


for _name in ("SegformerOverlapPatchEmbeddings.forward", "SegformerLayer.forward", "SegformerDecodeHead.decode"):
    _in_float32(_name)
