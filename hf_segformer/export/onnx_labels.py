# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Label maps of logits as nodes of an ONNX graph.

Shapes: B batch, K classes, h w points of the logits, H W pixels.
"""

from __future__ import annotations

import numpy as np
from onnx import helper

from .onnx_graph import GraphBuilder
from .onnx_network import Form
from .settings import Settings, label_type


def add_labels(
    graph: GraphBuilder, logits: str, pixel_values: str, num_labels: int, settings: Settings, form: Form
) -> None:
    """Add the outputs `labels` and, where wanted, `confidence`, (B, H, W) each.

    Args:
        graph: The graph.
        logits: Name of the logits (B, K, h, w).
        pixel_values: Name of an input whose height and width the label map gets.
        num_labels: K.
        settings: What is exported.
        form: What the runtime is fast with.
    """
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(label_type(num_labels)))
    batch = graph.add("Shape", logits, name="labels.batch", start=0, end=2)
    size = graph.add("Shape", pixel_values, name="labels.size", start=2, end=4)
    sizes = graph.add("Concat", batch, size, name="labels.sizes", axis=0)
    fields = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    scores = graph.add("Resize", logits, "", "", sizes, name="labels.scores", **fields)
    channels = graph.constant([1])
    if num_labels == 1:
        scores = graph.add("Squeeze", scores, channels, name="labels.squeeze")
        zero = graph.constant(np.array(0, np.float32), "labels.zero")
        labels = graph.add("Greater", scores, zero, name="labels.greater")
    else:
        labels = graph.add("ArgMax", scores, name="labels.argmax", axis=1, keepdims=0)
    graph.add("Cast", labels, name="labels", to=kind)
    if settings.output != "labels+confidence":
        return
    if num_labels == 1:
        graph.add("Sigmoid", graph.add("Abs", scores, name="confidence.abs"), name="confidence")
    else:
        softmax = graph.add("Softmax", scores, name="confidence.softmax", axis=1)
        graph.add("ReduceMax", softmax, *_axes(graph, 1), name="confidence", keepdims=0, **_axes_field(graph, 1))


def _axes(graph: GraphBuilder, axis: int) -> list[str]:
    return [graph.constant([axis])] if graph.opset >= 18 else []


def _axes_field(graph: GraphBuilder, axis: int) -> dict[str, list[int]]:
    return {} if graph.opset >= 18 else {"axes": [axis]}
