# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts of the encoder that a run leaves as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ..modeling_segformer import SegformerForSemanticSegmentation


def stages_to_freeze(freeze: str) -> int | None:
    """Number of stages from the image on that the flag names; None for the whole encoder.

    Raises:
        ValueError: It is neither `encoder` nor `stages:N` with N from 1 on.
    """
    if freeze == "encoder":
        return None
    match = re.fullmatch(r"stages:([0-9]{1,3})", freeze)
    if match is None or int(match[1]) < 1:
        raise ValueError(f"freeze must be encoder, or stages:N with N >= 1 for the first N stages, got {freeze!r}")
    return int(match[1])


def freeze_parts(model: SegformerForSemanticSegmentation, freeze: str) -> list[nn.Module]:
    """Give parts of a model no gradients, so that an optimizer that is made afterwards does not know them either.

    Args:
        model: A segmentation model.
        freeze: `encoder`, or `stages:N` for the first N stages: patch embedding, layers and norm of each.

    Returns:
        The frozen modules. Keep them in evaluation mode while the rest trains (`keep_frozen`).

    Raises:
        ValueError: The model has no such parts.
    """
    encoder: Any = model.segformer.encoder
    stages, count = stages_to_freeze(freeze), len(encoder.block)
    if stages is not None and stages > count:
        raise ValueError(f"freeze must be encoder, or stages:N with N <= {count} for this model, got {freeze!r}")
    parts: list[nn.Module] = [encoder]
    if stages is not None:
        parts = [
            part[n] for n in range(stages) for part in (encoder.patch_embeddings, encoder.block, encoder.layer_norm)
        ]
    for part in parts:
        part.requires_grad_(False)
    keep_frozen(parts)
    return parts


def keep_frozen(parts: Sequence[nn.Module]) -> None:
    """Switch off what makes frozen parts another network in training: drop path, dropout, counting statistics.

    `model.train()` undoes it: call it again afterwards.
    """
    for part in parts:
        part.eval()
