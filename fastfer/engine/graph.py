# SPDX-License-Identifier: Apache-2.0
"""The graph that a plan is built from: maps of one image and the operations between them.

Every value is a map (C, H, W) of one image, the batch is free: a vector is (C, 1, 1), tokens are the pixels of a map.
Nodes stand in execution order, a value is written by one node, the input by none. `OPS` lists the operations with
their code in the file, their attributes and weights, and how the output's shape follows; activations are indices of
`fastfer._checks.ACTIVATIONS`, padding is (top, left, bottom, right).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastfer._checks import ACTIVATIONS

Array = NDArray[Any]


class Shape(NamedTuple):
    """A map of one image."""

    channels: int
    height: int
    width: int


class GraphError(ValueError):
    """An operation whose inputs, attributes or weights do not fit each other."""


@dataclass(frozen=True, eq=False)
class Node:
    """``output`` = ``op`` of ``inputs`` (value numbers), with integer ``attrs`` and float ``weights`` as `OPS` says."""

    op: str
    inputs: tuple[int, ...]
    output: int
    attrs: tuple[int, ...] = ()
    weights: tuple[Array, ...] = ()

    def attr(self, name: str) -> int:
        """An attribute by name."""
        return self.attrs[OPS[self.op].attrs.index(name)]

    def weight(self, name: str) -> Array:
        """A weight by name."""
        return self.weights[OPS[self.op].weights.index(name)]

    def having(self, **attrs: int) -> tuple[int, ...]:
        """The attributes with some replaced."""
        names = OPS[self.op].attrs
        return tuple(attrs.get(name, value) for name, value in zip(names, self.attrs, strict=True))


@dataclass
class Graph:
    """``values`` are the shapes by number; ``input`` is a number, ``outputs`` are numbers."""

    values: list[Shape]
    input: int
    nodes: list[Node] = field(default_factory=list)
    outputs: tuple[int, ...] = ()

    def add(self, op: str, inputs: Sequence[int], attrs: Sequence[int] = (), weights: Sequence[Array] = ()) -> int:
        """Append an operation; the number of its output. Raises GraphError where the parts do not fit."""
        node = Node(op, tuple(inputs), len(self.values), tuple(int(a) for a in attrs), tuple(weights))
        self.values.append(output_shape(node, [self.values[i] for i in inputs]))
        self.nodes.append(node)
        return node.output

    def uses(self) -> list[int]:
        """How often each value is read, by nodes or as an output."""
        counts = [0] * len(self.values)
        for number in (*(i for node in self.nodes for i in node.inputs), *self.outputs):
            counts[number] += 1
        return counts

    def pruned(self) -> Graph:
        """The nodes that the outputs need, values renumbered in the order in which they are written."""
        needed, nodes = set(self.outputs), []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                nodes.append(node)
        nodes.reverse()
        numbers = {old: new for new, old in enumerate([self.input, *(node.output for node in nodes)])}
        graph = Graph([self.values[old] for old in numbers], 0, outputs=tuple(numbers[o] for o in self.outputs))
        for node in nodes:
            inputs = tuple(numbers[i] for i in node.inputs)
            graph.nodes.append(Node(node.op, inputs, numbers[node.output], node.attrs, node.weights))
        return graph

    def check(self) -> None:
        """Raise GraphError where a shape, an order or a count is wrong."""
        written = {self.input}
        for node in self.nodes:
            if not written.issuperset(node.inputs) or node.output in written:
                raise GraphError(f"{node.op}: expected inputs written before and a fresh output, got {node.inputs}")
            shape = output_shape(node, [self.values[i] for i in node.inputs])
            if shape != self.values[node.output]:
                raise GraphError(f"{node.op}: expected the output {tuple(shape)}, got {self.values[node.output]}")
            written.add(node.output)
        if not self.outputs or not written.issuperset(self.outputs):
            raise GraphError(f"graph: expected at least one output, each written, got {self.outputs}")


def output_shape(node: Node, inputs: Sequence[Shape]) -> Shape:
    """The shape that ``node`` makes of its inputs' shapes, its parts checked."""
    spec = OPS.get(node.op)
    if spec is None:
        raise GraphError(f"graph: expected one of {', '.join(OPS)}, got {node.op!r}")
    if len(inputs) != spec.inputs and not (spec.inputs == MANY and len(inputs) > 1):
        raise GraphError(f"{node.op}: expected {spec.inputs} inputs, got {len(inputs)}")
    for kind, names, got in (("attributes", spec.attrs, node.attrs), ("weights", spec.weights, node.weights)):
        if len(names) != len(got):
            raise GraphError(f"{node.op}: expected the {kind} {', '.join(names) or 'none'}, got {len(got)}")
    for name in ("act", "gate_act"):
        if name in spec.attrs and not 0 <= node.attr(name) < len(ACTIVATIONS):
            raise GraphError(f"{node.op}: {name}: expected 0 to {len(ACTIVATIONS) - 1}, got {node.attr(name)}")
    shape = spec.shape(node, list(inputs))
    if min(shape) < 1:
        raise GraphError(f"{node.op}: expected an output of at least one element, got {tuple(shape)} from {inputs}")
    return shape


