# SPDX-License-Identifier: Apache-2.0
"""Rewrites of a graph that leave its result as it is: norms and activations into the operations before them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastfer.engine.graph import MEAN, Graph, Node, Shape
from fastfer.engine.siblings import joined_siblings

_ACTIVATED = ("conv", "dilated_conv", "add", "mul", "affine")


def fused(graph: Graph) -> Graph:
    """The graph with every rewrite applied until none applies, without what its outputs do not need."""
    graph = graph.pruned()
    while True:
        before = len(graph.nodes)
        for rewrite in (_pair, _joined_pools):
            graph = rewrite(graph).pruned()
        if len(graph.nodes) == before:
            graph = joined_siblings(graph).pruned()
            graph.check()
            return graph


def _replaced(graph: Graph, nodes: list[Node], renamed: dict[int, int]) -> Graph:
    """The graph with other nodes, and with values that have become others."""

    def name(value: int) -> int:
        while value in renamed:
            value = renamed[value]
        return value

    moved = [Node(node.op, tuple(map(name, node.inputs)), node.output, node.attrs, node.weights) for node in nodes]
    return Graph(graph.values, graph.input, moved, tuple(map(name, graph.outputs)), graph.ranges)


def _pair(graph: Graph) -> Graph:
    """One pass over neighbours: a node and the only one that reads it become one where a rule of `_RULES` says so."""
    uses = graph.uses()
    writers: dict[int, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        first = writers.get(node.inputs[0]) if node.inputs else None
        rule = _RULES.get((first.op, node.op)) if first is not None and uses[first.output] == 1 else None
        if first is not None and first.op == "gather" and _pads(first, graph.values[first.inputs[0]]) is None:
            rule = None
        joined = rule(first, node) if rule is not None and first is not None else None
        if joined is None or first is None:
            writers[node.output] = node
            nodes.append(node)
            continue
        nodes.remove(first)
        nodes.append(joined)
        writers[joined.output] = joined
    return _replaced(graph, nodes, {})


def _conv_affine(conv: Node, affine: Node) -> Node | None:
    """A norm behind a convolution: W' = scale · W, b' = scale · b + shift."""
    if conv.attr("act"):
        return None
    scale, shift = affine.weights
    weight, bias = conv.weights
    wide = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    attrs = conv.having(act=affine.attr("act"))
    return Node(conv.op, conv.inputs, affine.output, attrs, (wide, bias * scale + shift))


def _affine_affine(first: Node, second: Node) -> Node | None:
    if first.attr("act"):
        return None
    scale, shift = second.weights
    weights = (first.weights[0] * scale, first.weights[1] * scale + shift)
    return Node("affine", first.inputs, second.output, second.attrs, weights)


def _affine_conv(affine: Node, conv: Node) -> Node | None:
    """A norm before a convolution without padding: W'[o, c] = W[o, c] · scale[c], b' = b + sum W · shift."""
    pads = [conv.attr(side) for side in ("top", "left", "bottom", "right")]
    if affine.attr("act") or any(pads):
        return None
    scale, shift = affine.weights
    weight, bias = conv.weights
    outputs = bias.size
    by_channel = weight.reshape(outputs, -1, conv.attr("kh") * conv.attr("kw"))
    if conv.attr("groups") > 1 and by_channel.shape[:2] != (conv.attr("groups"), 1):
        return None
    if conv.attr("groups") == 1:
        wide, offset = by_channel * scale[None, :, None], np.einsum("ock,c->o", by_channel, shift)
    else:
        wide, offset = by_channel * scale[:, None, None], by_channel.sum((1, 2)) * shift
    return Node("conv", affine.inputs, conv.output, conv.attrs, (wide.reshape(weight.shape), bias + offset))


def _pads(gather: Node, shape: Shape) -> dict[str, int] | None:
    """The rows and columns of zeros that a gather puts around an image; None where it does something else."""
    lengths, strides = gather.attrs[3:11], gather.attrs[11:19]
    index, fill = gather.weights
    if fill[0] != 0 or any(n != 1 for n in lengths[3:]) or index[sum(lengths[:3]) :].any():
        return None
    if strides[:3] != (shape.height * shape.width, shape.width, 1):
        return None
    sides = []
    for part, size in zip(np.split(index[: sum(lengths[:3])], np.cumsum(lengths[:2])), shape, strict=True):
        there = np.flatnonzero(part >= 0)
        if len(there) != size or not np.array_equal(part[there[0] : there[-1] + 1], np.arange(size)):
            return None
        sides.append((int(there[0]), int(len(part) - 1 - there[-1])))
    (front, back), (top, bottom), (left, right) = sides
    return None if front or back else {"top": top, "left": left, "bottom": bottom, "right": right}


def _pad_conv(pad: Node, conv: Node) -> Node | None:
    """Zeros around the image as padding of the convolution that reads it."""
    rows, columns = np.split(pad.weights[0], np.cumsum(pad.attrs[3:6]))[1:3]
    more = _pads(pad, Shape(pad.attr("channels"), int(rows.max()) + 1, int(columns.max()) + 1))
    if more is None:
        return None
    attrs = conv.having(**{side: conv.attr(side) + count for side, count in more.items()})
    return Node(conv.op, pad.inputs, conv.output, attrs, conv.weights)


def _with_act(first: Node, act: Node) -> Node | None:
    if first.attr("act"):
        return None
    attrs = first.having(act=act.attr("act"))
    return Node(first.op, first.inputs, act.output, attrs, first.weights)


def _attention_mean(attention: Node, pool: Node) -> Node | None:
    """The mean over an attention's tokens."""
    if pool.attr("kind") != MEAN or attention.attr("mean"):
        return None
    return Node(attention.op, attention.inputs, pool.output, (1,), attention.weights)


_RULES: dict[tuple[str, str], Callable[[Node, Node], Node | None]] = {
    ("conv", "affine"): _conv_affine,
    ("dilated_conv", "affine"): _conv_affine,
    ("gather", "conv"): _pad_conv,
    ("gather", "dilated_conv"): _pad_conv,
    ("affine", "affine"): _affine_affine,
    ("affine", "conv"): _affine_conv,
    ("dot_attention", "global_pool"): _attention_mean,
    **{(op, "act"): _with_act for op in _ACTIVATED},
}


def _joined_pools(graph: Graph) -> Graph:
    """The maximum and the mean over channels of one map, concatenated: one operation instead of three."""
    writers = {node.output: node for node in graph.nodes}
    nodes = []
    for node in graph.nodes:
        pools = [writers.get(i) for i in node.inputs] if node.op == "concat" and len(node.inputs) == 2 else []
        kinds = [pool.attr("order") for pool in pools if pool is not None and pool.op == "channel_pool"]
        sources = {pool.inputs for pool in pools if pool is not None}
        if kinds in ([3, 2], [2, 3]) and len(sources) == 1:
            node = Node("channel_pool", sources.pop(), node.output, (0 if kinds == [3, 2] else 1,))
        nodes.append(node)
    return _replaced(graph, nodes, {})
