# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether Python may look at the values of a tensor."""

import torch
from torch import Tensor


def must_trace(values: Tensor) -> bool:
    """Whether values cannot be looked at: while compiling, exporting or tracing, in `torch.func`, in subclasses."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or values.is_meta:
        return True
    if torch._C._functorch.is_functorch_wrapped_tensor(values):
        return True
    return type(values) not in (Tensor, torch.nn.Parameter)
