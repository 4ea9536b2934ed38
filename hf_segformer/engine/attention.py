# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention in inference on a CPU: linear layers by oneDNN, and in bfloat16 matrix products instead of PyTorch's own.

Shapes: B batch, A heads, N queries, N' keys, C channels, D = C/A.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .eligibility import Part, no_explicit_attention, no_inference_of_module
from .onednn import linear
from .seam import implements

# Bytes of attention weights to hold at a time, found by `python -m hf_segformer.benchmark.constants`.
_WEIGHTS_BYTES = 8 << 20


@implements("SegformerEfficientSelfAttention.forward", unless=no_inference_of_module)
def attention_layers(
    attention: Part, tokens: Tensor, size: Sequence[int], output_attentions: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The textbook's, each linear layer by oneDNN where it is plain."""
    reduced = attention.reduce(tokens, size)
    layers = (attention.query, tokens), (attention.key, reduced), (attention.value, reduced)
    query, key, value = (attention.split_heads(linear(layer, values)) for layer, values in layers)
    context, weights = attention.attend(query, key, value, output_attentions)
    return context.reshape(tokens.shape), weights


@implements("SegformerSelfOutput.forward", unless=no_inference_of_module)
def output_layer(output: Part, tokens: Tensor) -> Tensor:
    """The textbook's, the linear layer by oneDNN where it is plain."""
    return output.dropout(linear(output.dense, tokens))


@implements("SegformerEfficientSelfAttention.attend", unless=no_explicit_attention)
def attend_by_products(
    attention: Part, query: Tensor, key: Tensor, value: Tensor, output_attentions: bool
) -> tuple[Tensor, None]:
    """Attention without PyTorch's own, which takes longer in bfloat16 than in float32 on processors without AMX."""
    return explicit_attention(query, key, value, attention.head_dim**-0.5), None


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention by matrix products and softmax, some queries at a time.

    Here the scores are rounded to bfloat16 before the softmax. To lose less by it, the mean of the keys is taken off:
    it adds the same number to all scores of a query, which softmax ignores, and leaves smaller ones.

    Args:
        query: (B, A, N, D) bfloat16.
        key: (B, A, N', D).
        value: (B, A, N', D).
        scaling: Factor of the scores.

    Returns:
        (B, N, A, D).
    """
    key = key.float()
    key = ((key - key.mean(dim=2, keepdim=True)) * scaling).to(query.dtype).transpose(2, 3)
    batch, heads, queries, size = query.shape
    result = torch.empty((batch, queries, heads, size), dtype=query.dtype, device=query.device)
    step = max(_WEIGHTS_BYTES // (batch * heads * key.shape[3] * query.element_size()), 1)
    for start in range(0, queries, step):
        part = slice(start, start + step)
        weights = (query[:, :, part] @ key).softmax(dim=-1)
        result[:, part] = (weights @ value).transpose(1, 2)
    return result
