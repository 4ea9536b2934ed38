# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Initial weights of the published training runs."""

import math

import torch
from torch import nn


@torch.no_grad()
def initialize_as_published(model: nn.Module) -> None:
    """Initialise a fresh segmentation model in place, as the authors did.

    | part | weight | bias |
    |--|--|--|
    | encoder Linear | normal truncated at 2, standard deviation 0.02 | 0 |
    | encoder convolution | normal, variance 2 / (kernel area x output channels / groups) | 0 |
    | LayerNorm, BatchNorm | 1 | 0 |
    | head projections and classifier | PyTorch's default | PyTorch's default |
    | head fusion | Kaiming normal, fan out | none |

    `transformers` draws everything from a normal distribution with standard deviation 0.02, which trains more slowly
    from scratch. Draws from PyTorch's global generator.

    Args:
        model: A `SegformerForSemanticSegmentation`.

    Source: NVlabs/SegFormer, mix_transformer.py and segformer_head.py.
    """
    for module in model.segformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            nn.init.zeros_(module.bias)
    for module in model.decode_head.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
    nn.init.kaiming_normal_(model.decode_head.linear_fuse.weight, mode="fan_out", nonlinearity="relu")
