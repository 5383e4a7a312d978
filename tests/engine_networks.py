# SPDX-License-Identifier: Apache-2.0
"""Networks of one operation each, for every operation of the engine: what its kernels must agree with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from engine_bytes import Network
from torch import Tensor

from fastfer.backends.reference import elementwise

ACTS = ("none", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid")


def act(x: Tensor, code: int) -> Tensor:
    return elementwise.apply(x, code)


def conv(
    net: Network,
    x: int,
    out: int,
    k: tuple[int, int],
    s: tuple[int, int] = (1, 1),
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    depthwise: bool = False,
    code: int = 0,
) -> int:
    """Padding top, left, bottom, right."""
    channels = net.shapes[x][0]
    groups = channels if depthwise else 1
    w, b = net.weight(out, channels // groups, *k, scale=(channels // groups * k[0] * k[1]) ** -0.5), net.weight(out)
    top, left, bottom, right = pad

    def compute(v: Tensor) -> Tensor:
        return act(F.conv2d(F.pad(v, (left, right, top, bottom)), w, b, s, groups=groups), code)

    return net.add("conv", [x], [*k, *s, *pad, groups, code], [w, b], compute)


def window_pool(
    net: Network,
    x: int,
    mean: bool,
    k: tuple[int, int],
    s: tuple[int, int],
    pad: tuple[int, int, int, int],
    count_padding: bool = False,
) -> int:
    top, left, bottom, right = pad

    def compute(v: Tensor) -> Tensor:
        if not mean:
            return F.max_pool2d(F.pad(v, (left, right, top, bottom), value=-torch.inf), k, s)
        ones = torch.ones_like(v[:, :1])
        padded, counts = (
            F.pad(v, (left, right, top, bottom)),
            F.pad(ones, (left, right, top, bottom), value=float(count_padding)),
        )
        return F.avg_pool2d(padded, k, s) / F.avg_pool2d(counts, k, s)

    attrs = [*k, *s, *pad, *([int(count_padding)] if mean else [])]
    return net.add("avg_pool" if mean else "max_pool", [x], attrs, [], compute)


def mlp(net: Network, channels: int, hidden: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale = channels**-0.5
    return (
        net.weight(hidden, channels, scale=scale),
        net.weight(hidden),
        net.weight(channels, hidden),
        net.weight(channels),
    )


def cbam(net: Network, x: int, hidden: int, k: int) -> int:
    w1, b1, w2, b2 = mlp(net, net.shapes[x][0], hidden)
    ws, bs = net.weight(1, 2, k, k, scale=1 / k), net.weight(1)

    def compute(v: Tensor) -> Tensor:
        pools = v.mean((2, 3)), v.amax((2, 3))
        logits = sum(F.linear(F.relu(F.linear(p, w1, b1)), w2, b2) for p in pools)
        u = v * torch.sigmoid(logits)[:, :, None, None]
        planes = torch.cat([u.amax(1, keepdim=True), u.mean(1, keepdim=True)], 1)
        return u * torch.sigmoid(F.conv2d(planes, ws, bs, padding=k // 2))

    return net.add("cbam", [x], [k, k], [w1, b1, w2, b2, ws, bs], compute)


def se(net: Network, x: int, hidden: int, code: int, gate: int) -> int:
    w1, b1, w2, b2 = mlp(net, net.shapes[x][0], hidden)

    def compute(v: Tensor) -> Tensor:
        g = act(F.linear(act(F.linear(v.mean((2, 3)), w1, b1), code), w2, b2), gate)
        return v * g[:, :, None, None]

    return net.add("se", [x], [code, gate], [w1, b1, w2, b2], compute)


def scse(net: Network, x: int, hidden: int, code: int) -> int:
    channels = net.shapes[x][0]
    w1, b1, w2, b2 = mlp(net, channels, hidden)
    ws, bs = net.weight(1, channels, 1, 1, scale=channels**-0.5), net.weight(1)

    def compute(v: Tensor) -> Tensor:
        g = torch.sigmoid(F.linear(act(F.linear(v.mean((2, 3)), w1, b1), code), w2, b2))
        return v * (g[:, :, None, None] + torch.sigmoid(F.conv2d(v, ws, bs)))

    return net.add("scse", [x], [code], [w1, b1, w2, b2, ws, bs], compute)


def _neighbours(v: Tensor, w: Tensor) -> Tensor:
    means = v.mean((2, 3))
    return torch.sigmoid(F.conv1d(means[:, None], w.view(1, 1, -1), padding=w.numel() // 2)[:, 0])[:, :, None, None]


def _planes(v: Tensor, mean_first: bool = False) -> Tensor:
    pair = [v.amax(1, keepdim=True), v.mean(1, keepdim=True)]
    return torch.cat(pair[::-1] if mean_first else pair, 1)


def eca(net: Network, x: int, taps: int) -> int:
    w = net.weight(taps)
    return net.add("eca", [x], [], [w], lambda v: v * _neighbours(v, w))


def sa(net: Network, x: int, order: int, kh: int, kw: int) -> int:
    w, b = net.weight(1, 2, kh, kw), net.weight(1)
    return net.add(
        "sa",
        [x],
        [order, kh, kw],
        [w, b],
        lambda v: v * torch.sigmoid(F.conv2d(_planes(v, order == 1), w, b, padding=(kh // 2, kw // 2))),
    )


def csa(net: Network, x: int, taps: int, pool: bool) -> int:
    w, ws, bs = net.weight(taps), net.weight(1, 2, 1, 1), net.weight(1)

    def compute(v: Tensor) -> Tensor:
        y = v * (_neighbours(v, w) + torch.sigmoid(F.conv2d(_planes(v), ws, bs)))
        return F.max_pool2d(y, 2) if pool else y

    return net.add("csa", [x], [int(pool)], [w, ws, bs], compute)


def coordinate(net: Network, x: int, middle: int, mode: int) -> int:
    c = net.shapes[x][0]
    w, b = net.weight(middle, c, scale=c**-0.5), net.weight(middle)
    wh, bh, ww, bw = net.weight(c, middle), net.weight(c), net.weight(c, middle), net.weight(c)

    def gate(pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        hidden = F.hardswish(torch.einsum("mc,ncl->nml", w, pooled) + b[:, None])
        return torch.sigmoid(torch.einsum("cm,nml->ncl", weight, hidden) + bias[:, None])

    def compute(v: Tensor) -> Tensor:
        def pooled(axis: int) -> Tensor:
            return (v.mean(axis) if mode != 1 else 0) + (v.amax(axis) if mode != 0 else 0)

        return v * gate(pooled(3), wh, bh)[:, :, :, None] * gate(pooled(2), ww, bw)[:, :, None]

    return net.add("coordinate", [x], [mode], [w, b, wh, bh, ww, bw], compute)


def _tokens(v: Tensor) -> Tensor:
    return v.flatten(2).transpose(1, 2)


def dot_attention(net: Network, q: int, kv: int, mean: bool) -> int:
    scale = net.weight(1)

    def compute(a: Tensor, b: Tensor) -> Tensor:
        y = torch.softmax(scale * _tokens(a) @ _tokens(b).transpose(1, 2), 2) @ _tokens(b)
        return y.mean(1)[:, :, None, None] if mean else y.transpose(1, 2).reshape(a.shape)

    return net.add("dot_attention", [q, kv], [int(mean)], [scale], compute)


def additive_attention(net: Network, h: int, x: int, hidden: int) -> int:
    d = net.shapes[x][0]
    w, b, v, vb = net.weight(hidden, 2 * d, scale=d**-0.5), net.weight(hidden), net.weight(hidden), net.weight(1)

    def compute(memory: Tensor, tokens: Tensor) -> Tensor:
        t = _tokens(tokens)
        u = torch.tanh(F.linear(torch.cat([t, _tokens(memory)], 2), w, b))
        weights = torch.softmax(u @ v + vb, 1)
        return (weights[:, :, None] * t).sum(1)[:, :, None, None]

    return net.add("additive_attention", [h, x], [], [w, b, v, vb], compute)


def binary(net: Network, a: int, b: int, product: bool, code: int) -> int:
    return net.add("mul" if product else "add", [a, b], [code], [], lambda p, q: act(p * q if product else p + q, code))


def affine(net: Network, x: int, code: int) -> int:
    c = net.shapes[x][0]
    scale, shift = net.weight(c), net.weight(c)
    return net.add(
        "affine", [x], [code], [scale, shift], lambda v: act(v * scale[:, None, None] + shift[:, None, None], code)
    )


def line_pool(net: Network, x: int, axis: int, kind: int) -> int:
    def compute(v: Tensor) -> Tensor:
        return v.amax(3 - axis, keepdim=True) if kind else v.mean(3 - axis, keepdim=True)

    return net.add("line_pool", [x], [axis, kind], [], compute)


def global_pool(net: Network, x: int, kind: int) -> int:
    def compute(v: Tensor) -> Tensor:
        return v.amax((2, 3), keepdim=True) if kind else v.mean((2, 3), keepdim=True)

    return net.add("global_pool", [x], [kind], [], compute)


def channel_pool(net: Network, x: int, order: int) -> int:
    def compute(v: Tensor) -> Tensor:
        return _planes(v, order == 1) if order < 2 else _planes(v)[:, 3 - order : 4 - order]

    return net.add("channel_pool", [x], [order], [], compute)


def concat(net: Network, *inputs: int) -> int:
    return net.add("concat", inputs, [], [], lambda *v: torch.cat(v, 1))


Build = Callable[[Network], Any]


def cases() -> Iterator[tuple[str, tuple[int, int, int], Build]]:
    """Name, input shape, and what is built after a first convolution, which is value 1."""
    for number, (channels, out, k, s, pad) in enumerate(
        [
            (3, 5, (1, 1), (1, 1), (0, 0, 0, 0)),
            (17, 33, (1, 1), (1, 1), (0, 0, 0, 0)),
            (16, 48, (3, 3), (1, 1), (1, 1, 1, 1)),
            (20, 24, (3, 3), (2, 2), (0, 1, 2, 0)),
            (8, 8, (3, 3), (1, 1), (1, 1, 1, 1)),
            (5, 70, (5, 3), (2, 1), (2, 0, 1, 2)),
            (33, 16, (7, 7), (3, 3), (3, 3, 3, 3)),
            (9, 4, (4, 4), (4, 4), (1, 1, 1, 1)),
            (40, 90, (1, 1), (2, 2), (0, 0, 0, 0)),
        ]
    ):
        yield (
            f"conv {channels}-{out} {k} {s}",
            (channels, 11, 15),
            lambda net, a=(out, k, s, pad, False, number % 7): conv(net, 1, *a),
        )
    for number, (channels, k, s, pad) in enumerate(
        [
            (16, (3, 3), (1, 1), (1, 1, 1, 1)),
            (40, (3, 3), (2, 2), (1, 1, 1, 1)),
            (7, (5, 5), (1, 1), (2, 2, 2, 2)),
            (33, (5, 5), (2, 2), (2, 2, 2, 2)),
            (16, (4, 4), (4, 4), (1, 1, 1, 1)),
            (18, (2, 2), (2, 2), (0, 0, 0, 0)),
            (5, (3, 5), (1, 3), (0, 4, 2, 1)),
            (24, (3, 3), (2, 2), (0, 0, 1, 1)),
        ]
    ):
        yield (
            f"depthwise {channels} {k} {s}",
            (channels, 13, 18),
            lambda net, a=(channels, k, s, pad, True, number % 7): conv(net, 1, *a),
        )
    yield "max_pool 3x3/2", (20, 13, 11), lambda net: window_pool(net, 1, False, (3, 3), (2, 2), (1, 1, 1, 1))
    yield "max_pool 2x2/2", (5, 9, 8), lambda net: window_pool(net, 1, False, (2, 2), (2, 2), (0, 0, 0, 0))
    yield "avg_pool", (20, 12, 14), lambda net: window_pool(net, 1, True, (7, 7), (5, 7), (0, 0, 0, 0))
    yield "avg_pool padded", (6, 9, 10), lambda net: window_pool(net, 1, True, (3, 4), (2, 3), (1, 2, 1, 1))
    yield "avg_pool counted", (6, 9, 10), lambda net: window_pool(net, 1, True, (3, 4), (2, 3), (1, 2, 1, 1), True)
    for kind in (0, 1):
        yield f"global_pool {kind}", (37, 7, 9), lambda net, k=kind: global_pool(net, 1, k)
        for axis in (0, 1):
            yield f"line_pool {axis} {kind}", (19, 5, 8), lambda net, a=(axis, kind): line_pool(net, 1, *a)
    for order in range(4):
        yield f"channel_pool {order}", (21, 6, 35), lambda net, o=order: channel_pool(net, 1, o)
    for code, name in enumerate(ACTS):
        yield f"act {name}", (19, 4, 5), lambda net, c=code: net.add("act", [1], [c], [], lambda v: act(v, c))
        yield f"affine {name}", (5, 4, 5), lambda net, c=code: affine(net, 1, c)
    others: dict[str, Build] = {
        "full": lambda net: conv(net, 0, 21, (3, 3), pad=(1, 1, 1, 1)),
        "pooled": lambda net: global_pool(net, 1, 0),
        "pixels": lambda net: channel_pool(net, 1, 2),
        "rows": lambda net: line_pool(net, 1, 0, 0),
        "columns": lambda net: line_pool(net, 1, 1, 1),
    }
    for code, (name, other) in enumerate(others.items()):
        for op in ("add", "mul"):
            yield (
                f"{op} {name}",
                (21, 6, 5),
                lambda net, o=other, p=op, c=code: binary(net, 1, o(net), p == "mul", c),
            )
    yield from _joined()
    for channels in (1, 6):
        yield f"planes cbam {channels}", (channels, 20, 37), _planes_cbam
        yield f"planes {channels}", (channels, 13, 32), lambda net: conv(net, 1, 5, (5, 3), pad=(2, 0, 1, 2), code=6)
    yield "concat", (16, 5, 6), lambda net: concat(net, 1, conv(net, 0, 7, (1, 1)), conv(net, 0, 20, (1, 1)))
    yield "concat vectors", (24, 5, 6), lambda net: concat(net, global_pool(net, 1, 0), global_pool(net, 1, 1))
    for channels, size in ((8, (12, 20)), (35, (7, 9))):
        yield f"cbam {channels}", (channels, *size), lambda net: cbam(net, 1, 5, 7)
        yield f"se {channels}", (channels, *size), lambda net: se(net, 1, 6, 1, 4)
        yield f"eca {channels}", (channels, *size), lambda net: eca(net, 1, 5)
        yield f"scse {channels}", (channels, *size), lambda net: scse(net, 1, 17, 1)
        yield f"sa {channels}", (channels, *size), lambda net: sa(net, 1, 1, 1, 1)
        yield f"sa 3x5 {channels}", (channels, *size), lambda net: sa(net, 1, 0, 3, 5)
        for pool in (False, True):
            yield f"csa {channels} {pool}", (channels, *size), lambda net, p=pool: csa(net, 1, 3, p)
        for mode in range(3):
            yield f"coordinate {channels} {mode}", (channels, *size), lambda net, m=mode: coordinate(net, 1, 9, m)
    for mean in (False, True):
        yield (
            f"dot_attention {mean}",
            (24, 5, 7),
            lambda net, m=mean: dot_attention(net, 1, conv(net, 0, 24, (3, 3), (2, 2)), m),
        )
    yield "additive_attention", (20, 5, 3), lambda net: additive_attention(net, 1, conv(net, 0, 20, (1, 1)), 18)


def _planes_cbam(net: Network) -> int:
    first = conv(net, 1, 8, (3, 3), pad=(1, 1, 1, 1), code=1)
    return cbam(net, conv(net, first, 7, (3, 3), code=5), 3, 7)


def _inverted(net: Network, hidden: int, out: int, stride: int, gate: Build | None) -> int:
    """Expansion, depthwise convolution, gate, projection after value 1, and the sum with it where shapes agree."""
    wide = conv(net, 1, hidden, (1, 1), code=3)
    deep = conv(net, wide, hidden, (3, 3), (stride, stride), (1, 1, 1, 1), True, 3)
    gated = deep if gate is None else gate(net)
    narrow = conv(net, gated, out, (1, 1))
    return binary(net, 1, narrow, False, 0) if net.shapes[narrow] == net.shapes[1] else narrow


def _joined() -> Iterator[tuple[str, tuple[int, int, int], Build]]:
    """Operations that a plan runs as one step."""
    for height, width, hidden in ((18, 17, 40), (100, 96, 70)):
        for stride, out in ((1, 20), (2, 9)):
            size = f"{height}x{width}/{stride}"
            shape = (20, height, width)
            yield f"inverted {size}", shape, lambda net, a=(hidden, out, stride): _inverted(net, *a, None)
            yield (
                f"inverted se {size}",
                shape,
                lambda net, a=(hidden, out, stride): _inverted(net, *a, lambda n: se(n, 3, 8, 1, 4)),
            )
            yield (
                f"inverted coordinate {size}",
                shape,
                lambda net, a=(hidden, out, stride): _inverted(net, *a, lambda n: coordinate(n, 3, 8, 2)),
            )
    yield (
        "separable, gate, pool, sum",
        (24, 40, 36),
        lambda net: binary(
            net,
            csa(net, conv(net, conv(net, 1, 24, (3, 3), pad=(1, 1, 1, 1), depthwise=True), 40, (1, 1)), 3, True),
            window_pool(net, conv(net, 1, 40, (1, 1)), False, (3, 3), (2, 2), (1, 1, 1, 1)),
            False,
            0,
        ),
    )
    yield (
        "sum of two, act",
        (9, 8, 7),
        lambda net: binary(net, conv(net, 0, 5, (1, 1)), conv(net, 1, 5, (1, 1)), False, 1),
    )
    yield (
        "sum with the image",
        (9, 8, 7),
        lambda net: binary(net, 0, conv(net, 1, 9, (3, 3), pad=(1, 1, 1, 1)), False, 0),
    )
    yield "sum of one with itself", (9, 8, 7), lambda net: binary(net, 1, 1, False, 0)


def case(shape: tuple[int, int, int], build: Build, seed: int = 1) -> Network:
    """A convolution that keeps the shape, and what ``build`` adds."""
    net = Network(*shape, seed=seed)
    conv(net, 0, shape[0], (3, 3), pad=(1, 1, 1, 1))
    build(net)
    return net
