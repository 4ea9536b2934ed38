# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The network as nodes of an ONNX graph.

Shapes: B batch, C channels, H W height and width of the map at hand, N = H*W tokens, N' reduced tokens, A attention
heads, D = C/A, E decoder width, K classes. Tokens are (B, N, C).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .folding import Affine, Array, Weights
from .onnx_graph import GraphBuilder

TO_TOKENS, TO_IMAGE = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Form:
    """What a runtime is fast with.

    Args:
        classes_last: Whether maps are upsampled, and their largest class found, as (B, H, W, C) rather than
            (B, C, H, W).
        convolutions: Whether the last layer of the Mix-FFN and those of the decode head are 1x1 convolutions rather
            than products of matrices.
        attention_apart: Whether the softmax of attention is kept from being joined with the products around it.
    """

    classes_last: bool
    convolutions: bool
    attention_apart: bool


class NetworkWriter:
    """Adds a network to a graph.

    Args:
        weights: Its weights.
        graph: The graph.
        form: What the runtime is fast with.
    """

    def __init__(self, weights: Weights, graph: GraphBuilder, form: Form):
        self.weights, self.config, self.graph, self.form = weights, weights.config, graph, form
        self._shapes: list[str] = []  # (B, H, W, C) of each stage

    def logits(self, pixel_values: str) -> str:
        """Logits of pixel values (B, num_channels, H, W): (B, H/4, W/4, K), or (B, K, H/4, W/4).

        Args:
            pixel_values: Name of the input.
        """
        image, maps, last = pixel_values, [], self.config.num_encoder_blocks - 1
        for stage in range(last + 1):
            tokens = self._stage(stage, image)
            if stage < last or not self.form.classes_last:
                image = self._to_image(stage, tokens, f"encoder.image.{stage}")
            if self.form.classes_last:
                maps.append(self.graph.add("Reshape", tokens, self._shapes[stage], name=f"encoder.map.{stage}"))
            else:
                maps.append(image)
        return self._head_last(maps) if self.form.classes_last else self._head(maps)

    # ---------------------------------------------------------------------------------------------------- elements

    def _constant(self, array: Array, name: str) -> str:
        return self.graph.constant(np.asarray(array, np.float32), name)

    def _transpose(self, values: str, order: tuple[int, ...], name: str) -> str:
        return self.graph.add("Transpose", values, name=name, perm=list(order))

    def _to_image(self, stage: int, tokens: str, name: str) -> str:
        """(B, N, C) of a stage to (B, C, H, W)."""
        return self._transpose(
            self.graph.add("Reshape", tokens, self._shapes[stage], name=f"{name}.map"), TO_IMAGE, name
        )

    def _to_tokens(self, image: str, width: int, name: str) -> str:
        """(B, C, H, W) to (B, N, C)."""
        image = self._transpose(image, TO_TOKENS, f"{name}.map")
        return self.graph.add("Reshape", image, self.graph.constant([0, -1, width]), name=name)

    def _linear(self, tokens: str, layer: Affine, name: str) -> str:
        """(..., C_in) to (..., C_out)."""
        product = self.graph.add("MatMul", tokens, self._constant(layer.weight.T, f"{name}.weight"), name=name)
        if layer.bias is None:
            return product
        return self.graph.add("Add", product, self._constant(layer.bias, f"{name}.bias"), name=f"{name}.add")

    def _convolution(self, image: str, layer: Affine, name: str, stride: int = 1, padding: int = 0) -> str:
        """(B, C_in, H, W) to (B, C_out, H', W'); a matrix is a 1x1 convolution."""
        weight = layer.weight if layer.weight.ndim == 4 else layer.weight[:, :, None, None]
        names = [self._constant(weight, f"{name}.weight")]
        if layer.bias is not None:
            names.append(self._constant(layer.bias, f"{name}.bias"))
        groups = weight.shape[0] if weight.shape[1] == 1 and "dwconv" in name else 1
        return self.graph.add(
            "Conv",
            image,
            *names,
            name=name,
            kernel_shape=list(weight.shape[2:]),
            strides=[stride] * 2,
            pads=[padding] * 4,
            dilations=[1, 1],
            group=groups,
        )

    def _norm(self, tokens: str, name: str, epsilon: float) -> str:
        scale, bias = (self._constant(self.weights[f"{name}.{part}"], f"{name}.{part}") for part in ("weight", "bias"))
        return self.graph.add("LayerNormalization", tokens, scale, bias, name=name, axis=-1, epsilon=epsilon)

    def _activation(self, values: str, name: str) -> str:
        kind, graph = self.config.hidden_act, self.graph
        if kind == "relu":
            return graph.add("Relu", values, name=name)
        if kind in ("silu", "swish"):
            return graph.add("Mul", values, graph.add("Sigmoid", values, name=f"{name}.sigmoid"), name=name)
        if graph.opset >= 20:
            return graph.add("Gelu", values, name=name)
        scaled = graph.add("Div", values, self._constant(np.sqrt(np.array(2.0)), f"{name}.root"), name=f"{name}.div")
        erf = graph.add("Erf", scaled, name=f"{name}.erf")
        one, half = self._constant(np.array(1.0), f"{name}.one"), self._constant(np.array(0.5), f"{name}.half")
        weighted = graph.add("Mul", values, graph.add("Add", erf, one, name=f"{name}.sum"), name=f"{name}.mul")
        return graph.add("Mul", weighted, half, name=name)

    # ----------------------------------------------------------------------------------------------------- encoder

    def _stage(self, stage: int, image: str) -> str:
        """(B, C_in, H, W) to (B, N, C)."""
        config, name = self.config, f"encoder.patch_embeddings.{stage}"
        kernel = config.patch_sizes[stage]
        layer = self.weights.affine(f"segformer.{name}.proj")
        image = self._convolution(image, layer, f"{name}.proj", config.strides[stage], kernel // 2)
        tokens = self._transpose(image, TO_TOKENS, f"{name}.map")
        self._shapes.append(self.graph.add("Shape", tokens, name=f"{name}.shape"))
        flat = self.graph.constant([0, -1, config.hidden_sizes[stage]])
        tokens = self.graph.add("Reshape", tokens, flat, name=f"{name}.tokens")
        tokens = self._norm(tokens, f"segformer.{name}.layer_norm", config.embed_norm_eps)
        for layer_index in range(config.depths[stage]):
            tokens = self._layer(stage, f"encoder.block.{stage}.{layer_index}", tokens)
        name = f"encoder.layer_norm.{stage}"
        return self._norm(tokens, f"segformer.{name}", config.block_norm_eps)

    def _layer(self, stage: int, name: str, tokens: str) -> str:
        graph, epsilon = self.graph, self.config.block_norm_eps
        normed = self._norm(tokens, f"segformer.{name}.layer_norm_1", epsilon)
        context = self._attention(stage, f"{name}.attention", normed)
        tokens = graph.add("Add", context, tokens, name=f"{name}.attended")
        normed = self._norm(tokens, f"segformer.{name}.layer_norm_2", epsilon)
        return graph.add("Add", self._feed_forward(stage, f"{name}.mlp", normed), tokens, name=f"{name}.output")

    def _feed_forward(self, stage: int, name: str, tokens: str) -> str:
        weights, path = self.weights, f"segformer.{name}"
        first, last = weights.affine(f"{path}.dense1"), weights.affine(f"{path}.dense2")
        hidden = self._convolution(self._to_image(stage, tokens, f"{name}.image"), first, f"{name}.dense1")
        hidden = self._convolution(hidden, weights.affine(f"{path}.dwconv.dwconv"), f"{name}.dwconv", padding=1)
        if self.form.convolutions:
            hidden = self._activation(hidden, f"{name}.activation")
            return self._to_tokens(
                self._convolution(hidden, last, f"{name}.dense2"), len(last.weight), f"{name}.tokens"
            )
        hidden = self._to_tokens(hidden, len(first.weight), f"{name}.tokens")
        return self._linear(self._activation(hidden, f"{name}.activation"), last, f"{name}.dense2")

    def _attention(self, stage: int, name: str, tokens: str) -> str:
        """Attention and its output projection: (B, N, C) to the same.

        Softmax sums to one and does not see what is added to all scores of a query: so the bias of the values goes
        into that of the output, and that of the keys goes nowhere. The factor of the scores is in the queries.
        """
        weights, config, path = self.weights, self.config, f"segformer.{name}"
        heads, width = config.num_attention_heads[stage], config.hidden_sizes[stage]
        query, key, value = (weights.affine(f"{path}.self.{part}") for part in ("query", "key", "value"))
        output = weights[f"{path}.output.dense.weight"]
        bias = weights[f"{path}.output.dense.bias"] + output @ weights[f"{path}.self.value.bias"]
        factor = (width // heads) ** -0.5
        query = Affine(query.weight * factor, weights[f"{path}.self.query.bias"] * factor)
        reduced = self._reduced(stage, name, tokens)
        if heads == 1:
            context = self._single_head(name, tokens, reduced, query, key, Affine(output @ value.weight, None))
            return self.graph.add("Add", context, self._constant(bias, f"{name}.bias"), name=f"{name}.add")
        context = self._heads(name, heads, tokens, reduced, query, key, value)
        context = self.graph.add("Reshape", context, self.graph.constant([0, -1, width]), name=f"{name}.context")
        return self._linear(context, Affine(output, bias), f"{name}.output")

    def _reduced(self, stage: int, name: str, tokens: str) -> str:
        """(B, N, C) to (B, N', C)."""
        ratio = self.config.sr_ratios[stage]
        if ratio == 1:
            return tokens
        layer = self.weights.affine(f"segformer.{name}.self.sr")
        image = self._convolution(self._to_image(stage, tokens, f"{name}.image"), layer, f"{name}.sr", ratio)
        reduced = self._to_tokens(image, len(layer.weight), f"{name}.reduced")
        return self._norm(reduced, f"segformer.{name}.self.layer_norm", self.config.embed_norm_eps)

    def _single_head(self, name: str, tokens: str, reduced: str, query: Affine, key: Affine, value: Affine) -> str:
        """With one head nothing stands between the projections: those of queries and outputs are applied to N' keys
        and values instead of N tokens. Gives (B, N, C)."""
        graph = self.graph
        assert query.bias is not None
        # scores = (x Wq' + bq) (Wk r)' = x (Wq' Wk) r' + bq' Wk r'
        keys = self._linear(reduced, Affine(query.weight.T @ key.weight, None), f"{name}.key")  # (B, N', C)
        bias = self._linear(reduced, Affine(query.bias[None] @ key.weight, None), f"{name}.key_bias")  # (B, N', 1)
        values = self._linear(reduced, value, f"{name}.value")
        scores = graph.add("MatMul", tokens, self._transpose(keys, (0, 2, 1), f"{name}.key_t"), name=f"{name}.scores")
        scores = graph.add("Add", scores, self._transpose(bias, (0, 2, 1), f"{name}.bias_t"), name=f"{name}.biased")
        return graph.add("MatMul", self._softmax(scores, name), values, name=f"{name}.weighted")

    def _heads(
        self, name: str, heads: int, tokens: str, reduced: str, query: Affine, key: Affine, value: Affine
    ) -> str:
        """(B, N, A, D)."""
        graph = self.graph
        split = graph.constant([0, -1, heads, len(key.weight) // heads])

        def parts(source: str, layer: Affine, part: str, order: tuple[int, ...]) -> str:
            projected = self._linear(source, layer, f"{name}.{part}")
            return self._transpose(
                graph.add("Reshape", projected, split, name=f"{name}.{part}_heads"), order, f"{name}.{part}_t"
            )

        queries = parts(tokens, query, "query", (0, 2, 1, 3))
        keys = parts(reduced, Affine(key.weight, None), "key", (0, 2, 3, 1))
        values = parts(reduced, Affine(value.weight, None), "value", (0, 2, 1, 3))
        scores = graph.add("MatMul", queries, keys, name=f"{name}.scores")
        context = graph.add("MatMul", self._softmax(scores, name), values, name=f"{name}.weighted")
        return self._transpose(context, (0, 2, 1, 3), f"{name}.tokens")

    def _softmax(self, scores: str, name: str) -> str:
        graph = self.graph
        if not self.form.attention_apart:
            return graph.add("Softmax", scores, name=f"{name}.softmax", axis=-1)
        shape = graph.add("Shape", scores, name=f"{name}.scores_shape")
        keys = graph.add("Shape", scores, name=f"{name}.keys_shape", start=-1)
        rows = graph.add("Concat", graph.constant([-1]), keys, name=f"{name}.row_sizes", axis=0)
        scores = graph.add("Reshape", scores, rows, name=f"{name}.rows")
        probabilities = graph.add("Softmax", scores, name=f"{name}.softmax", axis=-1)
        return graph.add("Reshape", probabilities, shape, name=f"{name}.probabilities")

    # -------------------------------------------------------------------------------------------------- decode head

    def _head(self, maps: list[str]) -> str:
        """Logits (B, K, H, W) of each stage's (B, C, H, W)."""
        head, graph, name, summands = self.weights.head(), self.graph, "decode_head", []
        for stage, image in enumerate(maps):
            if head.projections:
                projected = self._convolution(image, head.projections[stage], f"{name}.linear_c.{stage}")
                image = graph.add("Relu", projected, name=f"{name}.linear_c.{stage}.activation")
            summands.append(self._convolution(image, head.stages[stage], f"{name}.fuse.{stage}"))
        fused = self._fused(summands)
        return self._convolution(fused, head.classifier, f"{name}.classifier")

    def _head_last(self, maps: list[str]) -> str:
        """Logits (B, H, W, K) of each stage's (B, H, W, C)."""
        head, graph, name, summands = self.weights.head(), self.graph, "decode_head", []
        for stage, tokens in enumerate(maps):
            if head.projections:
                projected = self._linear(tokens, head.projections[stage], f"{name}.linear_c.{stage}")
                tokens = graph.add("Relu", projected, name=f"{name}.linear_c.{stage}.activation")
            summands.append(self._linear(tokens, head.stages[stage], f"{name}.fuse.{stage}"))
        return self._linear(self._fused(summands), head.classifier, f"{name}.classifier")

    def _fused(self, summands: list[str]) -> str:
        graph, name, total = self.graph, "decode_head", summands[0]
        first = 1 if self.form.classes_last else 2
        size = graph.add("Shape", total, name=f"{name}.size", start=first, end=first + 2)
        for stage, summand in reversed(list(enumerate(summands))[1:]):
            upsampled = upsample(graph, summand, size, f"{name}.upsample.{stage}", self.form)
            total = graph.add("Add", upsampled, total, name=f"{name}.sum.{stage}")
        return graph.add("Relu", total, name=f"{name}.activation")


def upsample(graph: GraphBuilder, values: str, size: str, name: str, form: Form) -> str:
    """(B, h, w, C) to (B, H, W, C), or the same with channels first, bilinear.

    With classes last ONNX Runtime takes a third of the time.
    """
    parts, first = [size], 1 if form.classes_last else 2
    for start, end in ((0, first), (first + 2, 4)):
        if start < end:
            parts.insert(start, graph.add("Shape", values, name=f"{name}.{start}", start=start, end=end))
    sizes = graph.add("Concat", *parts, name=f"{name}.sizes", axis=0)
    fields = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return graph.add("Resize", values, "", "", sizes, name=name, **fields)
