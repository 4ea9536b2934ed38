# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The decode head in its textbook form, written down anew."""

import pytest
import torch
from torch.nn import functional as F

from hf_segformer import SegformerForSemanticSegmentation

DECODE = "SegformerDecodeHead.decode"
HEADS = pytest.mark.parametrize("conv_width", [None, 20], ids=["mlp", "conv"])


def make(tiny_config, randomize, conv_width=None, **fields):
    config = tiny_config(
        conv_decoder_hidden_size=conv_width, classifier_dropout_prob=0.0, drop_path_rate=0.0, **fields
    )
    return randomize(SegformerForSemanticSegmentation(config))


def textbook(head, feature_maps, conv):
    """Project, upsample, concatenate, fuse, normalise, classify, with nothing but functional operations."""
    projected = []
    for project, feature_map in zip(head.linear_c, feature_maps, strict=True):
        bias = None if conv else project.proj.bias
        x = F.conv2d(feature_map, project.proj.weight[..., None, None], bias)
        if conv:
            x = normalise(project.batch_norm, x).relu()
        projected.insert(0, F.interpolate(x, size=feature_maps[0].shape[2:], mode="bilinear", align_corners=False))
    fused = normalise(head.batch_norm, F.conv2d(torch.cat(projected, 1), head.linear_fuse.weight)).relu()
    return F.conv2d(fused, head.classifier.weight, head.classifier.bias)


def normalise(norm, x):
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
