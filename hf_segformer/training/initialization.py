# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Initial weights of the published training runs, and encoders pretrained on ImageNet."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..checkpoints.files import read_checkpoint
from ..checkpoints.layouts import ConversionReport
from ..checkpoints.network import convert_state_dict

if TYPE_CHECKING:
    from ..modeling_segformer import SegformerForSemanticSegmentation


@torch.no_grad()
def initialize_as_published(model: SegformerForSemanticSegmentation, flavor: str = "nvlabs") -> None:
    """Initialise a fresh segmentation model in place, as its authors did.

    | part | nvlabs | mmseg |
    |--|--|--|
    | encoder Linear | normal, standard deviation 0.02 | the same, but for the next two |
    | query, key, value | normal, standard deviation 0.02 | Xavier uniform of the three as one (3C, C) matrix |
    | Mix-FFN Linear | normal, standard deviation 0.02 | as a 1x1 convolution |
    | encoder convolution | normal, variance 2 / (kernel area x output channels / groups) | the same |
    | LayerNorm, BatchNorm | 1, bias 0 | the same |
    | head projections | PyTorch's default, bias too | Kaiming normal, fan out |
    | head fusion | Kaiming normal, fan out | the same |
    | classifier | PyTorch's default, bias too | normal, standard deviation 0.01, bias 0 |

    Other biases are 0; normal distributions of Linear layers are truncated at 2. `transformers` draws everything from
    a normal distribution with standard deviation 0.02, which trains more slowly from scratch. Draws from PyTorch's
    global generator.

    Args:
        model: A `SegformerForSemanticSegmentation`.
        flavor: "nvlabs" or "mmseg".

    Raises:
        ValueError: There is no such flavor.

    Source: NVlabs/SegFormer, mix_transformer.py and segformer_head.py; mmsegmentation, `MixVisionTransformer`,
    `SegformerHead` and mmcv's `ConvModule`.
    """
    if flavor not in ("nvlabs", "mmseg"):
        raise ValueError(f"flavor must be nvlabs or mmseg, got {flavor!r}")
    _initialize_encoder(model.segformer)
    if flavor == "mmseg":
        _change_encoder_to_mmseg(model.segformer)
    head: Any = model.decode_head
    for module in head.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
            module.reset_parameters()
    nn.init.kaiming_normal_(head.linear_fuse.weight, mode="fan_out", nonlinearity="relu")
    if flavor == "mmseg":
        for projection in head.linear_c:
            nn.init.kaiming_normal_(projection.proj.weight, mode="fan_out", nonlinearity="relu")
            if projection.proj.bias is not None:
                nn.init.zeros_(projection.proj.bias)
        nn.init.normal_(head.classifier.weight, std=0.01)
        nn.init.zeros_(head.classifier.bias)


def _initialize_encoder(encoder: nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            assert module.bias is not None  # as all convolutions of the encoder have it
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def _change_encoder_to_mmseg(encoder: Any) -> None:
    """What `nn.MultiheadAttention`'s joint matrix and 1x1 convolutions in place of Linear make different."""
    for layer in (layer for stage in encoder.encoder.block for layer in stage):
        attention = layer.attention.self
        for projection in (attention.query, attention.key, attention.value):
            bound = math.sqrt(6 / (4 * projection.in_features))
            nn.init.uniform_(projection.weight, -bound, bound)
        for dense in (layer.mlp.dense1, layer.mlp.dense2):
            nn.init.normal_(dense.weight, std=math.sqrt(2 / dense.out_features))


def load_encoder(
    model: SegformerForSemanticSegmentation, source: str | Path, revision: str | None = None
) -> ConversionReport:
    """Put pretrained weights into a segmentation model's encoder; its decode head stays as it is.

    Args:
        model: A `SegformerForSemanticSegmentation`.
        source: File, folder or Hub id of a checkpoint of any known layout: an encoder alone, with an ImageNet
            classifier or with a decode head, which are left out.
        revision: Branch, tag or commit on the Hub.

    Returns:
        What the checkpoint is.

    Raises:
        ValueError: The source is no SegFormer, or its encoder has another size than the model's; names the difference.
    """
    checkpoint = read_checkpoint(source, revision)
    try:
        state_dict, report = convert_state_dict(checkpoint.state_dict, config=checkpoint.config)
    except ValueError as error:
        raise ValueError(f"encoder {source}: {error}") from error
    names = ("hidden_sizes", "depths", "patch_sizes", "sr_ratios", "mlp_ratios", "num_attention_heads", "num_channels")
    wrong = []
    for name in names:
        found, wanted = report.architecture.get(name), getattr(model.config, name)
        found, wanted = ([value] if isinstance(value, int) else list(value or []) for value in (found, wanted))
        if found and found != wanted:
            wrong.append(f"{name} {found} instead of {wanted}")
    if wrong:
        size = f" ({report.variant})" if report.variant else ""
        raise ValueError(f"encoder {source}{size} does not fit the model: {', '.join(wrong)}")
    weights = {name.removeprefix("segformer."): tensor for name, tensor in state_dict.items()}
    model.segformer.load_state_dict({name: t for name, t in weights.items() if name.startswith("encoder.")})
    return report
