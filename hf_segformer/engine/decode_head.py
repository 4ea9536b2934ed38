# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The decode heads without the concatenated feature map.

Bilinear upsampling acts on each channel alone and its weights sum to one, so it commutes with the 1x1 convolution that
fuses the stages: every stage is projected and fused by one composed matrix at its own resolution, and only the sum
exists at the resolution of stage 1. The concatenation (B, S*E, H/4, W/4) of the textbook is never built. Matrices are
composed anew in each forward, which costs little, so that no change of a weight can be missed. In the convolutional
head a ReLU follows each projection; there the fusing matrix alone is applied at the stage's resolution.

Shapes: B batch, C channels of a stage, H W height and width of the feature map at hand, S stages, E decoder width, K
classes.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tracing import must_trace
from .allocator import keep_freed_memory
from .eligibility import (
    Part,
    no_composed_head,
    no_composed_stage,
    no_folded_norm,
    no_head_in_bands,
    no_head_training_in_bands,
    no_inference_of_module,
    no_untouched,
    no_upsample_add_relu,
)
from .fused_map import NormalizeAndClassify, classify
from .kernel_choice import choose
from .onednn import linear, pixel_product
from .seam import implements, note

# 64-bit random numbers that dropout draws at a time.
_RANDOM_NUMBERS = 1 << 19


@implements("SegformerMLP.forward", unless=no_inference_of_module)
def projection(project: Part, image: Tensor) -> Tensor:
    """The textbook's, by oneDNN where the linear layer is plain."""
    batch, channels, height, width = image.shape
    projected = linear(project.proj, image.permute(0, 2, 3, 1).reshape(batch, height * width, channels))
    return projected.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


@implements("SegformerConvProjection.forward", unless=no_inference_of_module)
def conv_projection(project: Part, image: Tensor) -> Tensor:
    """The textbook's, by oneDNN where the linear layer is plain."""
    return project.activation(project.batch_norm(projection(project, image)))


@implements("SegformerDecodeHead.decode", unless=no_head_in_bands)
def head_in_bands(head: Part, feature_maps: Sequence[Tensor]) -> Tensor:
    """Logits, without a whole fused map."""
    keep_freed_memory()
    inputs, matrices, bias = _inputs_and_matrices(head, feature_maps, fold_norm=True)
    dtype = inputs[0].dtype
    # Half precision would lose digits with every summand.
    wide = torch.promote_types(dtype, torch.float32)
    coarse = [stage.to(wide) for stage in _summands(inputs[1:], matrices[1:], bias)]
    weight, bias = head.classifier.weight.flatten(1), head.classifier.bias
    return classify(inputs[0], matrices[0].to(dtype), coarse, weight, bias).permute(0, 3, 1, 2)


@implements("SegformerDecodeHead.decode", unless=no_head_training_in_bands)
def head_training_in_bands(head: Part, feature_maps: Sequence[Tensor]) -> Tensor:
    """Logits and, in the backward pass, gradients, without a whole fused map."""
    keep_freed_memory()
    inputs, matrices, bias = _inputs_and_matrices(head, feature_maps, fold_norm=False)
    tokens, norm, classifier = inputs[0], head.batch_norm, head.classifier
    matrix = matrices[0].to(tokens.dtype)
    keep, scale = _dropout_mask(head.dropout, (*tokens.shape[:3], len(matrix)))
    logits, mean, variance = NormalizeAndClassify.apply(
        *(tokens, matrix, norm.weight, norm.bias, norm.eps, keep, scale),
        *(classifier.weight.flatten(1), classifier.bias, *_summands(inputs[1:], matrices[1:], bias)),
    )
    with torch.no_grad():
        points = tokens.shape[:3].numel()
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (points / max(points - 1, 1)), norm.momentum)
        norm.num_batches_tracked += 1
    return logits.permute(0, 3, 1, 2)


@implements("SegformerDecodeHead.decode", unless=no_composed_head)
def composed_head(head: Part, feature_maps: Sequence[Tensor]) -> Tensor:
    """Logits of the sum over stages."""
    if unfolded := no_folded_norm(head.batch_norm):
        note(f"BatchNorm is computed for itself: {unfolded}")
    summands = _summands(*_inputs_and_matrices(head, feature_maps, not unfolded))
    if unfolded:
        fused = _activate(head, head.batch_norm(_upsample_and_add(*summands)))
    elif refusal := no_upsample_add_relu(head, summands):
        note(f"upsampling, sum and activation one after another: {refusal}")
        fused = _activate(head, _upsample_and_add(*summands))
    else:
        fused = choose("upsample_add_relu", _upsample_add_relu, *summands)
    return head.classifier(head.dropout(fused))


def _activate(head: Part, fused: Tensor) -> Tensor:
    if no_untouched(head.batch_norm, nn.BatchNorm2d, "") or no_untouched(head.activation, nn.ReLU, ""):
        return head.activation(fused)
    return fused.relu_()  # nothing else sees the fused map, and no gradient needs it as it was


