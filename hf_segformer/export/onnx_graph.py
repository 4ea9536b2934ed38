# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Writing an ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class GraphBuilder:
    """An ONNX graph that grows in the order of its nodes; each is named after the part of the network it computes.

    Args:
        opset: Version of the standard operators.
    """

    def __init__(self, opset: int):
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._names: set[str] = set()

    def constant(self, array: np.ndarray | Sequence[int], name: str = "constant") -> str:
        """Name of a constant tensor; whole numbers become int64 and are kept once."""
        if not isinstance(array, np.ndarray):
            array = np.asarray(array, np.int64)
            name = "ints_" + "_".join(map(str, np.atleast_1d(array))) + "_" * (array.ndim == 0)
            if name in self.initializers:
                return name
        name = self._unique(name)
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def add(self, operator: str, *inputs: str, name: str, outputs: Sequence[str] | None = None, **fields: Any) -> Any:
        """Add a node; returns the name of its output, or the names where `outputs` gives several."""
        name = self._unique(name)
        names = [name] if outputs is None else [self._unique(output) for output in outputs]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name, **fields))
        return names[0] if outputs is None else names

    def branch(self) -> GraphBuilder:
        """A graph inside this one: it sees what was computed so far, shares constants and names."""
        inner = GraphBuilder(self.opset)
        inner.initializers, inner._names = self.initializers, self._names
        return inner

    def subgraph(self, outputs: Sequence[onnx.ValueInfoProto], name: str) -> onnx.GraphProto:
        """The nodes of a `branch` as a graph."""
        return helper.make_graph(self.nodes, name, [], list(outputs))

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], producer: tuple[str, str]
    ) -> onnx.ModelProto:
        """The whole model."""
        graph = helper.make_graph(
            self.nodes, producer[0], list(inputs), list(outputs), list(self.initializers.values())
        )
        opsets = [helper.make_opsetid("", self.opset)]
        version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=version, producer_name=producer[0], producer_version=producer[1]
        )

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique
