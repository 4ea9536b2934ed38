# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The decode head's widest part on a CPU, a band of rows at a time: sum over stages, BatchNorm, ReLU, classifier.

The fused map of B2 at 512x512 has 50 MB an image, and so has each of its summands and, in training, whatever is kept
for the backward pass. Getting that much memory from the system costs more than the arithmetic, so the map is computed
anew in every pass over it and only bands of it exist. All matrices are given; nothing here looks at modules.

Shapes: B images, H W height and width of the map, h w those of a coarser stage, C channels of stage 1, E width of the
map, K classes, R rows of a band, n = R*W its points.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..scores.bilinear import rows_as_images
from .onednn import matrix_product

# Bytes of a band: two of them should stay in the caches. Found by `python -m hf_segformer.benchmark.constants`.
_BAND_BYTES = 3 << 20


def fused_bands(tokens: Tensor, matrix: Tensor, coarse: Sequence[Tensor]) -> Iterator[tuple[int, slice, Tensor]]:
    """Bands of the sum over stages, in memory that the next band overwrites.

    Args:
        tokens: (B, H, W, C) stage 1.
        matrix: (E, C), in the precision of the tokens.
        coarse: Other stages' summands (B, h, w, E), in the precision of the sum: at least float32.

    Yields:
        Index of the image, rows of the band, and (n, E).
    """
    batch, height, width, _ = tokens.shape
    channels = len(matrix)
    step = min(max(_BAND_BYTES // (coarse[0].element_size() * width * channels), 1), height)
    axes = [_interpolation_matrix(stage.shape[1], height, stage) for stage in coarse]
    total, summand = coarse[0].new_empty((2, step, width, channels))
    tall = coarse[0].new_empty((step, max(stage.shape[2:].numel() for stage in coarse)))
    for image in range(batch):
        for top in range(0, height, step):
            band, rows = slice(top, min(top + step, height)), min(step, height - top)
            fused = total[:rows]
            for index, (stage, axis) in enumerate(zip(coarse, axes, strict=True)):
                _upsample_rows(stage[image], axis[band], tall, summand[:rows] if index else fused)
                if index:
                    fused += summand[:rows]
            if tokens.dtype == fused.dtype:
                fused.flatten(0, 1).addmm_(tokens[image, band].flatten(0, 1), matrix.t())
            else:
                fused += matrix_product(tokens[image, band], matrix)
            yield image, band, fused.flatten(0, 1)


def classify(tokens: Tensor, matrix: Tensor, coarse: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (B, H, W, K) of the map behind ReLU, BatchNorm being part of the matrices; no gradient flows.

    Args:
        tokens: See `fused_bands`.
        matrix: See `fused_bands`.
        coarse: See `fused_bands`.
        weight: (K, E) of the classifier.
        bias: (K,) or None.
    """
    logits = tokens.new_empty((*tokens.shape[:3], len(weight)))
    for image, band, fused in fused_bands(tokens, matrix, coarse):
        logits[image, band] = matrix_product(fused.relu_().to(tokens.dtype), weight, bias).view_as(logits[image, band])
    return logits


class NormalizeAndClassify(torch.autograd.Function):
    """Logits (B, H, W, K) of the map behind BatchNorm with the batch's statistics, ReLU and dropout.

    Inputs: tokens, matrix and coarse stages as in `fused_bands`; weight, bias (E,) and epsilon of BatchNorm; `keep`,
    None or the factor of each element, a float (B, 1, E) or bool (B, H*W, E) mask, and `scale` of what is kept; weight
    (K, E) and bias (K,) of the classifier. Also returns the batch's mean and variance (E,), without gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        matrix: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        keep: Tensor | None,
        scale: float,
        weight: Tensor,
        bias: Tensor | None,
        *coarse: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _statistics(tokens, matrix, coarse)
        rstd = torch.rsqrt(variance + eps)
        logits = tokens.new_empty((*tokens.shape[:3], len(weight)))
        factor, shift = norm_weight * rstd, norm_bias - norm_weight * rstd * mean
        for image, band, fused in fused_bands(tokens, matrix, coarse):
            torch.addcmul(shift, fused, factor, out=fused).relu_()
            _drop(fused, keep, scale, image, band, tokens.shape[2])
            logits[image, band] = matrix_product(fused, weight, bias).view_as(logits[image, band])
        ctx.save_for_backward(tokens, matrix, norm_weight, norm_bias, mean, rstd, keep, weight, *coarse)
        ctx.scale = scale
        ctx.mark_non_differentiable(mean, variance)
        return logits, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *of_statistics: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # to be asked for once only: gradient checkpointing computes them at that moment
        tokens, matrix, norm_weight, _, _, rstd, _, weight, *coarse = saved
        points = tokens.shape[:3].numel()
        grad_weight, grad_matrix, grad_tokens = map(torch.zeros_like, (weight, matrix, tokens))
        grad_coarse = [torch.zeros_like(stage) for stage in coarse]
        # First what BatchNorm's gradient needs from all points: its own parameters' gradients.
        grad_norm_weight, grad_norm_bias = torch.zeros_like(norm_weight), torch.zeros_like(norm_weight)
        for _, _, normalized, behind, flowing, wanted in _band_gradients(saved, ctx.scale, gradient):
            grad_weight.addmm_(wanted.t(), behind)
            grad_norm_bias += _column_sums(flowing)
            grad_norm_weight += _column_sums(normalized.mul_(flowing))
        factor = norm_weight * rstd
        axes = [_interpolation_matrix(stage.shape[1], tokens.shape[1], stage) for stage in coarse]
        for image, band, normalized, _, flowing, _ in _band_gradients(saved, ctx.scale, gradient):
            flowing -= torch.addcmul(grad_norm_bias / points, normalized, grad_norm_weight / points, out=normalized)
            flowing *= factor
            part = tokens[image, band].flatten(0, 1)
            grad_matrix.addmm_(flowing.t(), part)
            grad_tokens[image, band] = (flowing @ matrix).view_as(tokens[image, band])
            for axis, result in zip(axes, grad_coarse, strict=True):
                _upsample_rows_backward(flowing, axis[band], result[image])
        grad_bias = gradient.sum((0, 1, 2)) if ctx.needs_input_grad[8] else None
        given = (grad_tokens, grad_matrix, grad_norm_weight, grad_norm_bias, None, None, None, grad_weight, grad_bias)
        return (*given, *grad_coarse)


def _band_gradients(
    saved: Sequence[Tensor], scale: float, gradient: Tensor
) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor, Tensor]]:
    """Bands: image, rows, normalised map, what the classifier saw, gradient before ReLU, gradient of the logits."""
    tokens, matrix, norm_weight, norm_bias, mean, rstd, keep, weight, *coarse = saved
    transposed = weight.t().contiguous()
    for image, band, fused in fused_bands(tokens, matrix, coarse):
        normalized = fused.sub_(mean).mul_(rstd)
        behind = torch.addcmul(norm_bias, normalized, norm_weight).relu_()
        wanted = gradient[image, band].flatten(0, 1)
        flowing = matrix_product(wanted, transposed)
        torch.ops.aten.threshold_backward.grad_input(flowing, behind, 0, grad_input=flowing)
        for values in (flowing, behind):
            _drop(values, keep, scale, image, band, tokens.shape[2])
        yield image, band, normalized, behind, flowing, wanted


def _statistics(tokens: Tensor, matrix: Tensor, coarse: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (E,) over all points, merged from those of the bands so that no digits cancel."""
    count = 0
    mean: Any = 0.0
    squares: Any = 0.0
    for _, _, fused in fused_bands(tokens, matrix, coarse):
        added = len(fused)
        center = _column_sums(fused) / added
        difference, spread = center - mean, _column_sums(fused.sub_(center).square_())
        count += added
        mean = mean + difference * (added / count)
        squares = squares + spread + difference**2 * (added * (count - added) / count)
    return mean, squares / count


def _column_sums(values: Tensor) -> Tensor:
    # As a matrix product: the CPU's sum over rows takes several times longer.
    return (values.new_ones(1, len(values)) @ values)[0]


def _drop(values: Tensor, keep: Tensor | None, scale: float, image: int, band: slice, width: int) -> None:
    if keep is None:
        return
    if keep.shape[1] > 1:
        # As small integers: multiplying by truth values takes four times longer.
        keep = keep[:, band.start * width : band.stop * width].view(torch.int8)
    values *= keep[image]
    values *= scale


def _interpolation_matrix(points: int, pixels: int, like: Tensor) -> Tensor:
    """Weights (pixels, points) of linear interpolation along one axis, those of `F.interpolate`."""
    unit = torch.eye(points, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, size=pixels, mode="linear", align_corners=False)[0].t().contiguous()


def _used(axis: Tensor) -> slice:
    """Columns of an interpolation matrix that are not all zero."""
    (used,) = axis.any(dim=0).nonzero(as_tuple=True)
    return slice(int(used[0]), int(used[-1]) + 1)


def _upsample_rows(stage: Tensor, axis: Tensor, tall: Tensor, out: Tensor) -> None:
    """Bilinear upsampling of a map to some rows: along the columns by a matrix product, then along the rows.

    Args:
        stage: (h, w, E).
        axis: (R, h) weights of the map's rows in each of the R rows.
        tall: Memory for the intermediate map (R, w, E).
        out: Takes the result (R, W, E).
    """
    rows, width, channels = out.shape
    tall = tall.view(-1)[: rows * stage[0].numel()].view(rows, -1, channels)
    used = _used(axis)
    torch.mm(axis[:, used], stage[used].flatten(1), out=tall.flatten(1))
    sizes = [1, width], False, None, None
    torch.ops.aten.upsample_bilinear2d.out(rows_as_images(tall), *sizes, out=rows_as_images(out))


def _upsample_rows_backward(gradient: Tensor, axis: Tensor, result: Tensor) -> None:
    """Transpose of `_upsample_rows`: add what a band's gradient (n, E) gives to that of the stage (h, w, E)."""
    rows, (_, columns, channels) = len(axis), result.shape
    images = rows_as_images(gradient.view(rows, -1, channels))
    sizes = [1, images.shape[3]], [rows, channels, 1, columns]
    narrow = torch.ops.aten.upsample_bilinear2d_backward(images, *sizes, False, None, None)
    used = _used(axis)
    result[used].flatten(1).addmm_(axis[:, used].t(), narrow.permute(0, 2, 3, 1).reshape(rows, -1))
