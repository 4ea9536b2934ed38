# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""SegFormer (arXiv 2105.15203) as the paper has it: the whole network, top to bottom in data-flow order.

Shapes: B batch, C channels, H W height and width of the feature map at hand, N = H*W tokens, N' reduced tokens, A
attention heads, S stages, E decoder width, K classes. Maps are channels-last in memory, so that an image (B, C, H, W)
and its tokens (B, N, C) are views of one another. Linear layers and norms see tokens, convolutions see images.

Parameter names are the layout of every published checkpoint: `state_dict()` is the file format.

`@accelerated` marks what `hf_segformer.engine` may compute another way, or go around, to the same result up to
rounding. `engine.off()` computes exactly what is written here, `engine.explain()` says what ran.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_segformer import SegformerConfig
from .engine import accelerated
from .pretrained.input_checks import check_feature_maps, check_pixel_values
from .pretrained.loading import SegformerLoading
from .scores.cross_entropy import upsample_cross_entropy

Maps = tuple[Tensor, ...]
Attended = tuple[Tensor, Tensor | None]  # with the attention weights, where these are wanted

# Sizes are read off tensors and given to one `reshape`: from anything else the ONNX exporter without dynamo takes the
# sizes at hand for the only ones.


def to_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, C)."""
    batch, channels, height, width = image.shape
    return image.permute(0, 2, 3, 1).reshape(batch, height * width, channels)


def to_image(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, N, C) to (B, C, H, W) of the given height and width."""
    return tokens.reshape(tokens.shape[0], *size, tokens.shape[2]).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------- encoder: Mix Transformer


