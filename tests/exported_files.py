# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported files of a network that is one convolution: what the runtimes make of files, in milliseconds.

They are written by `onnx.helper`, OpenVINO and `torch.export` directly, as a program of somebody else's would.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_segformer import SegformerConfig, SegformerImageProcessor

PROCESSOR = SegformerImageProcessor(size={"height": 64, "width": 96})


class Network(nn.Module):
    """In the place of a SegFormer: 7x7 with stride 4, as its first layer, straight to the scores."""

    decode_head, device, dtype = None, torch.device("cpu"), torch.float32

    def __init__(self, num_labels=5, seed=0):
        super().__init__()
        self.config = SegformerConfig(
            num_labels=num_labels, palette=[[label % 256, 7, 9] for label in range(num_labels)]
        )
        self.convolution = nn.Conv2d(3, num_labels, 7, 4, 3)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.convolution.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, pixel_values):
        return SemanticSegmenterOutput(logits=self.convolution(pixel_values))


def describe(network, output="logits", normalize="outside", size=None, processor=PROCESSOR, **changes):
    """The metadata that `segformer export` writes."""
    config = network.config
    content = {
        "format_version": 1,
        "package_version": "0.2.0",
        "output": output,
        "normalize": normalize,
        "num_labels": config.num_labels,
        "multi_label": False,
        "id2label": {str(index): name for index, name in enumerate(config.class_names)},
        "palette": config.class_palette,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "preprocessor": json.loads(processor.to_json_string()),
        "size": size,
        "input": {
            "name": "pixel_values",
            "dtype": "uint8" if normalize == "inside" else "float32",
            "layout": "NCHW",
        },
    }
    return {name: value for name, value in (content | changes).items() if value is not ...}


def write_onnx(path, network, output="logits", normalize="outside", size=None, metadata=True, input="pixel_values"):
    """An ONNX file; `metadata` may be other JSON, or None."""
    from onnx import TensorProto, helper, numpy_helper

    classes, sides = network.config.num_labels, size or ("height", "width")
    label_type = TensorProto.UINT8 if classes <= 256 else TensorProto.UINT16
    constants = {"weight": network.convolution.weight, "bias": network.convolution.bias}
    constants = {name: value.detach().numpy() for name, value in constants.items()}
    constants |= {
        name: np.array(PROCESSOR.to_dict()[f"image_{name}"], np.float32).reshape(3, 1, 1) for name in ("mean", "std")
    }
    constants |= {
        "scale": np.array(1 / 255, np.float32),
        "classes": np.array([classes]),
        "zero": np.zeros(1, np.float32),
    }
    inside = [("Cast", [input], "floats", {"to": 1}), ("Mul", ["floats", "scale"], "rescaled", {})]
    inside += [("Sub", ["rescaled", "mean"], "centred", {}), ("Div", ["centred", "std"], "values", {})]
    values = "values" if normalize == "inside" else input
    steps = (inside if normalize == "inside" else []) + [
        ("Conv", [values, "weight", "bias"], "logits", {"kernel_shape": [7, 7], "strides": [4, 4], "pads": [3] * 4}),
    ]
    full = [
        ("Shape", [input], "sides", {"start": 2}),
        ("Shape", ["logits"], "first", {"start": 0, "end": 2}),
        ("Concat", ["first", "sides"], "full", {"axis": 0}),
        ("Resize", ["logits", "", "", "full"], "scores", {"mode": "linear"}),
        ("Softmax", ["scores"], "shares", {"axis": 1}),
        ("ReduceMax", ["shares", "axis"], "confidence", {"keepdims": 0}),
        ("ArgMax", ["scores"], "wide", {"axis": 1, "keepdims": 0}),
        ("Cast", ["wide"], "labels", {"to": label_type}),
    ]
    constants["axis"] = np.array([1])
    kinds = {"logits": (1, ["batch", classes, "h", "w"]), "labels": (label_type, ["batch", *sides])}
    kinds["confidence"] = (1, ["batch", *sides])
    nodes = [
        helper.make_node(kind, ins, [out], **rest) for kind, ins, out, rest in steps + full * (output != "logits")
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(input, 2 if normalize == "inside" else 1, ["batch", 3, *sides])],
        [helper.make_tensor_value_info(name, *kinds[name]) for name in output.split("+")],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if metadata is True:
        metadata = describe(network, output, normalize, size)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        helper.set_model_props(model, {"hf_segformer": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def write_openvino(path, network, output="logits", normalize="outside", size=None):
    """An OpenVINO file and its weights."""
    import openvino

    onnx = write_onnx(path.with_suffix(".onnx"), network, output, normalize, size, metadata=None)
    model = openvino.Core().read_model(str(onnx))
    onnx.unlink()
    model.set_rt_info(json.dumps(describe(network, output, normalize, size)), "hf_segformer")
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


class Traced(nn.Module):
    def __init__(self, network, output):
        super().__init__()
        self.convolution, self.output = network.convolution, output

    def forward(self, pixel_values):
        logits = self.convolution(pixel_values)
        if self.output == "logits":
            return (logits,)
        scores = F.interpolate(logits, size=pixel_values.shape[2:], mode="bilinear")
        return scores.argmax(1).to(torch.uint8), scores.softmax(1).amax(1)


def write_torch(path, network, output="logits", size=None, metadata=True):
    """A file of `torch.export`."""
    axes = {0: torch.export.Dim("batch")}
    axes |= {} if size else {2: torch.export.Dim("height", min=29), 3: torch.export.Dim("width", min=29)}
    example = (torch.zeros(2, 3, *(size or (40, 52))),)
    with torch.no_grad():
        program = torch.export.export(Traced(network, output), example, dynamic_shapes={"pixel_values": axes})
    extra = {"hf_segformer": json.dumps(describe(network, output, size=size))} if metadata else {}
    torch.export.save(program, path, extra_files=extra)
    return path
