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


def is_untouched(module: nn.Module, expected_class: type[nn.Module]) -> bool:
    """Whether `module` is exactly an `expected_class`, without hooks and with its own `forward`."""
    if type(module) is not expected_class or "forward" in module.__dict__:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks)


def is_plain(module: nn.Module, expected_class: type[nn.Module]) -> bool:
    """Whether computing with `module.weight` gives what calling `module` gives.

    Not so for adapters (LoRA), quantised or parametrised layers, layers with hooks or a replaced `forward`, and
    weights that are sharded (FSDP, ZeRO-3, DTensor): algebra that reads weights must call such modules instead.

    Args:
        module: A Linear, Conv2d or BatchNorm2d, or what stands in its place.
        expected_class: The class it was built as.
    """
    if not is_untouched(module, expected_class):
        return False
    weight = module.weight
    if type(weight) not in (nn.Parameter, torch.Tensor) or not weight.is_floating_point():
        return False
    if expected_class is nn.Linear:
        return weight.shape == (module.out_features, module.in_features)
    if expected_class is nn.Conv2d:
        return weight.shape == (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return weight.shape == (module.num_features,)


class SegformerMLP(nn.Module):
    """A stage's projection to the decoder width."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.proj = nn.Linear(hidden_size, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.proj(hidden_states)  # (B, H, W, C) -> (B, H, W, E)


class SegformerConvProjection(nn.Module):
    """A stage's projection in mmsegmentation's head: 1x1 convolution without bias, BatchNorm, ReLU."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.proj = nn.Linear(hidden_size, width, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        projected = self.proj(hidden_states).permute(0, 3, 1, 2)
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
        if is_plain(self.linear_fuse, nn.Conv2d):
            fused = self._fuse_composed(feature_maps)
        else:
            fused = self._fuse_concatenated(feature_maps)
        return self.classifier(self.dropout(self.activation(fused)))

    def _fuse_concatenated(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """The textbook form, for a fusing layer that must be called."""
        size = feature_maps[0].shape[1:3]
        projected = [
            _upsample(project(tokens), size) for project, tokens in zip(self.linear_c, feature_maps, strict=True)
        ]
        return self.batch_norm(self.linear_fuse(torch.cat(projected[::-1], dim=1)))

    def _fuse_composed(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Normalised sum over stages, (B, E, H_1, W_1)."""
        composed = [_is_plain_mlp(project) for project in self.linear_c]
        norm = self.batch_norm
        fold_norm = is_plain(norm, nn.BatchNorm2d) and not norm.training and norm.running_mean is not None
        matrices, bias = self._compose(composed, fold_norm)
        inputs = [
            tokens if skip else project(tokens)
            for skip, project, tokens in zip(composed, self.linear_c, feature_maps, strict=True)
        ]
        dtype = inputs[0].dtype
        # Constants pass through upsampling unchanged, so those of all stages enter once, at stage 1.
        total = F.linear(inputs[0], matrices[0].to(dtype), bias.to(dtype)).permute(0, 3, 1, 2)
        for tokens, matrix in zip(inputs[1:], matrices[1:], strict=True):
            total += _upsample(F.linear(tokens, matrix.to(dtype)), total.shape[2:])
        return total if fold_norm else norm(total)

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


def _upsample(tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, H, W, C) -> (B, C, *size), bilinear."""
    feature_map = tokens.permute(0, 3, 1, 2)
    if feature_map.shape[2:] == size:
        return feature_map
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)