class SegformerOverlapPatchEmbeddings(nn.Module):
    """Overlapping patch embedding: a strided convolution and LayerNorm."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        channels = [config.num_channels, *config.hidden_sizes]
        kernel, stride = config.patch_sizes[stage], config.strides[stage]
        self.proj = nn.Conv2d(channels[stage], channels[stage + 1], kernel, stride, padding=kernel // 2)
        self.layer_norm = nn.LayerNorm(channels[stage + 1], eps=config.embed_norm_eps)

    @accelerated
    def forward(self, image: Tensor) -> Tensor:
        image = self.proj(image)
        return to_image(self.layer_norm(to_tokens(image)), image.shape[2:])  # one tensor, as those who hook it expect


def eager_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, dropout: float
) -> tuple[Tensor, Tensor]:
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
        width, self.sr_ratio = config.hidden_sizes[stage], config.sr_ratios[stage]
        self.num_attention_heads = config.num_attention_heads[stage]
        self.head_dim = width // self.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        if self.sr_ratio > 1:
            self.sr = nn.Conv2d(width, width, kernel_size=self.sr_ratio, stride=self.sr_ratio)
            self.layer_norm = nn.LayerNorm(width, eps=config.embed_norm_eps)

    def reduce(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """(B, N, C) to (B, N', C)."""
        if self.sr_ratio == 1:
            return tokens
        return self.layer_norm(to_tokens(self.sr(to_image(tokens, size))))

    def split_heads(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, A, N, C/A)."""
        shape = tokens.shape[0], tokens.shape[1], self.num_attention_heads, self.head_dim
        return tokens.reshape(shape).transpose(1, 2)

    @accelerated
    def attend(self, query: Tensor, key: Tensor, value: Tensor, output_attentions: bool) -> Attended:
        """Attention of (B, A, N, C/A) queries to (B, A, N', C/A) keys: (B, N, A, C/A) and, if wanted, the weights."""
        # Only the eager form has attention weights to show.
        implementation = "eager" if output_attentions else self.config._attn_implementation
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        context, weights = attention(self, query, key, value, None, scaling=self.head_dim**-0.5, dropout=dropout)
        return context, weights if output_attentions else None

    @accelerated
    def forward(self, tokens: Tensor, size: Sequence[int], output_attentions: bool = False) -> Attended:
        reduced = self.reduce(tokens, size)
        query, key, value = self.query(tokens), self.key(reduced), self.value(reduced)
        query, key, value = self.split_heads(query), self.split_heads(key), self.split_heads(value)
        context, weights = self.attend(query, key, value, output_attentions)
        return context.reshape(tokens.shape), weights


class SegformerSelfOutput(nn.Module):
    """Output projection of attention."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_sizes[stage], config.hidden_sizes[stage])
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @accelerated
    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.dense(tokens))


class SegformerAttention(nn.Module):
    """Efficient self-attention followed by its output projection."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        self.self = SegformerEfficientSelfAttention(config, stage)
        self.output = SegformerSelfOutput(config, stage)

    def forward(self, tokens: Tensor, size: Sequence[int], output_attentions: bool = False) -> Attended:
        context, weights = self.self(tokens, size, output_attentions)
        return self.output(context), weights


class SegformerDWConv(nn.Module):
    """3x3 depthwise convolution: it gives tokens their position."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)

    @accelerated
    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        return to_tokens(self.dwconv(to_image(tokens, size)))


class SegformerMixFFN(nn.Module):
    """Feed-forward layer with a depthwise convolution before its activation."""

    def __init__(self, config: SegformerConfig, stage: int):
        super().__init__()
        width, hidden = config.hidden_sizes[stage], config.hidden_sizes[stage] * config.mlp_ratios[stage]
        self.dense1 = nn.Linear(width, hidden)
        self.dwconv = SegformerDWConv(hidden)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]
        self.dense2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @accelerated
    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        hidden = self.intermediate_act_fn(self.dwconv(self.dense1(tokens), size))
        return self.dropout(self.dense2(self.dropout(hidden)))


class SegformerDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training drops the whole residual branch of a sample."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, tokens: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return tokens
        keep_prob = 1 - self.drop_prob
        mask = torch.rand_like(tokens[:, :1, :1]).add_(keep_prob).floor_()
        return tokens.div(keep_prob) * mask

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

    @accelerated
    def forward(self, tokens: Tensor, size: Sequence[int], output_attentions: bool = False) -> Attended:
        context, weights = self.attention(self.layer_norm_1(tokens), size, output_attentions)
        tokens = self.drop_path(context) + tokens
        tokens = self.drop_path(self.mlp(self.layer_norm_2(tokens), size)) + tokens
        return tokens, weights


class SegformerEncoder(nn.Module):
    """The S stages of the Mix Transformer: in each a patch embedding, its layers and a LayerNorm."""

    def __init__(self, config: SegformerConfig):
        super().__init__()
        stages, total = range(config.num_encoder_blocks), sum(config.depths)
        rates = iter([config.drop_path_rate * layer / max(total - 1, 1) for layer in range(total)])
        self.patch_embeddings = nn.ModuleList(SegformerOverlapPatchEmbeddings(config, stage) for stage in stages)
        self.block = nn.ModuleList(
            nn.ModuleList(SegformerLayer(config, stage, next(rates)) for _ in range(config.depths[stage]))
            for stage in stages
        )
        self.layer_norm = nn.ModuleList(
            nn.LayerNorm(config.hidden_sizes[stage], eps=config.block_norm_eps) for stage in stages
        )

    def forward(self, image: Tensor, output_attentions: bool = False) -> tuple[Maps, Maps | None]:
        feature_maps, attentions = [], []
        for embed, layers, norm in zip(self.patch_embeddings, self.block, self.layer_norm, strict=True):
            image = embed(image)
            tokens, size = to_tokens(image), image.shape[2:]
            for layer in layers:  # type: ignore[attr-defined]
                tokens, weights = layer(tokens, size, output_attentions)
                attentions.append(weights)
            image = to_image(norm(tokens), size)
            feature_maps.append(image)
        return tuple(feature_maps), tuple(attentions) if output_attentions else None


# --------------------------------------------------------------------------------------------------------- decode head


class SegformerMLP(nn.Module):
    """A stage's projection to the decoder width."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.proj = nn.Linear(hidden_size, width)

    @accelerated
    def forward(self, image: Tensor) -> Tensor:
        return to_image(self.proj(to_tokens(image)), image.shape[2:])  # (B, C, H, W) -> (B, E, H, W)


class SegformerConvProjection(nn.Module):
    """A stage's projection in mmsegmentation's head: 1x1 convolution without bias, BatchNorm, ReLU."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.proj = nn.Linear(hidden_size, width, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()

    @accelerated
    def forward(self, image: Tensor) -> Tensor:
        projected = to_image(self.proj(to_tokens(image)), image.shape[2:])  # (B, C, H, W) -> (B, E, H, W)
        return self.activation(self.batch_norm(projected))


class SegformerDecodeHead(nn.Module):
    """All-MLP decoder: project each stage, upsample, concatenate, fuse, classify.

    Args:
        config: Configuration; `decoder_hidden_size` or `conv_decoder_hidden_size` chooses the head.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__()
        width = config.decoder_hidden_size or config.conv_decoder_hidden_size
        assert width is not None  # by the rules of the configuration
        projection = SegformerMLP if config.decoder_hidden_size else SegformerConvProjection
        self.linear_c = nn.ModuleList(projection(hidden_size, width) for hidden_size in config.hidden_sizes)
        # Columns of the weight: stage S first, in both heads.
        self.linear_fuse = nn.Conv2d(width * config.num_encoder_blocks, width, kernel_size=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()
        dropout = nn.Dropout if config.classifier_dropout_mode == "element" else nn.Dropout2d
        self.dropout = dropout(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    @accelerated
    def decode(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Logits of feature maps that are known to fit."""
        upsampled = [
            F.interpolate(project(image), size=feature_maps[0].shape[2:], mode="bilinear", align_corners=False)
            for project, image in zip(self.linear_c, feature_maps, strict=True)
        ]  # S times (B, E, H_1, W_1)
        fused = self.activation(self.batch_norm(self.linear_fuse(torch.cat(upsampled[::-1], dim=1))))
        return self.classifier(self.dropout(fused))

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Classify feature maps.

        Args:
            feature_maps: S maps (B, C_s, H_s, W_s), stage 1 first.

        Returns:
            Logits (B, K, H_1, W_1), channels-last in memory.

        Raises:
            ValueError: There is not one map for each stage, or one has another width than its stage.
        """
        check_feature_maps(self, feature_maps)
        return self.decode(feature_maps)


# -------------------------------------------------------------------------------------------------------------- models


class SegformerPreTrainedModel(SegformerLoading):
    """Loading, saving and initialisation shared by all SegFormer models, and what those do that hold an encoder."""

    segformer: nn.Module

    def _encode(
        self, pixel_values: Tensor, output_attentions: bool | None, output_hidden_states: bool | None
    ) -> tuple[list[Tensor], dict]:
        """Each stage's map (B, C, H, W), and the encoder's outputs that were asked for."""
        config = self.config
        show_maps = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        outputs = self.segformer(pixel_values, output_attentions, output_hidden_states=True, return_dict=True)
        maps = list(outputs.hidden_states)
        if not config.reshape_last_stage:  # then the last one is (B, N, C)
            size: Sequence[int] = pixel_values.shape[2:]
            for kernel, stride in zip(config.patch_sizes, config.strides, strict=True):
                size = [(side + 2 * (kernel // 2) - kernel) // stride + 1 for side in size]
            maps[-1] = to_image(maps[-1], size)
        extras = {"hidden_states": outputs.hidden_states if show_maps else None, "attentions": outputs.attentions}
        return maps, extras


class SegformerModel(SegformerPreTrainedModel):
    """The Mix Transformer encoder.

    Args:
        config: Configuration.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        self.encoder = SegformerEncoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple:
        """Encode images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, floating point, any H and W from `smallest_side(config)`
                on: 29 for the published configurations.
            output_attentions: Also return each layer's attention weights (B, A, N, N'), N' the reduced tokens.
            output_hidden_states: Also return each stage's feature map (B, C, H/s, W/s), s = 4, 8, 16, 32.
            return_dict: False for a plain tuple.

        Returns:
            `last_hidden_state` is the last stage's map, as (B, N, C) if `config.reshape_last_stage` is False. Maps are
            channels-last in memory.

        Raises:
            ValueError: `pixel_values` is not 4-D, has another number of channels, or (not while compiling or
                exporting) is too small.
        """
        check_pixel_values(self, pixel_values)
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        feature_maps, attentions = self.encoder(pixel_values, bool(output_attentions))
        if not config.reshape_last_stage:
            feature_maps = (*feature_maps[:-1], to_tokens(feature_maps[-1]))
        hidden_states = feature_maps if output_hidden_states else None
        return self._as_requested(BaseModelOutput(feature_maps[-1], hidden_states, attentions), return_dict)


class SegformerForImageClassification(SegformerPreTrainedModel):
    """Encoder, global average pooling and a linear classifier, as pretrained on ImageNet.

    Args:
        config: Configuration.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        config.name_pixels(False)
        self.num_labels = config.num_labels
        self.segformer = SegformerModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple:
        """Classify images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, floating point.
            labels: (B,) int64 class indices, or floats when `config.problem_type` is "regression".
            output_attentions: See `SegformerModel.forward`.
            output_hidden_states: See `SegformerModel.forward`.
            return_dict: False for a plain tuple.

        Returns:
            `logits` (B, K) and, with labels, `loss`.
        """
        maps, extras = self._encode(pixel_values, output_attentions, output_hidden_states)
        logits = self.classifier(maps[-1].mean(dim=(2, 3)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return self._as_requested(ImageClassifierOutput(loss=loss, logits=logits, **extras), return_dict)


class SegformerForSemanticSegmentation(SegformerPreTrainedModel):
    """Encoder and decode head: logits at a quarter of the image's resolution.

    Args:
        config: Configuration.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        config.name_pixels(True)
        self.segformer = SegformerModel(config)
        self.decode_head = SegformerDecodeHead(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple:
        """Segment images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, floating point, any H and W.
            labels: (B, H', W') int64 class indices in [0, K) or `config.semantic_loss_ignore_index`; the loss is
                computed at their size. With K = 1, 0 and 1.
            output_attentions: See `SegformerModel.forward`.
            output_hidden_states: See `SegformerModel.forward`.
            return_dict: False for a plain tuple.

        Returns:
            `logits` (B, K, ceil(H/4), ceil(W/4)), channels-last in memory. `loss`, with labels: cross-entropy (binary
            if K = 1) of the bilinearly upsampled logits, averaged over valid pixels; 0 if there are none.

        Raises:
            ValueError: `pixel_values` has the wrong shape, or `labels` hold a value that is no class.
        """
        maps, extras = self._encode(pixel_values, output_attentions, output_hidden_states)
        logits = self.decode_head(maps)
        ignore_index = self.config.semantic_loss_ignore_index
        loss = None if labels is None else upsample_cross_entropy(logits, labels, ignore_index)
        return self._as_requested(SemanticSegmenterOutput(loss=loss, logits=logits, **extras), return_dict)


class SegformerBackbone(BackboneMixin, SegformerPreTrainedModel):
    """The encoder as a backbone for other heads.

    Args:
        config: Configuration; `out_features` or `out_indices` choose the stages.
    """

    def __init__(self, config: SegformerConfig):
        super().__init__(config)
        self.num_features = list(config.hidden_sizes)
        self.segformer = SegformerModel(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple:
        """Encode images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised, floating point.
            output_hidden_states: Also return all stages.
            output_attentions: Also return each layer's attention weights.
            return_dict: False for a plain tuple.

        Returns:
            `feature_maps`, the chosen stages (B, C_s, H_s, W_s), channels-last in memory.
        """
        maps, extras = self._encode(pixel_values, output_attentions, output_hidden_states)
        chosen = tuple(maps[self.stage_names.index(name)] for name in self.out_features)
        return self._as_requested(BackboneOutput(feature_maps=chosen, **extras), return_dict)  # type: ignore[arg-type]
