# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Tensors on a CPU that pass for a GPU's."""

import torch


class OnGpu(torch.Tensor):
    """Passes for a tensor on a GPU, for conditions that look at nothing else of the device."""

    is_cuda = True
