# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The Mix Transformer encoder (arXiv 2105.15203, section 3.1), top to bottom in data-flow order.

Shapes: B batch, C channels, H W height and width of the feature map at hand, N = H*W tokens, A attention heads, S
stages. Feature maps are carried channels-last, as (B, H, W, C): that is the token matrix (B, N, C) and, permuted, the
channels-last image (B, C, H, W) without a copy.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from .configuration_segformer import SegformerConfig
from .kernel_choice_segformer import choose
from .mix_ffn_segformer import MixFeedForward
from .onednn_segformer import depthwise_gelu, explicit_attention, linear, pixel_linear, prefers_explicit_attention
from .plain_segformer import (
    is_exact_gelu,
    is_plain,
    is_plain_depthwise,
    is_untouched,
    may_stream,
    may_train_in_pieces,
)

logger = logging.get_logger(__name__)

# Bytes of a feed-forward layer's hidden map that inference on a CPU works on at a time.
_BAND_BYTES = 8 << 20


def smallest_side(config: SegformerConfig) -> int:
    """Pixels that each side of an image must have at least, so that every convolution finds its kernel's worth."""
    side = 1
    stages = zip(config.patch_sizes, config.strides, config.sr_ratios, strict=True)
    for kernel, stride, ratio in reversed(list(stages)):
        side = max((max(side, ratio) - 1) * stride + kernel - 2 * (kernel // 2), 1)
    return side


def points_of(config: SegformerConfig, pixels: int) -> int:
    """Points of the first stage's map, and of the logits, along a side of so many pixels."""
    kernel, stride = config.patch_sizes[0], config.strides[0]
    return (pixels + 2 * (kernel // 2) - kernel) // stride + 1


class SegformerOverlapPatchEmbeddings(nn.Module):
    """Overlapping patch embedding: a strided convolution and LayerNorm."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        kernel = config.patch_sizes[stage]
        self.proj = nn.Conv2d(
            config.num_channels if stage == 0 else config.hidden_sizes[stage - 1],
            config.hidden_sizes[stage],
            kernel_size=kernel,
            stride=config.strides[stage],
            padding=kernel // 2,
        )
        self.layer_norm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.embed_norm_eps)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(self.proj(feature_map).permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention with explicit weights; softmax in at least float32."""
    scores = query @ key.transpose(2, 3) * scaling  # (B, A, N, N')
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class SegformerEfficientSelfAttention(nn.Module):
    """Self-attention whose keys and values come from a feature map reduced `sr_ratio` times along each side."""

    is_causal = False

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        self.config = config
        hidden_size, ratio = config.hidden_sizes[stage], config.sr_ratios[stage]
        self.num_attention_heads = config.num_attention_heads[stage]
        self.head_dim = hidden_size // self.num_attention_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.sr_ratio = ratio
        if ratio > 1:
            self.sr = nn.Conv2d(hidden_size, hidden_size, kernel_size=ratio, stride=ratio)
            self.layer_norm = nn.LayerNorm(hidden_size, eps=config.embed_norm_eps)

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        # In one step, all sizes given: from anything else the ONNX exporter without dynamo takes the sizes at hand for
        # the only ones.
        batch, height, width, _ = tokens.shape
        tokens = tokens.reshape(batch, height * width, self.num_attention_heads, self.head_dim)
        return tokens.transpose(1, 2)  # (B, H, W, C) -> (B, A, N, C/A)

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False):
        reduced = hidden_states
        if self.sr_ratio > 1:
            reduced = self.layer_norm(self.sr(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        query, key, value = (
            self._split_heads(linear(module, tokens))
            for module, tokens in ((self.query, hidden_states), (self.key, reduced), (self.value, reduced))
        )
        # Only the eager form has attention weights to show.
        implementation = "eager" if output_attentions else self.config._attn_implementation
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        if implementation == "sdpa" and dropout == 0 and prefers_explicit_attention(hidden_states):
            context = explicit_attention(query, key, value, self.head_dim**-0.5)
            return context.reshape(hidden_states.shape), None
        context, weights = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)(
            self,
            query,
            key,
            value,
            None,
            scaling=self.head_dim**-0.5,
            dropout=dropout,
        )  # (B, N, A, C/A)
        return context.reshape(hidden_states.shape), weights if output_attentions else None


class SegformerSelfOutput(nn.Module):
    """Output projection of attention."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_sizes[stage], config.hidden_sizes[stage])
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(linear(self.dense, hidden_states))


class SegformerAttention(nn.Module):
    """Efficient self-attention followed by its output projection."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        self.self = SegformerEfficientSelfAttention(config, stage)
        self.output = SegformerSelfOutput(config, stage)

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False):
        context, weights = self.self(hidden_states, output_attentions)
        return self.output(context), weights


class SegformerDWConv(nn.Module):
    """3x3 depthwise convolution: it gives tokens their position."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dwconv(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SegformerMixFFN(nn.Module):
    """Feed-forward layer with a depthwise convolution before its activation."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.dense1 = nn.Linear(width, width * config.mlp_ratios[stage])
        self.dwconv = SegformerDWConv(width * config.mlp_ratios[stage])
        self.intermediate_act_fn = ACT2FN[config.hidden_act]
        self.dense2 = nn.Linear(width * config.mlp_ratios[stage], width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self._may_cut_rows(hidden_states):
            return self._forward_in_bands(hidden_states)
        if self._may_train_in_chunks(hidden_states):
            return MixFeedForward.apply(hidden_states, *self._parameters_in_order())
        hidden_states = pixel_linear(self.dense1, hidden_states)
        if self._may_use_kernel(hidden_states):
            convolution = self.dwconv.dwconv
            hidden_states = choose(
                "depthwise_gelu", self._convolve_and_activate, hidden_states, convolution.weight, convolution.bias
            )
        else:
            hidden_states = self._convolve_and_activate(hidden_states)
        return self.dropout(self.dense2(self.dropout(hidden_states)))

    def _may_cut_rows(self, hidden_states: torch.Tensor) -> bool:
        """Whether the modules do to a band of rows what they do to the whole map, and nobody watches them."""
        return may_stream(hidden_states) and not self.dropout.training and self._is_plain()

    def _may_train_in_chunks(self, hidden_states: torch.Tensor) -> bool:
        """Whether a training step on a CPU may compute some images at a time, forwards and backwards."""
        return (
            may_train_in_pieces(hidden_states)
            and hidden_states.dtype == torch.float32
            and hidden_states.numel() > 0
            and not (self.dropout.training and self.dropout.p > 0)
            and self._is_plain()
            and is_exact_gelu(self.intermediate_act_fn)
            and all(p is not None and p.dtype == torch.float32 for p in self._parameters_in_order())
        )

    def _parameters_in_order(self) -> list[torch.Tensor | None]:
        layers = self.dense1, self.dwconv.dwconv, self.dense2
        return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]

    def _is_plain(self) -> bool:
        """Whether nobody watches or replaced the modules."""
        return (
            is_plain(self.dense1, nn.Linear)
            and is_untouched(self.dwconv, SegformerDWConv)
            and is_plain_depthwise(self.dwconv.dwconv)
            and is_untouched(self.intermediate_act_fn, type(self.intermediate_act_fn))
            and is_plain(self.dense2, nn.Linear)
            and is_untouched(self.dropout, nn.Dropout)
        )

    def _may_use_kernel(self, hidden_states: torch.Tensor) -> bool:
        """Whether the convolution and its activation may be computed together on a GPU, without calling them."""
        return (
            hidden_states.is_cuda
            and not torch.is_grad_enabled()
            and is_untouched(self.dwconv, SegformerDWConv)
            and is_plain_depthwise(self.dwconv.dwconv)
            and is_exact_gelu(self.intermediate_act_fn)
            and self.dwconv.dwconv.bias is not None
            and hidden_states.dtype == self.dwconv.dwconv.weight.dtype == self.dwconv.dwconv.bias.dtype
        )

    def _convolve_and_activate(self, hidden_states: torch.Tensor, *_) -> torch.Tensor:
        return self.intermediate_act_fn(self.dwconv(hidden_states))

    def _forward_in_bands(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The same, one image and band of rows at a time: the hidden map is never held.

        The convolution sees one row beyond each end of a band, so those are computed twice.
        """
        batch, height, width, _ = hidden_states.shape
        row_bytes = width * self.dense1.out_features * hidden_states.element_size()
        bands = max(-(-height * row_bytes // _BAND_BYTES), 1)
        if bands == 1 and batch == 1:
            return self._forward_band(hidden_states, slice(None))
        result = torch.empty_like(hidden_states)
        step = max(-(-height // bands), 1)
        for image, output in zip(hidden_states.split(1), result.split(1), strict=True):
            for top in range(0, height, step):
                bottom, above, below = min(top + step, height), max(top - 1, 0), min(top + step + 1, height)
                rows = slice(top - above, bottom - above)
                output[:, top:bottom] = self._forward_band(image[:, above:below], rows)
        return result

    def _forward_band(self, image: torch.Tensor, rows: slice) -> torch.Tensor:
        """Some rows of the result for some rows of one image."""
        hidden = linear(self.dense1, image).permute(0, 3, 1, 2)
        hidden = depthwise_gelu(self.dwconv.dwconv, self.intermediate_act_fn, hidden)
        return linear(self.dense2, hidden.permute(0, 2, 3, 1)[:, rows])


class SegformerDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training drops the whole residual branch of a sample."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        mask = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device).add_(keep_prob).floor_()
        return hidden_states.div(keep_prob) * mask

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class SegformerLayer(GradientCheckpointingLayer):
    """Transformer layer: attention and Mix-FFN, each normalised before and added to its input."""

    def __init__(self, config: SegformerConfig, stage: int, drop_path: float):
        super().__init__()
        self.layer_norm_1 = nn.LayerNorm(config.hidden_sizes[stage], eps=config.block_norm_eps)
        self.attention = SegformerAttention(config, stage)
        self.drop_path = SegformerDropPath(drop_path)
        self.layer_norm_2 = nn.LayerNorm(config.hidden_sizes[stage], eps=config.block_norm_eps)
        self.mlp = SegformerMixFFN(config, stage)

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False):
        context, weights = self.attention(self.layer_norm_1(hidden_states), output_attentions)
        hidden_states = self.drop_path(context) + hidden_states
        hidden_states = self.drop_path(self.mlp(self.layer_norm_2(hidden_states))) + hidden_states
        return hidden_states, weights


def _warn_if_cut_off(layer: SegformerLayer, output: torch.Tensor) -> None:
    """Reentrant checkpointing gives parameters a gradient only if the layer's input needs one as well."""
    if not (layer.gradient_checkpointing and layer.training and torch.is_grad_enabled()) or output.requires_grad:
        return
    if any(parameter.requires_grad for parameter in layer.parameters()):
        logger.warning_once(
            "Gradient checkpointing with use_reentrant=True cuts off layers whose input needs no gradient: what is to "
            "be trained in them (an adapter, say) gets none and stays as it is. Call "
            "model.enable_input_require_grads(), or checkpoint with use_reentrant=False."
        )


class SegformerEncoder(nn.Module):
    """The S stages of the Mix Transformer, each a patch embedding, its layers and a LayerNorm."""

    def __init__(self, config: SegformerConfig):
        super().__init__()
        self.config = config
        self.smallest_side = smallest_side(config)
        total = sum(config.depths)
        rates = iter([config.drop_path_rate * layer / max(total - 1, 1) for layer in range(total)])
        stages = range(config.num_encoder_blocks)
        self.patch_embeddings = nn.ModuleList([SegformerOverlapPatchEmbeddings(config, stage) for stage in stages])
        self.block = nn.ModuleList(
            [
                nn.ModuleList([SegformerLayer(config, stage, next(rates)) for _ in range(config.depths[stage])])
                for stage in stages
            ]
        )
        self.layer_norm = nn.ModuleList(
            [nn.LayerNorm(config.hidden_sizes[stage], eps=config.block_norm_eps) for stage in stages]
        )

    @property
    def num_channels(self) -> int | None:
        """Channels that the first convolution takes, also where another one was put in its place; None if unknown."""
        projection = getattr(self.patch_embeddings[0], "proj", self.patch_embeddings[0])
        if not hasattr(projection, "in_channels"):
            projection = next((m for m in projection.modules() if isinstance(m, nn.Conv2d)), None)
        return getattr(projection, "in_channels", None)

    def forward(self, pixel_values: torch.Tensor, output_attentions: bool = False):
        feature_map, feature_maps, attentions = pixel_values, [], []
        for embed, layers, norm in zip(self.patch_embeddings, self.block, self.layer_norm, strict=True):
            hidden_states = embed(feature_map)
            for layer in layers:
                hidden_states, weights = layer(hidden_states, output_attentions)
                _warn_if_cut_off(layer, hidden_states)
                attentions.append(weights)
            hidden_states = norm(hidden_states)
            feature_map = hidden_states.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W), a view
            feature_maps.append(feature_map)
        if not self.config.reshape_last_stage:
            feature_maps[-1] = hidden_states.flatten(1, 2)  # (B, N, C)
        return tuple(feature_maps), tuple(attentions) if output_attentions else None
