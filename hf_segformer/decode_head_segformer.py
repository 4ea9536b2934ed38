# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""SegFormer's decode heads, evaluated without the concatenated feature map.

Shapes: B batch, C channels of a stage, H W height and width of the feature map at hand, S stages, E decoder width, K
classes.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_segformer import SegformerConfig
from .onednn_segformer import linear, matrix_product
from .plain_segformer import is_plain, is_plain_pointwise, is_untouched, may_stream

# Bytes of an image's fused map that inference on a CPU works on at a time.
_BAND_BYTES = 3 << 20


class SegformerMLP(nn.Module):
    """A stage's projection to the decoder width."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.proj = nn.Linear(hidden_size, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return linear(self.proj, hidden_states)  # (B, H, W, C) -> (B, H, W, E)


class SegformerConvProjection(nn.Module):
    """A stage's projection in mmsegmentation's head: 1x1 convolution without bias, BatchNorm, ReLU."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.proj = nn.Linear(hidden_size, width, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        projected = linear(self.proj, hidden_states).permute(0, 3, 1, 2)
        return self.activation(self.batch_norm(projected)).permute(0, 2, 3, 1)  # (B, H, W, C) -> (B, H, W, E)


class SegformerDecodeHead(nn.Module):
    """All-MLP decoder: project each stage, upsample, concatenate, fuse, classify.

    Bilinear upsampling acts on each channel alone and its weights sum to one, so it commutes with the 1x1 convolution
    that fuses the stages: every stage is projected and fused by one composed matrix at its own resolution, and only
    the sum exists at the resolution of stage 1. The concatenation (B, S*E, H/4, W/4) of the textbook form is never
    built. Matrices are composed anew in each forward, which costs next to nothing, so that no change of a weight can
    be missed. In the convolutional head a ReLU follows each projection; there the fusing matrix alone is applied at
    the stage's resolution.

    Args:
        config: Configuration; `decoder_hidden_size` or `conv_decoder_hidden_size` chooses the head.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__()
        width = config.decoder_hidden_size or config.conv_decoder_hidden_size
        projection = SegformerMLP if config.decoder_hidden_size else SegformerConvProjection
        self.linear_c = nn.ModuleList([projection(hidden_size, width) for hidden_size in config.hidden_sizes])
        # Columns of the weight: stage S first, in both heads.
        self.linear_fuse = nn.Conv2d(width * config.num_encoder_blocks, width, kernel_size=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()
        dropout = nn.Dropout if config.classifier_dropout_mode == "element" else nn.Dropout2d
        self.dropout = dropout(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Classify feature maps.

        Args:
            feature_maps: S maps (B, C_s, H_s, W_s), stage 1 first.

        Returns:
            Logits (B, K, H_1, W_1), channels-last in memory.
        """
        feature_maps = [feature_map.permute(0, 2, 3, 1) for feature_map in feature_maps]  # (B, H, W, C)
        if self._may_cut_rows(feature_maps[0]):
            return self._classify_in_bands(feature_maps)
        if is_plain_pointwise(self.linear_fuse):
            fused = self._fuse_composed(feature_maps)
        else:
            fused = self._fuse_concatenated(feature_maps)
        if is_untouched(self.batch_norm, nn.BatchNorm2d) and is_untouched(self.activation, nn.ReLU):
            fused = fused.relu_()  # nothing else sees the fused map, and no gradient needs it as it was
        else:
            fused = self.activation(fused)
        return self.classifier(self.dropout(fused))

    def _fuse_concatenated(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """The textbook form, for a fusing layer that must be called."""
        size = feature_maps[0].shape[1:3]
        projected = [
            _upsample(project(tokens), size) for project, tokens in zip(self.linear_c, feature_maps, strict=True)
        ]
        return self.batch_norm(self.linear_fuse(torch.cat(projected[::-1], dim=1)))

    def _fuse_composed(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Normalised sum over stages, (B, E, H_1, W_1)."""
        fold_norm = self._folds_norm()
        inputs, matrices, bias = self._inputs_and_matrices(feature_maps, fold_norm)
        dtype = inputs[0].dtype
        # Constants pass through upsampling unchanged, so those of all stages enter once, at stage 1.
        total = F.linear(inputs[0], matrices[0].to(dtype), bias.to(dtype)).permute(0, 3, 1, 2)
        for tokens, matrix in zip(inputs[1:], matrices[1:], strict=True):
            total += _upsample(F.linear(tokens, matrix.to(dtype)), total.shape[2:])
        return total if fold_norm else self.batch_norm(total)

    def _may_cut_rows(self, feature_map: torch.Tensor) -> bool:
        """Whether nothing needs the whole fused map at once: no gradient, no dropout, every module plain."""
        return (
            may_stream(feature_map)
            and not self.dropout.training
            and len(self.linear_c) > 1
            and is_plain_pointwise(self.linear_fuse)
            and self._folds_norm()
            and is_untouched(self.activation, nn.ReLU)
            and (is_untouched(self.dropout, nn.Dropout) or is_untouched(self.dropout, nn.Dropout2d))
            and is_plain_pointwise(self.classifier)
        )

    def _classify_in_bands(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Logits, with about `_BAND_BYTES` of one image's fused map in memory at a time.

        The whole map of B2 at 512x512 has 50 MB, and so has each of its summands; getting that much fresh memory from
        the system costs more than the arithmetic.
        """
        inputs, matrices, bias = self._inputs_and_matrices(feature_maps, fold_norm=True)
        dtype = inputs[0].dtype
        # Half precision would lose digits with every summand.
        sum_dtype = torch.promote_types(dtype, torch.float32)
        # The bias enters where the map is smallest; upsampling leaves constants as they are.
        coarse = [
            matrix_product(tokens, matrix.to(dtype), bias.to(dtype) if stage == len(inputs) - 1 else None).to(sum_dtype)
            for stage, (tokens, matrix) in enumerate(zip(inputs, matrices, strict=True))
            if stage > 0
        ]
        height, width = inputs[0].shape[1:3]
        logits = torch.empty(
            (len(inputs[0]), height, width, self.classifier.out_channels), dtype=dtype, device=inputs[0].device
        )
        matrix = matrices[0].to(dtype)
        for image in range(len(logits)):
            self._classify_image(inputs[0][image], [stage[image] for stage in coarse], matrix, logits[image])
        return logits.permute(0, 3, 1, 2)

    def _classify_image(
        self, tokens: torch.Tensor, coarse: list[torch.Tensor], matrix: torch.Tensor, logits: torch.Tensor
    ) -> None:
        """Fill one image's logits (H_1, W_1, K) from stage 1 (H_1, W_1, C_1) and the other stages' summands.

        The summands (H_s, W_s, E), in at least float32, are upsampled along the columns by a small matrix product, then
        along the rows.
        """
        height, width, _ = tokens.shape
        channels, weight = len(matrix), self.classifier.weight.flatten(1)
        step = min(max(_BAND_BYTES // (4 * width * channels), 1), height)
        axes = [_interpolation_matrix(len(stage), height, stage) for stage in coarse]
        total, summand = coarse[0].new_empty((2, step, width, channels))
        tall = coarse[0].new_empty((step, max(stage[0].numel() for stage in coarse)))
        for top in range(0, height, step):
            band, rows = slice(top, min(top + step, height)), min(step, height - top)
            fused = total[:rows]
            for index, (stage, axis) in enumerate(zip(coarse, axes, strict=True)):
                _upsample_rows(stage, axis[band], tall, summand[:rows] if index else fused)
                if index:
                    fused += summand[:rows]
            if tokens.dtype == fused.dtype:
                fused.flatten(0, 1).addmm_(tokens[band].flatten(0, 1), matrix.t())
            else:
                fused += matrix_product(tokens[band], matrix)
            logits[band] = matrix_product(fused.relu_().to(tokens.dtype), weight, self.classifier.bias)

    def _folds_norm(self) -> bool:
        norm = self.batch_norm
        return is_plain(norm, nn.BatchNorm2d) and not norm.training and norm.running_mean is not None

    def _inputs_and_matrices(self, feature_maps: list[torch.Tensor], fold_norm: bool):
        """What goes into each stage's matrix, the matrices, and the bias of their sum."""
        composed = [_is_plain_mlp(project) for project in self.linear_c]
        inputs = [
            tokens if skip else project(tokens)
            for skip, project, tokens in zip(composed, self.linear_c, feature_maps, strict=True)
        ]
        return inputs, *self._compose(composed, fold_norm)

    def _compose(self, composed: list[bool], fold_norm: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Each stage's matrix (E, C_s) or (E, E) and the bias (E,) of the sum, in at least float32."""
        fuse = self.linear_fuse.weight
        dtype = torch.promote_types(fuse.dtype, torch.float32)
        with _no_autocast(fuse.device.type):
            matrices = list(fuse.to(dtype).flatten(1).chunk(len(self.linear_c), dim=1))[::-1]  # S times (E, E)
            bias = torch.zeros(fuse.shape[0], dtype=dtype, device=fuse.device)
            for stage, project in enumerate(self.linear_c):
                if composed[stage]:
                    bias = bias + matrices[stage] @ project.proj.bias.to(dtype)
                    matrices[stage] = matrices[stage] @ project.proj.weight.to(dtype)
            if fold_norm:
                norm = self.batch_norm
                scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
                matrices = [scale[:, None] * matrix for matrix in matrices]
                bias = scale * (bias - norm.running_mean.to(dtype)) + norm.bias.to(dtype)
        return matrices, bias


def _is_plain_mlp(project: nn.Module) -> bool:
    return is_untouched(project, SegformerMLP) and is_plain(project.proj, nn.Linear)


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    # The meta device, where operations are counted without data, knows no autocast.
    return contextlib.nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _interpolation_matrix(points: int, pixels: int, like: torch.Tensor) -> torch.Tensor:
    """Weights (pixels, points) of linear interpolation along one axis, those of `F.interpolate`."""
    unit = torch.eye(points, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, size=pixels, mode="linear", align_corners=False)[0].t().contiguous()


def _upsample_rows(stage: torch.Tensor, axis: torch.Tensor, tall: torch.Tensor, out: torch.Tensor) -> None:
    """Bilinear upsampling of a map to some rows of pixels.

    Args:
        stage: (h, w, E).
        axis: (R, h) weights of the map's rows in each of R rows of pixels.
        tall: Memory for the intermediate map (R, w, E).
        out: Takes the result (R, W, E).
    """
    (used,) = axis.any(dim=0).nonzero(as_tuple=True)
    used = slice(int(used[0]), int(used[-1]) + 1)
    (rows, width, channels), columns = out.shape, stage.shape[1]
    tall = tall[:rows].view(-1)[: rows * columns * channels].view(rows, -1)
    torch.mm(axis[:, used], stage[used].flatten(1), out=tall)
    # As images of one row each: the kernel shares images among threads, not rows.
    tall, out = (part.view(rows, 1, -1, channels).permute(0, 3, 1, 2) for part in (tall, out))
    torch.ops.aten.upsample_bilinear2d.out(tall, [1, width], False, None, None, out=out)


def _upsample(tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, H, W, C) -> (B, C, *size), bilinear."""
    feature_map = tokens.permute(0, 3, 1, 2)
    if feature_map.shape[2:] == size:
        return feature_map
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)
