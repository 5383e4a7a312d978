# SPDX-License-Identifier: Apache-2.0
"""Convolutions that read one map and fill no whole vectors, as the heads of a detector do, become one.

Each of YuNet's heads makes 1, 1, 4 and 10 channels of the same 64: four passes over them for one vector of results.
Depthwise convolutions behind them are joined in turn; what each made is then a slice of the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastfer.engine.graph import Graph, Node, Shape
from fastfer.engine.strided import gathered

_LANES = 16
"""Channels of a vector, where it is widest."""


class _Slice(NamedTuple):
    """A convolution's output as channels of another value."""

    node: Node
    first: int
    channels: int


def joined_siblings(graph: Graph) -> Graph:
    """The graph with such convolutions as one, as long as there are any."""
    while True:
        group = _group(graph)
        if not group:
            return graph
        graph = _joined(graph, group)


def _is_depthwise(node: Node, shapes: Sequence[Shape]) -> bool:
    channels = shapes[node.inputs[0]].channels
    return node.op == "conv" and shapes[node.output].channels == channels and node.attr("groups") == channels


def _kind(node: Node) -> tuple[int, ...]:
    """What convolutions share that can be one; where activations differ, they come after it."""
    return node.having(groups=1, act=0)


def _group(graph: Graph) -> list[Node]:
    """Convolutions of all channels of one map that take half the vectors together: slices are to be copied."""
    found: dict[tuple[int, ...], list[Node]] = {}
    for node in graph.nodes:
        if node.op == "conv" and node.attr("groups") == 1:
            found.setdefault((node.inputs[0], *_kind(node)), []).append(node)
    for group in found.values():
        counts = [graph.values[node.output].channels for node in group]
        if graph.values[group[0].inputs[0]].channels > 1 and 2 * _vectors([sum(counts)]) <= _vectors(counts):
            return group
    return []


def _vectors(counts: Sequence[int]) -> int:
    return sum(-(-count // _LANES) for count in counts)


def _joined(graph: Graph, group: list[Node]) -> Graph:
    """The graph with a group of convolutions, and the depthwise ones that alone read them, as one each."""
    values, made = list(graph.values), Graph(graph.values, graph.input)
    readers = _only_readers(graph)
    gone: set[int] = set()
    new: list[Node] = []
    source = group[0].inputs[0]
    while True:
        first, slices = 0, []
        for node in group:
            count = values[node.output].channels
            slices.append(_Slice(node, first, count))
            first += count
        shape = values[group[0].output]
        values.append(Shape(first, shape.height, shape.width))
        weights = tuple(
            np.concatenate([node.weights[i].reshape(values[node.output].channels, -1) for node in group])
            for i in range(2)
        )
        same = len({node.attr("act") for node in group}) == 1
        attrs = group[0].having(groups=first if new else 1, act=group[0].attr("act") if same else 0)
        new.append(Node("conv", (source,), len(values) - 1, attrs, weights))
        gone.update(node.output for node in group)
        following = [readers.get(node.output) for node in group]
        behind = [node for node in following if node is not None and _is_depthwise(node, values)]
        if not same or len(behind) < len(group) or len({_kind(node) for node in behind}) > 1:
            break
        source, group = len(values) - 1, behind
    made.values = values
    for part in slices:
        _take(made, new[-1].output, part, 0 if same else part.node.attr("act"))
    return _in_place(graph, made, new, gone)


def _take(graph: Graph, source: int, part: _Slice, act: int) -> None:
    """A slice of the channels, activated, under the number that the convolution's output had."""
    shape = graph.values[source]
    size = shape.height * shape.width
    rows = [(np.arange(part.channels), size), (np.arange(size), 1)]
    whole = Shape(part.channels, shape.height, shape.width)
    value = gathered(graph, source, whole, rows, base=part.first * size)
    if act:
        graph.add("act", [value], [act])
    node = graph.nodes.pop()
    graph.values.pop()
    graph.nodes.append(Node(node.op, node.inputs, part.node.output, node.attrs, node.weights))


def _in_place(graph: Graph, made: Graph, new: list[Node], gone: set[int]) -> Graph:
    """What was joined where the first of it stood; all of it reads what is there then."""
    nodes: list[Node] = []
    placed = False
    for node in graph.nodes:
        if node.output not in gone:
            nodes.append(node)
        elif not placed:
            nodes += [*new, *made.nodes]
            placed = True
    return Graph(made.values, graph.input, nodes, graph.outputs, graph.ranges)


def _only_readers(graph: Graph) -> dict[int, Node]:
    """The node that alone reads a value."""
    uses = graph.uses()
    return {value: node for node in graph.nodes for value in node.inputs if uses[value] == 1}
