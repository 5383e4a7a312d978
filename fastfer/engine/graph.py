# SPDX-License-Identifier: Apache-2.0
"""The graph that a plan is built from: maps of one image and the operations between them.

Every value is a map (C, H, W) of one image, the batch is free: a vector is (C, 1, 1), tokens are the pixels of a map.
Nodes stand in execution order, a value is written by one node, the input by none. `OPS` lists the operations with
their code in the file, their attributes and weights; how the output's shape follows from the inputs' is known in one
place, the extension; activations are indices of
`fastfer._types.ACTIVATIONS`, padding is (top, left, bottom, right).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastfer.runtime import native

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
    """``values`` are the shapes by number; ``input`` is a number, ``outputs`` are numbers.

    ``ranges`` are (least, largest) of the values that a quantised file keeps as integers.
    """

    values: list[Shape]
    input: int
    nodes: list[Node] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    ranges: dict[int, tuple[float, float]] = field(default_factory=dict)

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
        graph.ranges = {numbers[old]: range_ for old, range_ in self.ranges.items() if old in numbers}
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
    """The shape that ``node`` makes of its inputs' shapes, its parts checked; the extension knows both."""
    spec = OPS.get(node.op)
    if spec is None:
        raise GraphError(f"graph: expected one of {', '.join(OPS)}, got {node.op!r}")
    if spec.inputs == MANY and len(inputs) < 2:
        raise GraphError(f"{node.op}: expected two inputs or more, got {len(inputs)}")
    sizes = [weight.size for weight in node.weights]
    try:
        return Shape(*native().engine_output_shape(node.op, list(map(tuple, inputs)), list(node.attrs), sizes))
    except ValueError as error:
        raise GraphError(str(error)) from None


class Op(NamedTuple):
    """``code`` in the file; ``inputs`` the count, or `MANY` for two or more; names of attributes and weights."""

    code: int
    inputs: int
    attrs: tuple[str, ...]
    weights: tuple[str, ...]


MANY = -1
_WINDOW = ("kh", "kw", "sh", "sw", "top", "left", "bottom", "right")
_MLP = ("w1", "b1", "w2", "b2")
_GATE = ("spatial", "spatial_bias")
_SHAPE = ("channels", "height", "width")
_AXES = ("over_channels", "over_height", "over_width")
OPS: dict[str, Op] = {
    "conv": Op(1, 1, (*_WINDOW, "groups", "act"), ("weight", "bias")),
    "max_pool": Op(2, 1, _WINDOW, ()),
    "avg_pool": Op(3, 1, (*_WINDOW, "count_padding"), ()),
    "global_pool": Op(4, 1, ("kind",), ()),
    "add": Op(5, 2, ("act",), ()),
    "mul": Op(6, 2, ("act",), ()),
    "act": Op(7, 1, ("act",), ()),
    "affine": Op(8, 1, ("act",), ("scale", "shift")),
    "concat": Op(9, MANY, (), ()),
    "channel_pool": Op(10, 1, ("order",), ()),
    "line_pool": Op(11, 1, ("axis", "kind"), ()),
    "cbam": Op(20, 1, ("kh", "kw"), (*_MLP, *_GATE)),
    "se": Op(21, 1, ("act", "gate_act"), _MLP),
    "eca": Op(22, 1, (), ("weight",)),
    "scse": Op(23, 1, ("act",), (*_MLP, *_GATE)),
    "sa": Op(24, 1, ("order", "kh", "kw"), _GATE),
    "csa": Op(25, 1, ("pool",), ("weight", *_GATE)),
    "coordinate": Op(26, 1, ("mode",), ("weight", "bias", "rows", "rows_bias", "columns", "columns_bias")),
    "dot_attention": Op(27, 2, ("mean",), ("scale",)),
    "additive_attention": Op(28, 2, (), ("weight", "bias", "score", "score_bias")),
    "gather": Op(40, 1, (*_SHAPE, *(f"n{d}" for d in range(8)), *(f"s{d}" for d in range(8))), ("index", "fill")),
    "constant": Op(41, 0, _SHAPE, ("values",)),
    "join": Op(42, MANY, ("axis",), ()),
    "unary": Op(43, 1, ("function",), ("a", "b")),
    "binary": Op(44, 2, ("function",), ()),
    "select": Op(45, 3, (), ()),
    "reduce": Op(46, 1, ("function", *_AXES), ("correction",)),
    "softmax": Op(47, 1, ("log", *_AXES), ()),
    "resample": Op(
        48,
        1,
        ("kind", "height", "width", "row_taps", "column_taps"),
        ("rows", "rows_weight", "columns", "columns_weight"),
    ),
    "normalise": Op(49, 1, ("groups", "by_pixel"), ("scale", "shift", "eps")),
    "matmul": Op(50, 2, (), ()),
    "sample": Op(52, 2, ("sampling", "outside", "corners"), ()),
    "dilated_conv": Op(51, 1, (*_WINDOW, "groups", "act", "dh", "dw"), ("weight", "bias")),
}
"""Kinds of pooling: 0 mean, 1 maximum. ``order`` of `channel_pool`: 0 [max; mean], 1 [mean; max], 2 mean, 3 max;
``axis`` of `line_pool`: 0 over the width, 1 over the height; ``mode`` of `coordinate`: 0 CA, 1 MAXCA, 2 CPSCA."""

MEAN, MAX = 0, 1


def vector(values: Any) -> Array:
    """Weights in float64, in which folding is done; the file holds float32."""
    return np.asarray(values, dtype=np.float64)