def _sizes(node: Node, **expected: int) -> None:
    """The counts of weights."""
    for name, count in expected.items():
        if node.weight(name).size != count:
            raise GraphError(f"{node.op}: {name}: expected {count} values, got {node.weight(name).size}")


def _window(node: Node, x: Shape) -> tuple[int, int]:
    """Output height and width of a sliding window."""
    kh, kw, sh, sw, *pads = node.attrs[:8]
    if min(kh, kw, sh, sw) < 1 or min(pads) < 0:
        raise GraphError(f"{node.op}: expected kernel and stride >= 1, padding >= 0, got {node.attrs[:8]}")
    return (x.height + pads[0] + pads[2] - kh) // sh + 1, (x.width + pads[1] + pads[3] - kw) // sw + 1


def _conv(node: Node, inputs: list[Shape]) -> Shape:
    (x,), groups, outputs = inputs, node.attr("groups"), node.weight("bias").size
    if groups not in (1, x.channels) or (groups > 1 and outputs != groups):
        raise GraphError(f"conv: groups: expected 1 or {x.channels} with as many outputs, got {groups}, {outputs}")
    _sizes(node, weight=outputs * (x.channels // groups) * node.attr("kh") * node.attr("kw"))
    return Shape(outputs, *_window(node, x))


def _pool(node: Node, inputs: list[Shape]) -> Shape:
    return Shape(inputs[0].channels, *_window(node, inputs[0]))


def _vector(node: Node, inputs: list[Shape]) -> Shape:
    return Shape(inputs[0].channels, 1, 1)


def _broadcast(node: Node, inputs: list[Shape]) -> Shape:
    a, b = inputs
    if any(size not in (1, full) for size, full in zip(b, a, strict=True)):
        raise GraphError(f"{node.op}: expected each size of the second input 1 or as {tuple(a)}, got {tuple(b)}")
    return a


def _same(node: Node, inputs: list[Shape]) -> Shape:
    return inputs[0]


def _affine(node: Node, inputs: list[Shape]) -> Shape:
    _sizes(node, scale=inputs[0].channels, shift=inputs[0].channels)
    return inputs[0]


def _concat(node: Node, inputs: list[Shape]) -> Shape:
    if len({shape[1:] for shape in inputs}) != 1:
        raise GraphError(f"concat: expected maps of one height and width, got {[tuple(s) for s in inputs]}")
    return Shape(sum(shape.channels for shape in inputs), *inputs[0][1:])


def _channel_pool(node: Node, inputs: list[Shape]) -> Shape:
    return Shape(2 if node.attr("order") < 2 else 1, *inputs[0][1:])


def _line_pool(node: Node, inputs: list[Shape]) -> Shape:
    c, h, w = inputs[0]
    return Shape(c, 1, w) if node.attr("axis") else Shape(c, h, 1)


def _mlp(node: Node, channels: int) -> None:
    hidden = node.weight("b1").size
    _sizes(node, w1=hidden * channels, w2=hidden * channels, b2=channels)


def _cbam(node: Node, inputs: list[Shape]) -> Shape:
    _mlp(node, inputs[0].channels)
    _sizes(node, spatial=2 * node.attr("kh") * node.attr("kw"), spatial_bias=1)
    return inputs[0]


def _se(node: Node, inputs: list[Shape]) -> Shape:
    _mlp(node, inputs[0].channels)
    return inputs[0]


def _scse(node: Node, inputs: list[Shape]) -> Shape:
    _mlp(node, inputs[0].channels)
    _sizes(node, spatial=inputs[0].channels, spatial_bias=1)
    return inputs[0]


def _sa(node: Node, inputs: list[Shape]) -> Shape:
    _sizes(node, spatial=2 * node.attr("kh") * node.attr("kw"), spatial_bias=1)
    return inputs[0]


def _csa(node: Node, inputs: list[Shape]) -> Shape:
    _sizes(node, spatial=2, spatial_bias=1)
    c, h, w = inputs[0]
    return Shape(c, h // 2, w // 2) if node.attr("pool") else inputs[0]


def _coordinate(node: Node, inputs: list[Shape]) -> Shape:
    c, middle = inputs[0].channels, node.weight("bias").size
    _sizes(node, weight=middle * c, rows=c * middle, rows_bias=c, columns=c * middle, columns_bias=c)
    return inputs[0]


def _dot_attention(node: Node, inputs: list[Shape]) -> Shape:
    q, kv = inputs
    if q.channels != kv.channels:
        raise GraphError(f"dot_attention: expected tokens of one width, got {q.channels} and {kv.channels}")
    _sizes(node, scale=1)
    return Shape(kv.channels, 1, 1) if node.attr("mean") else q


def _additive_attention(node: Node, inputs: list[Shape]) -> Shape:
    h, x = inputs
    if h != x:
        raise GraphError(f"additive_attention: expected two maps of one shape, got {tuple(h)} and {tuple(x)}")
    hidden = node.weight("bias").size
    _sizes(node, weight=hidden * 2 * x.channels, score=hidden, score_bias=1)
    return Shape(x.channels, 1, 1)


class Op(NamedTuple):
    """``code`` in the file; ``inputs`` the count, or `MANY` for two or more; names of attributes and weights."""

    code: int
    inputs: int
    attrs: tuple[str, ...]
    weights: tuple[str, ...]
    shape: Callable[[Node, list[Shape]], Shape]


MANY = -1
_WINDOW = ("kh", "kw", "sh", "sw", "top", "left", "bottom", "right")
_MLP = ("w1", "b1", "w2", "b2")
_GATE = ("spatial", "spatial_bias")
OPS: dict[str, Op] = {
    "conv": Op(1, 1, (*_WINDOW, "groups", "act"), ("weight", "bias"), _conv),
    "max_pool": Op(2, 1, _WINDOW, (), _pool),
    "avg_pool": Op(3, 1, (*_WINDOW, "count_padding"), (), _pool),
    "global_pool": Op(4, 1, ("kind",), (), _vector),
    "add": Op(5, 2, ("act",), (), _broadcast),
    "mul": Op(6, 2, ("act",), (), _broadcast),
    "act": Op(7, 1, ("act",), (), _same),
    "affine": Op(8, 1, ("act",), ("scale", "shift"), _affine),
    "concat": Op(9, MANY, (), (), _concat),
    "channel_pool": Op(10, 1, ("order",), (), _channel_pool),
    "line_pool": Op(11, 1, ("axis", "kind"), (), _line_pool),
    "cbam": Op(20, 1, ("kh", "kw"), (*_MLP, *_GATE), _cbam),
    "se": Op(21, 1, ("act", "gate_act"), _MLP, _se),
    "eca": Op(22, 1, (), ("weight",), _same),
    "scse": Op(23, 1, ("act",), (*_MLP, *_GATE), _scse),
    "sa": Op(24, 1, ("order", "kh", "kw"), _GATE, _sa),
    "csa": Op(25, 1, ("pool",), ("weight", *_GATE), _csa),
    "coordinate": Op(26, 1, ("mode",), ("weight", "bias", "rows", "rows_bias", "columns", "columns_bias"), _coordinate),
    "dot_attention": Op(27, 2, ("mean",), ("scale",), _dot_attention),
    "additive_attention": Op(28, 2, (), ("weight", "bias", "score", "score_bias"), _additive_attention),
}
"""Kinds of pooling: 0 mean, 1 maximum. ``order`` of `channel_pool`: 0 [max; mean], 1 [mean; max], 2 mean, 3 max;
``axis`` of `line_pool`: 0 over the width, 1 over the height; ``mode`` of `coordinate`: 0 CA, 1 MAXCA, 2 CPSCA."""

MEAN, MAX = 0, 1


def vector(values: Any) -> Array:
    """Weights in float64, in which folding is done; the file holds float32."""
    return np.asarray(values, dtype=np.float64)
