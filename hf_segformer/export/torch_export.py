# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.export`."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pretrained.input_checks import smallest_side
from .folding import Affine, Head, Weights
from .metadata import KEY
from .settings import Settings, label_type


class FoldedHead(nn.Module):
    """The decode head as `folding.Head` describes it.

    Args:
        head: Its weights.
    """

    def __init__(self, head: Head):
        super().__init__()
        self.projections = nn.ModuleList(_convolution(layer) for layer in head.projections)
        self.stages = nn.ModuleList(_convolution(layer) for layer in head.stages)
        self.classifier = _convolution(head.classifier)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Logits of the stages' maps."""
        maps = list(feature_maps)
        for stage, projection in enumerate(self.projections):
            maps[stage] = projection(maps[stage]).relu()
        total, *others = (fuse(image) for fuse, image in zip(self.stages, maps, strict=True))
        for summand in others:
            total = total + F.interpolate(summand, size=total.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(total.relu())


def _convolution(layer: Affine) -> nn.Conv2d:
    outputs, inputs = layer.weight.shape
    convolution = nn.Conv2d(inputs, outputs, 1, bias=layer.bias is not None)
    state = {"weight": torch.from_numpy(layer.weight[:, :, None, None])}
    if layer.bias is not None:
        state["bias"] = torch.from_numpy(layer.bias)
    convolution.load_state_dict(state)
    return convolution


class ExportedNetwork(nn.Module):
    """What is traced: pixels in, logits or label maps out.

    Args:
        model: The network.
        weights: Its weights.
        metadata: What `metadata.describe` returned.
        settings: What is exported.
    """

    def __init__(self, model: Any, weights: Weights, metadata: dict[str, Any], settings: Settings):
        super().__init__()
        self.network = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.network.decode_head = FoldedHead(weights.head())
        self.settings, self.preprocessor, self.num_labels = settings, metadata["preprocessor"], model.config.num_labels
        for part in ("mean", "std"):
            values = torch.tensor(self.preprocessor.get(f"image_{part}") or 0.0)
            self.register_buffer(part, values.reshape(-1, 1, 1))
        if settings.half:
            self._store_half()

    def _store_half(self) -> None:
        for module in self.network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.half(), requires_grad=False))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The outputs in their order in the file."""
        size = pixel_values.shape[2:]
        if self.settings.normalize == "inside":
            pixel_values = self._normalized(pixel_values)
        weights = {name: value.float() for name, value in self.network.named_parameters()}
        logits = torch.func.functional_call(self.network, weights, (pixel_values,)).logits
        return (logits.contiguous(),) if self.settings.output == "logits" else self._label_map(logits, size)

    def _normalized(self, pixels: Tensor) -> Tensor:
        values = pixels.float()
        if self.preprocessor["do_rescale"]:
            values = values * self.preprocessor["rescale_factor"]
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (values - mean) / std if self.preprocessor["do_normalize"] else values

    def _label_map(self, logits: Tensor, size: Sequence[int]) -> tuple[Tensor, ...]:
        scores = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        dtype = torch.from_numpy(np.empty(0, label_type(self.num_labels))).dtype
        if self.num_labels == 1:
            labels, confidence = scores[:, 0] > 0, scores[:, 0].abs().sigmoid()
        else:
            labels, confidence = scores.argmax(dim=1), scores.softmax(dim=1).amax(dim=1)
        labels = labels.to(dtype)
        return (labels, confidence) if self.settings.output == "labels+confidence" else (labels,)


def save(model: Any, weights: Weights, metadata: dict[str, Any], settings: Settings, path: Path) -> None:
    """Trace a model and write it.

    Args:
        model: The network.
        weights: Its weights.
        metadata: What `metadata.describe` returned.
        settings: What is exported.
        path: The `.pt2`.
    """
    network = ExportedNetwork(model, weights, metadata, settings).eval()
    smallest = max(smallest_side(model.config), 2)
    # Sides at which no map of the network has a side of one, which the tracer would take for good.
    height, width = settings.size or (smallest * 4 + 1, smallest * 4 + 6)
    dtype = torch.uint8 if settings.normalize == "inside" else torch.float32
    example = torch.zeros(2, model.config.num_channels, height, width, dtype=dtype)
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if settings.size is None:
        axes |= {2: torch.export.Dim("height", min=64), 3: torch.export.Dim("width", min=64)}
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes={"pixel_values": axes}, strict=False)
        torch.export.save(program, path, extra_files={KEY: json.dumps(metadata)})
