# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX files, which OpenVINO's are made from as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import __version__
from .folding import Weights
from .metadata import KEY
from .onnx_graph import GraphBuilder
from .onnx_labels import add_labels
from .onnx_network import TO_IMAGE, Form, NetworkWriter
from .settings import DEFAULT_OPSET, Settings, label_type

ONNX_RUNTIME = Form(classes_last=True, convolutions=False, attention_apart=False)
# Protocol buffers end at 2 GiB.
_LARGEST = (1 << 31) - (1 << 20)


def build(
    weights: Weights, metadata: dict[str, Any], settings: Settings, form: Form = ONNX_RUNTIME
) -> onnx.ModelProto:
    """The model as ONNX.

    Args:
        weights: Weights of the network.
        metadata: What `metadata.describe` returned.
        settings: What is exported.
        form: What the runtime is fast with.
    """
    graph = GraphBuilder(settings.opset or DEFAULT_OPSET)
    pixel_values = "pixel_values"
    if settings.normalize == "inside":
        pixel_values = _normalized(graph, metadata["preprocessor"])
    logits = NetworkWriter(weights, graph, form).logits(pixel_values)
    config = weights.config
    sides: tuple[int | str, ...] = settings.size or ("height", "width")
    kind = TensorProto.UINT8 if settings.normalize == "inside" else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("pixel_values", kind, ["batch", config.num_channels, *sides])]
    if settings.output == "logits":
        if form.classes_last:
            graph.add("Transpose", logits, name="logits", perm=list(TO_IMAGE))
        else:
            graph.add("Identity", logits, name="logits")
        points = ["logits_height", "logits_width"]
        shapes: dict[str, tuple[int, list[int | str]]] = {
            "logits": (TensorProto.FLOAT, ["batch", config.num_labels, *points])
        }
    else:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(label_type(config.num_labels)))
        shapes = {"labels": (kind, ["batch", *sides])}
        if settings.output == "labels+confidence":
            shapes["confidence"] = (TensorProto.FLOAT, ["batch", *sides])
        add_labels(graph, logits, "pixel_values", config.num_labels, settings, form)
    outputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    model = graph.model(inputs, outputs, ("hf_segformer", __version__))
    if settings.half:
        _store_half(model)
    helper.set_model_props(model, {KEY: json.dumps(metadata)})
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file; from 2 GiB on, which no protocol buffer holds, its weights go beside it."""
    onnx.checker.check_model(model)
    if model.ByteSize() < _LARGEST:
        path.write_bytes(model.SerializeToString())
    else:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def _normalized(graph: GraphBuilder, preprocessor: dict[str, Any]) -> str:
    """Pixel values of uint8 pixels, as the image processor computes them."""
    values = graph.add("Cast", "pixel_values", name="normalize.cast", to=TensorProto.FLOAT)
    if preprocessor["do_rescale"]:
        factor = np.array(preprocessor["rescale_factor"], np.float32)
        values = graph.add("Mul", values, graph.constant(factor, "normalize.factor"), name="normalize.rescale")
    if preprocessor["do_normalize"]:
        mean, std = (
            graph.constant(np.array(preprocessor[f"image_{part}"], np.float32).reshape(-1, 1, 1), f"normalize.{part}")
            for part in ("mean", "std")
        )
        values = graph.add("Div", graph.add("Sub", values, mean, name="normalize.sub"), std, name="normalize.div")
    return values


def _store_half(model: onnx.ModelProto) -> None:
    """Keep weights as float16, and turn them into float32 when the file is loaded."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or not tensor.dims:
            continue
        values = numpy_helper.to_array(tensor)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
