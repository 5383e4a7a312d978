# SPDX-License-Identifier: Apache-2.0
"""The engine's operations are the same in Python and in C++: codes, names, shapes."""

from __future__ import annotations

import numpy as np
import pytest
from engine_bytes import OPS as CODES
from engine_networks import case, cases

from fastfer import _C
from fastfer._checks import ACTIVATIONS
from fastfer.engine.graph import OPS, GraphError, Node, Op, Shape, output_shape

CASES = {name: (shape, build) for name, shape, build in cases()}


def test_tables_are_equal() -> None:
    native = {name: Op(code, inputs, tuple(a), tuple(w)) for name, code, inputs, a, w in _C.engine_ops()}
    assert native == OPS
    assert {name: op.code for name, op in OPS.items()} == CODES


def test_activation_codes_are_equal() -> None:
    with pytest.raises(ValueError, match=f"act: act: expected 0 to {len(ACTIVATIONS) - 1}, got {len(ACTIVATIONS)}"):
        _C.engine_output_shape("act", [(1, 1, 1)], [len(ACTIVATIONS)], [])


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_torch(name: str) -> None:
    shape, build = CASES[name]
    net = case(shape, build)
    for (op, inputs, attrs, weights), want in zip(net.nodes, net.shapes[1:], strict=True):
        node = Node(op, tuple(inputs), 0, tuple(attrs), tuple(np.zeros(w.numel()) for w in weights))
        assert output_shape(node, [Shape(*net.shapes[i]) for i in inputs]) == want


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "weights", "message"),
    [
        (
            "conv",
            [(4, 6, 5)],
            [3, 3, 1, 1, 0, 0, 0, 0, 3, 0],
            [36, 4],
            "conv: groups: expected a divisor of the channels of",
        ),
        ("conv", [(4, 6, 5)], [3, 3, 1, 1, 0, 0, 0, 0, 1, 0], [36, 4], "conv: weight: expected 144 floats, got 36"),
        ("add", [(4, 6, 5), (4, 6, 4)], [0], [], r"add: second input: expected the first one's axes \(4, 6, 5\) or 1"),
        ("add", [(4, 6, 5)], [0], [], "add: number of inputs: expected 2, got 1"),
        ("concat", [(4, 6, 5)], [], [], "concat: expected two inputs or more, got 1"),
        ("act", [(4, 6, 5)], [], [], "act: number of attributes: expected 1, got 0"),
        ("relu", [(4, 6, 5)], [], [], "expected one of conv, .*, got 'relu'"),
    ],
)
def test_parts_that_do_not_fit(
    op: str, inputs: list[tuple[int, int, int]], attrs: list[int], weights: list[int], message: str
) -> None:
    node = Node(op, tuple(range(len(inputs))), 9, tuple(attrs), tuple(np.zeros(n) for n in weights))
    with pytest.raises(GraphError, match=message):
        output_shape(node, [Shape(*shape) for shape in inputs])
