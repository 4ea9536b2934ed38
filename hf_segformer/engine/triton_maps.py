# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for a GPU over channels-last maps, each one pass over memory where PyTorch takes several.

- `depthwise_gelu`: depthwise 3x3 convolution and GELU;
- `upsample_add_relu`: the decode head's sum over stages.

See `triton_scores`. Shapes: B images, C channels, E decoder width, (H, W) pixels, (h, w) points of a coarser map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .triton_scores import block_of_row, interpolate, jit, lerp, tl

# Channels and pixels of a program of the channels-last kernels: neighbouring threads take neighbouring channels, with
# loads of 16 bytes each. See `map_warps`.
_CHANNELS, _COLUMNS = 64, 16
# Rows of pixels that such a program visits one after another: they share rows of the input, which are then in the L1
# cache. Only where enough programs remain to fill the largest GPUs several times over.
_ROWS, _ENOUGH_PROGRAMS = 4, 2048


# ---------------------------------------------------------------------------------------------- convolution and GELU


def depthwise_gelu(feature_map: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of a depthwise 3x3 convolution with zero padding.

    Args:
        feature_map: (B, H, W, C) float32, float16 or bfloat16.
        weight: (C, 1, 3, 3).
        bias: (C,).

    Returns:
        (B, H, W, C) of the feature map's precision.
    """
    feature_map, weight, bias = feature_map.contiguous(), weight.contiguous(), bias.contiguous()
    batch, height, width, channels = feature_map.shape
    result = torch.empty_like(feature_map)
    grid, rows = _map_grid(batch, height, width, channels)
    _depthwise_gelu_kernel[grid](
        *(feature_map, weight, bias, result, height, width, channels),
        ROWS=rows,
        BLOCK_W=_COLUMNS,
        BLOCK_C=_CHANNELS,
        num_warps=map_warps(feature_map.element_size()),
    )
    return result


def _map_grid(batch: int, height: int, width: int, channels: int) -> tuple[tuple[int, int, int], int]:
    """Programs (columns and rows, channels, images) over a channels-last map, and the rows of each."""
    columns, blocks = -(-width // _COLUMNS), -(-channels // _CHANNELS)
    rows = _ROWS if batch * -(-height // _ROWS) * columns * blocks >= _ENOUGH_PROGRAMS else 1
    return (columns * -(-height // rows), blocks, batch), rows


def map_warps(element_size: int) -> int:
    """Warps of such a program: as many as give each thread one load of 16 bytes and as many accumulators."""
    return _CHANNELS * _COLUMNS * element_size // (16 * 32) or 1


@jit
def _depthwise_gelu_kernel(
    source,
    weight,
    bias,
    result,
    height,
    width,
    channels,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    x, group = block_of_row(width, BLOCK_W)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    first_row = tl.program_id(2).to(tl.int64) * height
    constant = tl.load(bias + channel, mask=is_channel, other=0).to(tl.float32)
    for row in range(ROWS):
        y = group * ROWS + row
        total = tl.full((BLOCK_W, BLOCK_C), 0, tl.float32) + constant[None, :]
        for tap in tl.static_range(9):
            tap_y, tap_x = y + tap // 3 - 1, x + tap % 3 - 1
            is_inside = (tap_y >= 0) & (tap_y < height) & (tap_x >= 0) & (tap_x < width)
            offset = tap_x[:, None] * channels + channel[None, :]
            pointers = source + (first_row + tap_y) * width * channels + offset
            values = tl.load(pointers, mask=is_inside[:, None] & is_channel[None, :], other=0).to(tl.float32)
            factor = tl.load(weight + channel * 9 + tap, mask=is_channel, other=0).to(tl.float32)
            total += values * factor[None, :]
        total = 0.5 * total * (1 + tl.math.erf(total * 0.7071067811865476))
        pointers = result + (first_row + y) * width * channels + x[:, None] * channels + channel[None, :]
        is_pixel = (y < height) & (x < width)
        tl.store(pointers, total.to(result.dtype.element_ty), mask=is_pixel[:, None] & is_channel[None, :])


# ----------------------------------------------------------------------------------------------------- sum over stages


def upsample_add_relu(*stages: Tensor) -> Tensor:
    """ReLU of the sum of up to four maps, each upsampled to the size of the first.

    Args:
        stages: (B, H_s, W_s, E), float32, float16 or bfloat16, the first with the most points.

    Returns:
        (B, E, H, W), channels-last in memory.
    """
    first, *others = (stage.contiguous() for stage in stages)
    batch, height, width, channels = first.shape
    result = torch.empty_like(first)
    grid, rows = _map_grid(batch, height, width, channels)
    geometry = []
    for index in range(3):
        stage = others[index] if index < len(others) else first
        h, w = stage.shape[1:3]
        geometry += [stage, h, w, h / height, w / width]
    _upsample_add_relu_kernel[grid](
        *(first, result, height, width, channels, *geometry),
        COARSER=len(others),
        ROWS=rows,
        BLOCK_W=_COLUMNS,
        BLOCK_C=_CHANNELS,
        num_warps=map_warps(first.element_size()),
    )
    return result.permute(0, 3, 1, 2)


@jit
def _add_upsampled(
    total, stage, image, y, x, height, width, y_scale, x_scale, channel, channels, is_channel, HAS_STAGE: tl.constexpr
):
    """Add a coarser stage's map (B, h, w, E), upsampled to the pixels of a block, to `total`."""
    if HAS_STAGE:
        above, below, v = interpolate(y, y_scale, height)
        left, right, u = interpolate(x, x_scale, width)
        u = u[:, None]
        left, right = left[:, None] * channels + channel[None, :], right[:, None] * channels + channel[None, :]
        first = stage + image * height * width * channels
        above, below = first + above * width * channels, first + below * width * channels
        mask = is_channel[None, :]
        upper_left = tl.load(above + left, mask=mask, other=0).to(tl.float32)
        upper_right = tl.load(above + right, mask=mask, other=0).to(tl.float32)
        lower_left = tl.load(below + left, mask=mask, other=0).to(tl.float32)
        lower_right = tl.load(below + right, mask=mask, other=0).to(tl.float32)
        total += lerp(lerp(upper_left, upper_right, u), lerp(lower_left, lower_right, u), v)
    return total


@jit
def _upsample_add_relu_kernel(
    first,
    result,
    height,
    width,
    channels,
    stage_1,
    height_1,
    width_1,
    y_scale_1,
    x_scale_1,
    stage_2,
    height_2,
    width_2,
    y_scale_2,
    x_scale_2,
    stage_3,
    height_3,
    width_3,
    y_scale_3,
    x_scale_3,
    COARSER: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    x, group = block_of_row(width, BLOCK_W)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    image = tl.program_id(2).to(tl.int64)
    for row in range(ROWS):
        y = group * ROWS + row
        mask = ((y < height) & (x < width))[:, None] & is_channel[None, :]
        offset = (image * height + y) * width * channels + x[:, None] * channels + channel[None, :]
        total = tl.load(first + offset, mask=mask, other=0).to(tl.float32)
        # Beyond the last pixel the points are clamped to the last ones, so that every load is inside.
        total = _add_upsampled(
            *(total, stage_1, image, y, x, height_1, width_1, y_scale_1, x_scale_1, channel, channels, is_channel),
            HAS_STAGE=COARSER > 0,
        )
        total = _add_upsampled(
            *(total, stage_2, image, y, x, height_2, width_2, y_scale_2, x_scale_2, channel, channels, is_channel),
            HAS_STAGE=COARSER > 1,
        )
        total = _add_upsampled(
            *(total, stage_3, image, y, x, height_3, width_3, y_scale_3, x_scale_3, channel, channels, is_channel),
            HAS_STAGE=COARSER > 2,
        )
        # Unlike the maximum, the comparison lets a NaN through, as PyTorch's ReLU does.
        total = tl.where(total < 0, 0.0, total)
        tl.store(result + offset, total.to(result.dtype.element_ty), mask=mask)
