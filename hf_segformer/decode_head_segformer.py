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

from .bilinear_segformer import must_trace
from .configuration_segformer import SegformerConfig
from .fused_map_segformer import NormalizeAndClassify, classify
from .kernel_choice_segformer import choose
from .onednn_segformer import linear, pixel_product
from .plain_segformer import is_plain, is_plain_pointwise, is_untouched, may_stream, may_train_in_pieces

# 64-bit random numbers that dropout draws at a time.
_RANDOM_NUMBERS = 1 << 19


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
    built. Matrices are composed anew in each forward, which costs little, so that no change of a weight can be missed.
    In the convolutional head a ReLU follows each projection; there the fusing matrix alone is applied at the stage's
    resolution.

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

        Raises:
            ValueError: There is not one map for each stage, or one has another width than its stage.
        """
        self._check_feature_maps(feature_maps)
        feature_maps = [feature_map.permute(0, 2, 3, 1) for feature_map in feature_maps]  # (B, H, W, C)
        if self._may_cut_rows(feature_maps[0]):
            return self._classify_in_bands(feature_maps)
        if self._may_train_in_bands(feature_maps[0]):
            return self._train_in_bands(feature_maps)
        if is_plain_pointwise(self.linear_fuse):
            fused = self._fuse_composed(feature_maps)
        else:
            fused = self._activate(self._fuse_concatenated(feature_maps))
        return self.classifier(self.dropout(fused))

    def _check_feature_maps(self, feature_maps: Sequence[torch.Tensor]) -> None:
        widths = [getattr(getattr(stage, "proj", None), "in_features", None) for stage in self.linear_c]
        fits = isinstance(feature_maps, Sequence) and len(feature_maps) == len(widths)
        if fits and all(_is_map(m, w) for m, w in zip(feature_maps, widths, strict=True)):
            return
        got = [tuple(getattr(m, "shape", ())) for m in feature_maps] if isinstance(feature_maps, Sequence) else []
        raise ValueError(
            f"feature_maps must be {len(widths)}, one (B, C, H, W) for each stage with C = {widths}, stage 1 first, "
            f"got {len(got)} of shapes {got}"
        )

    def _activate(self, fused: torch.Tensor) -> torch.Tensor:
        if is_untouched(self.batch_norm, nn.BatchNorm2d) and is_untouched(self.activation, nn.ReLU):
            return fused.relu_()  # nothing else sees the fused map, and no gradient needs it as it was
        return self.activation(fused)

    def _fuse_concatenated(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """The textbook form, for a fusing layer that must be called."""
        first, *others = [project(tokens) for project, tokens in zip(self.linear_c, feature_maps, strict=True)]
        projected = [first.permute(0, 3, 1, 2), *(_upsample(tokens, first.shape[1:3]) for tokens in others)]
        return self.batch_norm(self.linear_fuse(torch.cat(projected[::-1], dim=1)))

    def _fuse_composed(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Activated sum over stages, (B, E, H_1, W_1)."""
        fold_norm = self._folds_norm()
        inputs, matrices, bias = self._inputs_and_matrices(feature_maps, fold_norm)
        summands = _summands(inputs, matrices, bias)
        if not fold_norm:
            return self._activate(self.batch_norm(_upsample_and_add(*summands)))
        if self._may_use_kernel(summands):
            return choose("upsample_add_relu", _upsample_add_relu, *summands)
        return self._activate(_upsample_and_add(*summands))

    def _may_use_kernel(self, summands: list[torch.Tensor]) -> bool:
        """Whether the folded sum and its activation may be computed together on a GPU."""
        return (
            summands[0].is_cuda
            and not torch.is_grad_enabled()
            and is_untouched(self.activation, nn.ReLU)
            and 2 <= len(summands) <= 4
        )

    def _may_cut_rows(self, feature_map: torch.Tensor) -> bool:
        """Whether nothing needs the whole fused map at once: no gradient, no dropout, every module plain."""
        return (
            may_stream(feature_map)
            and not self.dropout.training
            and self._folds_norm()
            and self._is_plain_around_norm()
        )

    def _is_plain_around_norm(self) -> bool:
        """Whether nobody watches or replaced what comes before and after BatchNorm, and there is something to sum."""
        return (
            len(self.linear_c) > 1
            and is_plain_pointwise(self.linear_fuse)
            and is_untouched(self.activation, nn.ReLU)
            and (is_untouched(self.dropout, nn.Dropout) or is_untouched(self.dropout, nn.Dropout2d))
            and is_plain_pointwise(self.classifier)
        )

    def _classify_in_bands(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Logits, without a whole fused map."""
        inputs, matrices, bias = self._inputs_and_matrices(feature_maps, fold_norm=True)
        dtype = inputs[0].dtype
        # Half precision would lose digits with every summand.
        coarse = [
            stage.to(torch.promote_types(dtype, torch.float32)) for stage in _summands(inputs[1:], matrices[1:], bias)
        ]
        weight, bias = self.classifier.weight.flatten(1), self.classifier.bias
        return classify(inputs[0], matrices[0].to(dtype), coarse, weight, bias).permute(0, 3, 1, 2)

    def _may_train_in_bands(self, feature_map: torch.Tensor) -> bool:
        """Whether the widest part of a training step on a CPU may be computed in bands, forwards and backwards."""
        norm, dtype = self.batch_norm, feature_map.dtype
        return (
            may_train_in_pieces(feature_map)
            and dtype in (torch.float32, torch.float64)
            and feature_map.shape[:3].numel() > 1  # BatchNorm says what is wrong with a single point
            and is_plain(norm, nn.BatchNorm2d)
            and (norm.training and norm.track_running_stats and norm.momentum is not None)
            and self._is_plain_around_norm()
            and all(parameter.dtype == dtype for parameter in (norm.weight, norm.bias, self.classifier.weight))
        )

    def _train_in_bands(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Logits and, in the backward pass, gradients, without a whole fused map."""
        inputs, matrices, bias = self._inputs_and_matrices(feature_maps, fold_norm=False)
        tokens, norm, classifier = inputs[0], self.batch_norm, self.classifier
        matrix = matrices[0].to(tokens.dtype)
        keep, scale = _dropout_mask(self.dropout, (*tokens.shape[:3], len(matrix)))
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

    def _folds_norm(self) -> bool:
        norm = self.batch_norm
        return is_plain(norm, nn.BatchNorm2d) and not norm.training and norm.running_mean is not None

    def _inputs_and_matrices(self, feature_maps: list[torch.Tensor], fold_norm: bool):
        """What goes into each stage's matrix, the matrices, and the bias of their sum."""
        composed = [
            _is_plain_mlp(project) and _pays_to_compose(tokens)
            for project, tokens in zip(self.linear_c, feature_maps, strict=True)
        ]
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


def _is_map(feature_map: torch.Tensor, width: int | None) -> bool:
    return isinstance(feature_map, torch.Tensor) and feature_map.ndim == 4 and width in (None, feature_map.shape[1])


def _is_plain_mlp(project: nn.Module) -> bool:
    return is_untouched(project, SegformerMLP) and is_plain(project.proj, nn.Linear)


def _pays_to_compose(tokens: torch.Tensor) -> bool:
    # With fewer tokens than channels, projecting them costs less than composing the matrices. A traced graph must suit
    # any number of tokens.
    return must_trace(tokens) or tokens.shape[:-1].numel() >= tokens.shape[-1]


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    # The meta device, where operations are counted without data, knows no autocast.
    return contextlib.nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _summands(
    inputs: Sequence[torch.Tensor], matrices: Sequence[torch.Tensor], bias: torch.Tensor
) -> list[torch.Tensor]:
    """What each of the given stages adds to the fused map, (B, H_s, W_s, E).

    The bias enters once, where the map is smallest: upsampling leaves constants as they are.
    """
    dtype, last = inputs[0].dtype, len(inputs) - 1
    return [
        pixel_product(tokens, matrix.to(dtype), bias.to(dtype) if stage == last else None)
        for stage, (tokens, matrix) in enumerate(zip(inputs, matrices, strict=True))
    ]


def _dropout_mask(dropout: nn.Module, shape: Sequence[int]) -> tuple[torch.Tensor | None, float]:
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


def _upsample_add_relu(*summands: torch.Tensor) -> torch.Tensor:
    return _upsample_and_add(*summands).relu_()


def _upsample_and_add(*summands: torch.Tensor) -> torch.Tensor:
    """Sum over stages (B, H_s, W_s, E), each upsampled to the size of the first: (B, E, H_1, W_1)."""
    first, *others = summands
    # The first last: what upsampling returns may be added to in place. If that were done to the view that a linear
    # layer returns, autograd would copy the whole map for each summand.
    total = None
    for summand in reversed(others):
        upsampled = _upsample(summand, first.shape[1:3])
        total = upsampled if total is None else total.add_(upsampled)
    feature_map = first.permute(0, 3, 1, 2)
    return feature_map if total is None else total.add_(feature_map)


def _upsample(tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, H, W, C) -> (B, C, *size), bilinear."""
    return F.interpolate(tokens.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
