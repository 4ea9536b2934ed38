# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs some of whose layers compute in int8.

ONNX Runtime's quantiser writes the graph in which all of them do, once. Every other graph is put together from the
nodes of that one and of the float one, which takes milliseconds: so each layer's error can be measured by itself.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto
from onnxruntime.quantization import CalibrationDataReader, QDQQuantizer, QuantType, create_calibrator

LAYERS = ("Conv", "MatMul", "Gemm")
_BETWEEN = ("QuantizeLinear", "DequantizeLinear")


class _Inputs(CalibrationDataReader):
    """One input for the quantiser's calibration."""

    def __init__(self, name: str, values: np.ndarray):
        self._left = [{name: values}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The input, then None."""
        return self._left.pop() if self._left else None


class MixedGraph:
    """A network of which any layers may compute in int8.

    Weights have a scale for each output channel and are symmetric (int8), activations have one for the tensor and a
    zero point (uint8). Weights are -64 to 64: CPUs without VNNI instructions add two products in 16 bits, which larger
    ones can exceed, and the same file would give other labels there. The results of matrix products stay float: they
    enter sums with what was never quantised.

    Args:
        float_file: The network as an ONNX file; it is not changed.
        inputs: Inputs, each with its batch, from which the ranges of the activations are taken.
    """

    def __init__(self, float_file: Path, inputs: Iterable[np.ndarray]):
        self.float = onnx.shape_inference.infer_shapes(onnx.load(float_file))
        self.input_name = self.float.graph.input[0].name
        nodes = {node.name: node for node in self.float.graph.node if node.op_type in LAYERS}
        self.layers = list(nodes)
        self._logits, self._class_axis = self._find_logits(nodes[self.layers[-1]])
        self._int8 = self._quantize(float_file, inputs)
        self._int8_nodes = {node.name: node for node in self._int8.graph.node}
        self._producers = {name: node for node in self._int8.graph.node for name in node.output}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self._int8.graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def _find_logits(self, classifier: NodeProto) -> tuple[str, int]:
        """Name of the logits, whatever the graph makes of them, and their axis of classes."""
        constants = {tensor.name for tensor in self.float.graph.initializer}
        name = classifier.output[0]
        for node in self.float.graph.node:
            if node.op_type == "Add" and name in node.input and constants.intersection(node.input):
                name = node.output[0]  # with the bias of a matrix product
        return name, 1 if classifier.op_type == "Conv" else -1

    def _quantize(self, float_file: Path, inputs: Iterable[np.ndarray]) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            augmented = str(Path(folder) / "augmented.onnx")
            calibrator = create_calibrator(float_file, LAYERS, augmented_model_path=augmented)
            for values in inputs:  # one at a time, or the ranges of all are held
                calibrator.collect_data(_Inputs(self.input_name, values))
            ranges = calibrator.compute_data()
            del calibrator
        options = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
        types: Any = QuantType.QInt8, QuantType.QUInt8
        model, per_channel, reduce_range = copy.deepcopy(self.float), True, True
        quantizer = QDQQuantizer(model, per_channel, reduce_range, *types, ranges, [], [], list(LAYERS), options)
        quantizer.quantize_model()
        return quantizer.model.model

    def model(self, layers: Collection[str], *, logits_only: bool = False) -> onnx.ModelProto:
        """The network with some layers in int8.

        Args:
            layers: Their names, of `self.layers`.
            logits_only: Give the logits, in place of the graph's own outputs.
        """
        renamed: dict[str, str] = {}  # results of int8 convolutions, which nothing may see before their rounding
        nodes: dict[str, NodeProto] = {}  # by their first result
        for node in self.float.graph.node:
            if node.name in layers:
                node = self._int8_nodes[node.name]
                for name in node.input:
                    self._add_between(name, nodes)
                nodes[node.output[0]] = node
                renamed |= self._rounded(node, nodes)
            else:
                nodes[node.output[0]] = _with_inputs(node, renamed)
        outputs = list(self.float.graph.output)
        if logits_only:
            logits = renamed.get(self._logits, self._logits)
            outputs = [onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None)]
            return self._assembled(_needed(nodes.values(), [logits]), outputs)
        return self._assembled(list(nodes.values()), outputs)

    def logits(self, layers: Collection[str], inputs: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Logits (B, h, w, K) of some inputs, computed with some layers in int8."""
        session = open_session(self.model(layers, logits_only=True).SerializeToString())
        found = (session.run(None, {self.input_name: values})[0] for values in inputs)
        return [np.moveaxis(logits, self._class_axis, -1) for logits in found]

    def _rounded(self, node: NodeProto, nodes: dict[str, NodeProto]) -> dict[str, str]:
        """Add what rounds the result of a layer, where its type has that; returns the name it has then."""
        for consumer in self._consumers.get(node.output[0], []):
            if consumer.op_type == "QuantizeLinear":
                rounded = self._consumers[consumer.output[0]][0].output[0]
                self._add_between(rounded, nodes)
                return {node.output[0]: rounded}
        return {}

    def _add_between(self, name: str, nodes: dict[str, NodeProto]) -> None:
        """Add the nodes that quantise and dequantise a tensor, unless they are there."""
        node = self._producers.get(name)
        if node is None or node.op_type not in _BETWEEN or name in nodes:
            return
        for source in node.input:
            self._add_between(source, nodes)
        nodes[name] = node

    def _assembled(self, nodes: list[NodeProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        made = {name for node in nodes for name in node.output}
        used = {name for node in nodes for inner in _nested(node) for name in inner.input} - made
        constants = {tensor.name: tensor for graph in (self._int8, self.float) for tensor in graph.graph.initializer}
        graph = onnx.helper.make_graph(
            nodes,
            self.float.graph.name,
            list(self.float.graph.input),
            outputs,
            [tensor for name, tensor in constants.items() if name in used],
        )
        whole = onnx.ModelProto()
        whole.CopyFrom(_without_graph(self.float))
        whole.graph.CopyFrom(graph)
        return whole

    def multiply_adds(self, values: np.ndarray) -> dict[str, int]:
        """Multiplications of each layer for an input; as many additions belong to them."""
        shapes = onnx.ModelProto()
        shapes.CopyFrom(self.float)
        del shapes.graph.output[:]
        nodes = {node.name: node for node in shapes.graph.node if node.op_type in LAYERS}
        for name, node in nodes.items():
            for kind, tensor in (("left", node.input[0]), ("right", node.input[1]), ("result", node.output[0])):
                output = onnx.helper.make_tensor_value_info(f"{name}:{kind}", onnx.TensorProto.INT64, None)
                shapes.graph.node.append(onnx.helper.make_node("Shape", [tensor], [output.name]))
                shapes.graph.output.append(output)
        session = open_session(shapes.SerializeToString())
        names = [output.name for output in shapes.graph.output]
        found = dict(zip(names, session.run(names, {self.input_name: values}), strict=True))
        counts = {}
        for name, node in nodes.items():
            left, right, result = (found[f"{name}:{kind}"] for kind in ("left", "right", "result"))
            if node.op_type == "Gemm" and any(field.name == "transA" and field.i for field in node.attribute):
                left = left[::-1]
            inner = right[1:].prod() if node.op_type == "Conv" else left[-1]
            counts[name] = int(result.prod() * inner)
        return counts


def open_session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, without its warnings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto(
        ir_version=model.ir_version, producer_name=model.producer_name, producer_version=model.producer_version
    )
    bare.opset_import.extend(model.opset_import)
    bare.metadata_props.extend(model.metadata_props)
    return bare


def _nested(node: NodeProto) -> Iterator[NodeProto]:
    """A node and those in its branches."""
    yield node
    for field in node.attribute:
        for inner in field.g.node:
            yield from _nested(inner)


def _with_inputs(node: NodeProto, renamed: dict[str, str]) -> NodeProto:
    changed = NodeProto()
    changed.CopyFrom(node)
    for inner in _nested(changed):
        inner.input[:] = [renamed.get(name, name) for name in inner.input]
    return changed


def _needed(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that some outputs depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            wanted.update(name for inner in _nested(node) for name in inner.input)
            kept.append(node)
    return kept[::-1]
