# SPDX-License-Identifier: Apache-2.0
"""Quantised files as int8 plans: what pairs of QuantizeLinear and DequantizeLinear say of a value is its range.

In a graph such a pair is a clamp to the numbers that its integers hold, and the range of the clamp's output. A plan of
bytes has the same scale and zero point from that range, and clamps where it rounds; of a clamp is left the ReLU that a
quantiser took out of the network when it set the least number to 0.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.engine import tensors
from fastfer.engine.convert import Conversion, generally
from fastfer.engine.convert_tensor import tensor
from fastfer.engine.file import Ranges
from fastfer.engine.functions import UNARY
from fastfer.engine.graph import Graph, Node
from fastfer.engine.views import Uncovered

_RELU = ACTIVATIONS.index("relu")
_NOT_NEGATIVE = {ACTIVATIONS.index(name) for name in ("relu", "relu6", "hardsigmoid", "sigmoid")}
_TIMES_ITSELF = {
    ACTIVATIONS.index("hardsigmoid"): ACTIVATIONS.index("hardswish"),
    ACTIVATIONS.index("sigmoid"): ACTIVATIONS.index("silu"),
}
_KEEPING = ("max_pool", "avg_pool", "global_pool", "concat", "join", "gather", "resample")
"""Operations whose results are not negative where their inputs are not."""


@generally("aten.fake_quantize_per_tensor_affine")
def _fake_quantize(into: Conversion, self: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
    if isinstance(scale, Tensor) or isinstance(zero_point, Tensor):
        raise Uncovered("a scale that is a tensor")
    low, high = (scale * (bound - zero_point) for bound in (quant_min, quant_max))
    y = tensors.unary(into.graph, tensor(into, self), "clamp", low, high)
    if quant_max - quant_min <= 255:
        into.graph.ranges[y.value] = (low, high)
    return y


def as_bytes(graph: Graph) -> Graph:
    """The graph without the clamps of quantised values, whose ranges are those of what was clamped."""
    writers = {node.output: node for node in graph.nodes}
    names: dict[int, int] = {}
    nodes, ranges = [], dict(graph.ranges)

    def name(value: int) -> int:
        return names.get(value, value)

    for node in graph.nodes:
        inputs = tuple(map(name, node.inputs))
        range_ = ranges.get(node.output)
        if range_ is None or node.op != "unary" or node.attrs[0] != UNARY.index("clamp"):
            nodes.append(Node(node.op, inputs, node.output, node.attrs, node.weights))
        elif range_[0] == 0 and not _is_not_negative(writers, node.inputs[0]):
            nodes.append(Node("act", inputs, node.output, (_RELU,)))
        else:
            names[node.output] = inputs[0]
            ranges[inputs[0]] = ranges.pop(node.output)
    return Graph(graph.values, graph.input, _gated(nodes), tuple(map(name, graph.outputs)), ranges)


def _gated(nodes: list[Node]) -> list[Node]:
    """x times an activation of x as one: exporters write so, and no longer stands a pair between the two."""
    writers = {node.output: node for node in nodes}
    done = []
    for node in nodes:
        gate = writers.get(node.inputs[1]) if node.op == "mul" and node.attr("act") == 0 else None
        act = _TIMES_ITSELF.get(gate.attr("act")) if gate is not None and gate.op == "act" else None
        if gate is not None and act is not None and gate.inputs[0] == node.inputs[0]:
            node = Node("act", gate.inputs, node.output, (act,))
        done.append(node)
    return done


def _is_not_negative(writers: dict[int, Node], value: int) -> bool:
    node = writers.get(value)
    if node is None:
        return False
    if node.op == "unary" and node.attrs[0] == UNARY.index("clamp"):
        return float(node.weights[0].min()) >= 0
    if node.op in _KEEPING:
        fills = node.op == "gather" and float(node.weight("fill").min()) < 0
        return not fills and all(_is_not_negative(writers, i) for i in node.inputs)
    return node.op == "act" and node.attr("act") in _NOT_NEGATIVE


def ranges_of(graph: Graph) -> Ranges:
    """The range of each value, of no width where the file says none."""
    return [graph.ranges.get(value, (0.0, 0.0)) for value in range(len(graph.values))]
