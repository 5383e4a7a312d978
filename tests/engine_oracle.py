# SPDX-License-Identifier: Apache-2.0
"""Runs an engine's graph in numpy, in the precision of its weights: what a plan must compute, node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastfer.engine.graph import Array, Graph, Node


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(x / 2)


_ACTIVATIONS = (
    lambda x: x,
    lambda x: np.maximum(x, 0),
    lambda x: np.clip(x, 0, 6),
    lambda x: x * np.clip(x + 3, 0, 6) / 6,
    lambda x: np.clip(x + 3, 0, 6) / 6,
    lambda x: x * _sigmoid(x),
    _sigmoid,
)


def activated(x: Array, act: int) -> Array:
    return _ACTIVATIONS[act](x)


def _windows(x: Array, node: Node, fill: float) -> Array:
    """(N, C, OH, OW, kh, kw)."""
    kh, kw, sh, sw, top, left, bottom, right = node.attrs[:8]
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    return sliding_window_view(padded, (kh, kw), (2, 3))[:, :, ::sh, ::sw]


def _conv(node: Node, x: Array) -> Array:
    bias, groups = node.weight("bias"), node.attr("groups")
    kernel = (node.attr("kh"), node.attr("kw"))
    if groups > 1:
        y = np.einsum("nchwkl,ckl->nchw", _windows(x, node, 0), node.weight("weight").reshape(groups, *kernel))
    else:
        weight = node.weight("weight").reshape(bias.size, x.shape[1], *kernel)
        y = np.tensordot(_windows(x, node, 0), weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    return activated(y + bias.reshape(-1, 1, 1), node.attr("act"))


def _max_pool(node: Node, x: Array) -> Array:
    return _windows(x, node, -np.inf).max((4, 5))


def _avg_pool(node: Node, x: Array) -> Array:
    counts = np.ones((1, 1, *x.shape[2:])) if not node.attr("count_padding") else None
    total = _windows(x, node, 0).sum((4, 5))
    if counts is None:
        return total / (node.attr("kh") * node.attr("kw"))
    return total / _windows(counts, node, 0).sum((4, 5))


def _reduced(x: Array, kind: int, axes: tuple[int, ...]) -> Array:
    return x.max(axes, keepdims=True) if kind else x.mean(axes, keepdims=True)


def _channel_pool(node: Node, x: Array) -> Array:
    largest, mean = _reduced(x, 1, (1,)), _reduced(x, 0, (1,))
    return (np.concatenate([largest, mean], 1), np.concatenate([mean, largest], 1), mean, largest)[node.attr("order")]


def _per_channel(w: Array) -> Array:
    return w.reshape(-1, 1, 1)


def _dense(x: Array, weight: Array, bias: Array) -> Array:
    """A 1×1 convolution."""
    return np.einsum("nchw,oc->nohw", x, weight.reshape(bias.size, -1)) + _per_channel(bias)


def _mlp(node: Node, v: Array, act: int) -> Array:
    hidden = activated(_dense(v, node.weight("w1"), node.weight("b1")), act)
    return _dense(hidden, node.weight("w2"), node.weight("b2"))


def _spatial(node: Node, x: Array, order: int, kh: int, kw: int) -> Array:
    """Logits (N, 1, H, W) of a spatial gate, "same" padding."""
    planes = [_reduced(x, 1, (1,)), _reduced(x, 0, (1,))]
    planes = planes if order == 0 else planes[::-1]
    attrs = (kh, kw, 1, 1, kh // 2, kw // 2, kh // 2, kw // 2, 1, 0)
    weight = node.weight("spatial").reshape(1, 2, kh, kw)
    return _conv(Node("conv", (), 0, attrs, (weight, node.weight("spatial_bias"))), np.concatenate(planes, 1))


def _cbam(node: Node, x: Array) -> Array:
    gate = sum(_mlp(node, _reduced(x, kind, (2, 3)), 1) for kind in (0, 1))
    y = x * _sigmoid(gate)
    return y * _sigmoid(_spatial(node, y, 0, node.attr("kh"), node.attr("kw")))


def _se(node: Node, x: Array) -> Array:
    gate = _mlp(node, _reduced(x, 0, (2, 3)), node.attr("act"))
    return x * activated(gate, node.attr("gate_act"))


def _eca_gate(x: Array, taps: Array) -> Array:
    means = x.mean((2, 3))
    padded = np.pad(means, ((0, 0), (taps.size // 2, taps.size // 2)))
    return _sigmoid(sliding_window_view(padded, taps.size, 1) @ taps.reshape(-1))[:, :, None, None]


def _scse(node: Node, x: Array) -> Array:
    channel = _sigmoid(_mlp(node, _reduced(x, 0, (2, 3)), node.attr("act")))
    return x * (channel + _sigmoid(_dense(x, node.weight("spatial"), node.weight("spatial_bias"))))


def _sa(node: Node, x: Array) -> Array:
    return x * _sigmoid(_spatial(node, x, *node.attrs))


def _csa(node: Node, x: Array) -> Array:
    y = x * (_eca_gate(x, node.weight("weight")) + _sigmoid(_spatial(node, x, 0, 1, 1)))
    if not node.attr("pool"):
        return y
    return _max_pool(Node("max_pool", (), 0, (2, 2, 2, 2, 0, 0, 0, 0)), y)


def _coordinate(node: Node, x: Array) -> Array:
    mode, height = node.attr("mode"), x.shape[2]
    kinds = ((0,), (1,), (0, 1))[mode]
    lines = sum(
        np.concatenate([_reduced(x, kind, (3,)), _reduced(x, kind, (2,)).transpose(0, 1, 3, 2)], 2) for kind in kinds
    )
    y = activated(_dense(lines, node.weight("weight"), node.weight("bias")), 3)
    rows = _sigmoid(_dense(y[:, :, :height], node.weight("rows"), node.weight("rows_bias")))
    columns = _sigmoid(_dense(y[:, :, height:], node.weight("columns"), node.weight("columns_bias")))
    return x * rows * columns.transpose(0, 1, 3, 2)


def _softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _tokens(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)


def _dot_attention(node: Node, q: Array, kv: Array) -> Array:
    keys = _tokens(kv)
    weights = _softmax(_tokens(q) @ keys.transpose(0, 2, 1) * node.weight("scale").item(), 2)
    y = (weights @ keys).transpose(0, 2, 1)
    return y.mean(2)[:, :, None, None] if node.attr("mean") else y.reshape(q.shape)


def _additive_attention(node: Node, h: Array, x: Array) -> Array:
    both = np.concatenate([_tokens(x), _tokens(h)], 2)
    hidden = np.tanh(both @ node.weight("weight").reshape(-1, both.shape[2]).T + node.weight("bias"))
    scores = hidden @ node.weight("score").reshape(-1) + node.weight("score_bias")
    return (_softmax(scores, 1)[:, :, None] * _tokens(x)).sum(1)[:, :, None, None]


_RUN: dict[str, Any] = {
    "conv": _conv,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_pool": lambda node, x: _reduced(x, node.attr("kind"), (2, 3)),
    "add": lambda node, a, b: activated(a + b, node.attr("act")),
    "mul": lambda node, a, b: activated(a * b, node.attr("act")),
    "act": lambda node, x: activated(x, node.attr("act")),
    "affine": lambda node, x: activated(
        x * _per_channel(node.weight("scale")) + _per_channel(node.weight("shift")), node.attr("act")
    ),
    "concat": lambda node, *xs: np.concatenate(xs, 1),
    "channel_pool": _channel_pool,
    "line_pool": lambda node, x: _reduced(x, node.attr("kind"), (2,) if node.attr("axis") else (3,)),
    "cbam": _cbam,
    "se": _se,
    "eca": lambda node, x: x * _eca_gate(x, node.weight("weight")),
    "scse": _scse,
    "sa": _sa,
    "csa": _csa,
    "coordinate": _coordinate,
    "dot_attention": _dot_attention,
    "additive_attention": _additive_attention,
}


def run(graph: Graph, x: Array) -> list[Array]:
    """The outputs, each (N, C, H, W), for images (N, C, H, W)."""
    values = {graph.input: x}
    for node in graph.nodes:
        y = _RUN[node.op](node, *(values[i] for i in node.inputs))
        assert y.shape[1:] == tuple(graph.values[node.output]), f"{node.op}: {y.shape}"
        values[node.output] = y
    return [values[i] for i in graph.outputs]
