# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A network's weights as an exported file holds them: everything that can be multiplied together beforehand is.

All products are taken in float64. Shapes: C channels of a stage, E decoder width, S stages, K classes. Matrices are
(outputs, inputs), as in `torch.nn.Linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..modeling_segformer import SegformerForSemanticSegmentation

Array = np.ndarray


@dataclass
class Affine:
    """A matrix, or the kernel of a convolution, and a bias."""

    weight: Array
    bias: Array | None


@dataclass
class Head:
    """The decode head: S matrices at the stages' own resolutions, whose upsampled sum is activated and classified.

    Args:
        projections: Of the convolutional head: each stage's own layer, before its ReLU; else empty.
        stages: Each stage's matrix (E, C), or (E, E) after a projection; the last with the bias of the sum.
        classifier: (K, E).
    """

    projections: list[Affine]
    stages: list[Affine]
    classifier: Affine


class Weights:
    """Weights of a network in float64, by their names.

    Args:
        model: A plain network of this package.

    Raises:
        ValueError: It is none, or modules of it were replaced, adapted, pruned or quantised.
    """

    def __init__(self, model: Any):
        if type(model) is not SegformerForSemanticSegmentation:
            found = f"{type(model).__name__} of {type(model).__module__}"
            raise ValueError(f"model must be a SegformerForSemanticSegmentation of this package, got a {found}")
        self.config = model.config
        state = model.state_dict()
        with torch.device("meta"):
            expected = {name: value.shape for name, value in type(model)(model.config).state_dict().items()}
        for name in sorted(expected.keys() | state.keys()):
            if name not in state or name not in expected or state[name].shape != expected[name]:
                found = f"of shape {tuple(state[name].shape)}" if name in state else "missing"
                raise ValueError(
                    f"model must be as its configuration says, without adapters (merge them), pruned or replaced "
                    f"layers; {name} is {found}"
                )
            if not state[name].is_floating_point() and not name.endswith("num_batches_tracked"):
                raise ValueError(f"model must have floating-point weights, {name} is {state[name].dtype}")
        self._state = {name: value.detach().to("cpu", torch.float64).numpy() for name, value in state.items()}

    def __getitem__(self, name: str) -> Array:
        return self._state[name]

    def affine(self, name: str) -> Affine:
        """Weight and bias of a layer."""
        return Affine(self[f"{name}.weight"], self._state.get(f"{name}.bias"))

    def norm(self, name: str, epsilon: float) -> tuple[Array, Array]:
        """Factor and summand per channel that a BatchNorm amounts to."""
        scale = self[f"{name}.weight"] / np.sqrt(self[f"{name}.running_var"] + epsilon)
        return scale, self[f"{name}.bias"] - self[f"{name}.running_mean"] * scale

    def head(self) -> Head:
        """The decode head, its BatchNorms and projections folded."""
        epsilon = nn.BatchNorm2d(1).eps
        stages, convolutional = self.config.num_encoder_blocks, self.config.conv_decoder_hidden_size is not None
        fuse = self["decode_head.linear_fuse.weight"][:, :, 0, 0]
        scale, bias = self.norm("decode_head.batch_norm", epsilon)
        blocks = np.split(scale[:, None] * fuse, stages, axis=1)[::-1]  # the columns of stage S come first
        projections, matrices = [], []
        for stage, block in enumerate(blocks):
            layer = self.affine(f"decode_head.linear_c.{stage}.proj")
            if convolutional:
                factor, summand = self.norm(f"decode_head.linear_c.{stage}.batch_norm", epsilon)
                projections.append(Affine(factor[:, None] * layer.weight, summand))
                matrices.append(Affine(block, None))
            else:
                bias = bias + block @ layer.bias
                matrices.append(Affine(block @ layer.weight, None))
        matrices[-1].bias = bias  # upsampling leaves constants as they are
        classifier = self.affine("decode_head.classifier")
        return Head(projections, matrices, Affine(classifier.weight[:, :, 0, 0], classifier.bias))
