# SPDX-License-Identifier: Apache-2.0
"""Handlers of attention written in torch's ops: products, softmax and weighted sums that make one node together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.engine import tensors, views
from fastfer.engine.convert import Conversion, Lazy, covers, numbers
from fastfer.engine.convert_fastfer import attention, pointwise
from fastfer.engine.graph import Node
from fastfer.engine.strided import Strided
from fastfer.engine.views import Uncovered, View

_SIGMOID = ACTIVATIONS.index("sigmoid")


@dataclass(frozen=True)
class Scores(Lazy):
    """scale · q kᵀ of the tokens of two maps."""

    q: View
    k: View
    scale: float = 1.0

    def scaled(self, factor: Any) -> Scores:
        if isinstance(factor, Tensor) and factor.numel() != 1:
            raise Uncovered(f"scores times a constant of shape {tuple(factor.shape)}")
        return replace(self, scale=self.scale * float(factor))

    def settled(self, into: Conversion) -> View | Strided:
        scaled = into.scaled(self.q, self.scale, 0.0) if self.scale != 1 else self.q
        return tensors.matmul(into.graph, scaled, views.permuted(self.k, [0, 2, 1]))


@dataclass(frozen=True)
class Softmax(Lazy):
    """The softmax over tokens of scores: of a product's, or of a map with one channel."""

    scores: Scores | View

    def settled(self, into: Conversion) -> View | Strided:
        if isinstance(self.scores, Scores):
            return tensors.softmax(into.graph, self.scores.settled(into), -1)
        return tensors.softmax(into.graph, self.scores, 1)


@dataclass(frozen=True)
class Weighted(Lazy):
    """softmax · x, before its sum over the tokens."""

    scores: View
    x: View

    def settled(self, into: Conversion) -> View | Strided:
        return tensors.binary(into.graph, "mul", tensors.softmax(into.graph, self.scores, 1), self.x)

    def summed(self, into: Conversion, dims: Any, keepdim: bool) -> View:
        """Additive attention: the scores are v · tanh(W [x; h] + b), and their map is no longer needed."""
        if keepdim or [self.x.dim(i) for i in dims] != [1]:
            raise Uncovered("a sum that is not over the tokens of an attention")
        nodes = _chain(into, self.scores.value, ("conv", "affine", "affine", "conv", "concat"))
        if nodes is None or not _is_tanh(nodes[2], nodes[1]):
            raise Uncovered("attention weights that are not v · tanh(W [x; h] + b)")
        score, _, _, hidden, joined = nodes
        dim, weight = self.x.shape.channels, hidden.weight("weight").reshape(-1, 2 * self.x.shape.channels)
        if joined.inputs[1] == self.x.value != joined.inputs[0]:
            weight = np.hstack([weight[:, dim:], weight[:, :dim]])
        elif joined.inputs[0] != self.x.value:
            raise Uncovered("an additive attention whose weights do not depend on what they weigh")
        (memory,) = (
            (i for i in joined.inputs if i != self.x.value) if len(set(joined.inputs)) > 1 else joined.inputs[:1]
        )
        h = views.tokens(memory, into.graph.values[memory])
        tensors = [weight, hidden.weight("bias"), score.weight("weight"), score.weight("bias")]
        return into.view(views.vector, into.add("additive_attention", [h, self.x], (), tensors))


def _chain(into: Conversion, value: int, ops: tuple[str, ...]) -> list[Node] | None:
    """The nodes that made ``value``, each the first input of the one before, if they are these ops."""
    writers, nodes = {node.output: node for node in into.graph.nodes}, []
    for op in ops:
        node = writers.get(value)
        if node is None or node.op != op:
            return None
        nodes.append(node)
        value = node.inputs[0]
    return nodes


def _is_tanh(inner: Node, outer: Node) -> bool:
    """2 sigmoid(2x) - 1, as a tanh becomes two nodes."""
    forms = ((inner, _SIGMOID, 2, 0), (outer, 0, 2, -1))
    return all(
        node.attrs == (act,) and bool((node.weights[0] == scale).all() and (node.weights[1] == shift).all())
        for node, act, scale, shift in forms
    )


def weighted(a: Any, b: Any) -> Weighted:
    """The product of a softmax and what it weighs, in either order."""
    softmax, x = (a, b) if isinstance(a, Softmax) else (b, a)
    if isinstance(x, View) and isinstance(softmax.scores, View) and x == views.tokens(x.value, x.shape):
        return Weighted(softmax.scores, x)
    raise Uncovered("a softmax times something that is not the tokens it was made of")


@covers("aten.matmul", "aten.bmm", "aten.mm")
def _matmul(into: Conversion, self: Any, **rest: Any) -> Any:
    (other,) = rest.values()
    if isinstance(self, Softmax) and isinstance(self.scores, Scores) and isinstance(other, View):
        return attention(into, self.scores.q, self.scores.k, other, self.scores.scale)
    if isinstance(self, View) and isinstance(other, View):
        keys = views.permuted(other, [0, 2, 1]) if len(other.axes) == 3 else other
        if len(self.axes) == 3 and keys == views.tokens(other.value, other.shape):
            return Scores(self, keys)
    if isinstance(self, View) and isinstance(other, Tensor) and other.dim() == 2:
        last = len(self.axes) - 1
        if views.is_pixelwise(self, last):
            return pointwise(into, self, last, numbers(other).T, np.zeros(other.shape[1]))
    raise Uncovered("a product that is neither a linear layer nor an attention over tokens")


@covers("aten.softmax", "aten._softmax")
def _softmax(into: Conversion, self: Any, dim: int, **rest: Any) -> Softmax:
    if isinstance(self, Scores) and dim in (-1, 2):
        return Softmax(self)
    if isinstance(self, View) and len(self.axes) == 3 and self.dim(dim) == 1 and self.shape.channels == 1:
        return Softmax(self)
    raise Uncovered("a softmax outside an attention over tokens")


@covers("aten.scaled_dot_product_attention")
def _scaled_dot_product_attention(
    into: Conversion,
    query: View,
    key: View,
    value: View,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: Any,
    enable_gqa: bool,
) -> View:
    if attn_mask is not None or dropout_p or is_causal or len(query.axes) != 3:
        raise Uncovered("attention with a mask, dropout or several heads")
    return attention(into, query, key, value, query.shape.channels**-0.5 if scale is None else float(scale))
