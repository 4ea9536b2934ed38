# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label maps of logits as nodes of an ONNX graph.

Shapes: B batch, K classes, h w points of the logits, H W pixels.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from .onnx_graph import GraphBuilder
from .onnx_network import Form, upsample
from .settings import Settings, label_type


def add_labels(
    graph: GraphBuilder, logits: str, pixel_values: str, num_labels: int, settings: Settings, form: Form
) -> None:
    """Add the outputs `labels` and, where wanted, `confidence`, (B, H, W) each.

    Where classes lie side by side, ONNX Runtime finds the largest in a fifth of the time.

    Args:
        graph: The graph.
        logits: Name of the logits (B, h, w, K), or (B, K, h, w) without `form.classes_last`.
        pixel_values: Name of the input, whose height and width the label map gets.
        num_labels: K.
        settings: What is exported.
        form: What the runtime is fast with.
    """
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(label_type(num_labels)))
    size = graph.add("Shape", pixel_values, name="labels.size", start=2, end=4)
    axis = 3 if form.classes_last else 1
    scores = upsample(graph, logits, size, "labels.scores", form)
    if num_labels == 1:
        scores = graph.add("Squeeze", scores, graph.constant([axis]), name="labels.squeeze")
        zero = graph.constant(np.array(0, np.float32), "labels.zero")
        labels = graph.add("Greater", scores, zero, name="labels.greater")
    else:
        labels = _argmax(graph, scores, num_labels, axis, form)
    graph.add("Cast", labels, name="labels", to=kind)
    if settings.output != "labels+confidence":
        return
    if num_labels == 1:
        graph.add("Sigmoid", graph.add("Abs", scores, name="confidence.abs"), name="confidence")
    else:
        _add_confidence(graph, scores, axis)


def _argmax(graph: GraphBuilder, scores: str, num_labels: int, axis: int, form: Form) -> str:
    if form.classes_last:
        return graph.add("ArgMax", scores, name="labels.argmax", axis=axis, keepdims=0)
    # OpenVINO sorts for ArgMax. K - k where the score is the highest, else 0: the largest of these is that of the
    # first such class.
    highest = _reduce(graph, "ReduceMax", scores, "labels.highest", axis, keepdims=1)
    is_highest = graph.add("GreaterOrEqual", scores, highest, name="labels.is_highest")
    is_highest = graph.add("Cast", is_highest, name="labels.as_number", to=TensorProto.FLOAT)
    ranks = graph.constant(np.arange(num_labels, 0, -1, dtype=np.float32).reshape(-1, 1, 1), "labels.ranks")
    ranked = graph.add("Mul", is_highest, ranks, name="labels.ranked")
    rank = _reduce(graph, "ReduceMax", ranked, "labels.rank", axis, keepdims=0)
    return graph.add(
        "Sub", graph.constant(np.array(num_labels, np.float32), "labels.count"), rank, name="labels.float"
    )


def _add_confidence(graph: GraphBuilder, scores: str, axis: int) -> None:
    """Softmax of the largest score: one over the sum of all exponentials relative to it."""
    highest = _reduce(graph, "ReduceMax", scores, "confidence.highest", axis, keepdims=1)
    relative = graph.add("Sub", scores, highest, name="confidence.relative")
    total = _reduce(
        graph, "ReduceSum", graph.add("Exp", relative, name="confidence.exp"), "confidence.sum", axis, keepdims=0
    )
    graph.add("Reciprocal", total, name="confidence")


def _reduce(graph: GraphBuilder, operator: str, values: str, name: str, axis: int, keepdims: int) -> str:
    if graph.opset >= 18 or operator == "ReduceSum":
        return graph.add(operator, values, graph.constant([axis]), name=name, keepdims=keepdims)
    return graph.add(operator, values, name=name, keepdims=keepdims, axes=[axis])