def _inputs_and_matrices(
    head: Part, feature_maps: Sequence[Tensor], fold_norm: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What goes into each stage's matrix (B, H, W, C or E), the matrices, and the bias of their sum."""
    inputs, composed, widths = [], [], []
    for stage, (project, image) in enumerate(zip(head.linear_c, feature_maps, strict=True), start=1):
        refusal = no_composed_stage(project)
        if refusal and not no_untouched(project, "SegformerMLP.forward", ""):
            note(f"stage {stage} is projected for itself: {refusal}")
        composed.append(not refusal and _pays_to_compose(image))
        inputs.append((image if composed[-1] else project(image)).permute(0, 2, 3, 1))
        widths.append(project.proj.out_features if composed[-1] else inputs[-1].shape[3])
    return inputs, *_compose(head, composed, widths, fold_norm)


def _pays_to_compose(image: Tensor) -> bool:
    # With fewer tokens than channels, projecting them costs less than composing the matrices. A traced graph must suit
    # any number of tokens.
    return must_trace(image) or image.shape[0] * image.shape[2:].numel() >= image.shape[1]


def _compose(head: Part, composed: list[bool], widths: list[int], fold_norm: bool) -> tuple[list[Tensor], Tensor]:
    """Each stage's matrix (E, C_s) or (E, E) and the bias (E,) of the sum, in at least float32.

    The widths of the projections are all E, except in a pruned head. `linear_fuse` has a bias where BatchNorm was
    folded into it.
    """
    fuse, fuse_bias = head.linear_fuse.weight, head.linear_fuse.bias
    dtype = torch.promote_types(fuse.dtype, torch.float32)
    with _no_autocast(fuse.device.type):
        matrices = list(fuse.to(dtype).flatten(1).split(widths[::-1], dim=1))[::-1]  # S times (E, E)
        bias = torch.zeros(fuse.shape[0], dtype=dtype, device=fuse.device)
        bias = bias if fuse_bias is None else bias + fuse_bias.to(dtype)
        for stage, project in enumerate(head.linear_c):
            if composed[stage]:
                if project.proj.bias is not None:
                    bias = bias + matrices[stage] @ project.proj.bias.to(dtype)
                matrices[stage] = matrices[stage] @ project.proj.weight.to(dtype)
        if fold_norm:
            norm = head.batch_norm
            scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
            matrices = [scale[:, None] * matrix for matrix in matrices]
            bias = scale * (bias - norm.running_mean.to(dtype)) + norm.bias.to(dtype)
    return matrices, bias


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    # The meta device, where operations are counted without data, knows no autocast.
    return contextlib.nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _summands(inputs: Sequence[Tensor], matrices: Sequence[Tensor], bias: Tensor) -> list[Tensor]:
    """What each of the given stages adds to the fused map, (B, H_s, W_s, E).

    The bias enters once, where the map is smallest: upsampling leaves constants as they are.
    """
    dtype, last = inputs[0].dtype, len(inputs) - 1
    return [
        pixel_product(tokens, matrix.to(dtype), bias.to(dtype) if stage == last else None)
        for stage, (tokens, matrix) in enumerate(zip(inputs, matrices, strict=True))
    ]


def _dropout_mask(dropout: Part, shape: Sequence[int]) -> tuple[Tensor | None, float]:
    """What is kept of a map (B, H, W, E), None for all, and the factor of what is kept.

    Single elements are drawn with 16 random bits each, four at a time: the generator's time is what counts. So `p` is
    rounded to a multiple of 1/65536; the factor belongs to the rounded one.
    """
    if not dropout.training or dropout.p == 0:
        return None, 1.0
    batch, height, width, channels = shape
    if isinstance(dropout, nn.Dropout2d):
        return torch.rand(batch, 1, channels) >= dropout.p, 1 / (1 - dropout.p) if dropout.p < 1 else 0.0
    dropped = round(dropout.p * 65536)
    keep = torch.zeros(batch, height * width, channels, dtype=torch.bool)
    if dropped == 65536:
        return keep, 0.0
    numbers = torch.empty(min(-(-keep.numel() // 4), _RANDOM_NUMBERS), dtype=torch.int64)
    for part in keep.view(-1).split(4 * len(numbers)):
        bits = numbers.random_(-(1 << 63), None).view(torch.int16)
        torch.ge(bits[: len(part)], dropped - 32768, out=part)
    return keep, 65536 / (65536 - dropped)


def _upsample_add_relu(*summands: Tensor) -> Tensor:
    return _upsample_and_add(*summands).relu_()


def _upsample_and_add(*summands: Tensor) -> Tensor:
    """Sum over stages (B, H_s, W_s, E), each upsampled to the size of the first: (B, E, H_1, W_1)."""
    first, *others = summands
    # The first last: what upsampling returns may be added to in place. If that were done to the view that a linear
    # layer returns, autograd would copy the whole map for each summand.
    total = None
    for summand in reversed(others):
        upsampled = _upsample(summand, first.shape[1:3])
        total = upsampled if total is None else _add(total, upsampled)
    feature_map = first.permute(0, 3, 1, 2)
    return feature_map if total is None else _add(total, feature_map)


def _add(total: Tensor, summand: Tensor) -> Tensor:
    # With `torch.func.vmap` only some summands may have its dimension, which cannot be added in place to the others.
    return total + summand if must_trace(summand) else total.add_(summand)


def _upsample(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, H, W, C) -> (B, C, *size), bilinear."""
    return F.interpolate(tokens.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
