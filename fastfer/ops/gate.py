# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and on pixels: squeeze-and-excitation, ECA, CSA, its pixel part alone, and scSE, one op for all.

Evaluation without gradients reads x twice, the second time from the cache where an image fits, and writes the output
(with ``pool`` a quarter of it: the product before the maximum is never written). Training keeps x, and of each image
C means and of each pixel 3 values (scSE: 1); backward computes the gates, and with ``pool`` the product, again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.signatures.gate import (
    ChannelSide,
    Gate,
    GateBackward,
    GateGradients,
    GateLinked,
    GateLinkedBackward,
    GateLinkedGradients,
    Gates,
    GateTrained,
    PixelSide,
)

_CL = torch.channels_last
_RELU, _SIGMOID = _checks.ACTIVATIONS.index("relu"), _checks.ACTIVATIONS.index("sigmoid")


def _fake(a: Gate | GateLinked) -> Tensor:
    n, c, h, w = a.x.shape
    size = (n, c, h // 2, w // 2) if a.gates.pool else (n, c, h, w)
    return a.x.new_empty(size).contiguous(memory_format=_CL)


def _fake_train(a: Gate | GateLinked) -> GateTrained:
    (n, c, h, w), pixel = a.x.shape, a.gates.pixel
    means = a.x.new_empty(0 if a.gates.channel is None else (n, c))
    pixels = a.x.new_empty(0 if pixel is None else (n, 1 if pixel.linear else 3, h, w))
    return GateTrained(_fake(a), means, pixels)


def _fake_backward(a: GateBackward | GateLinkedBackward) -> GateGradients:
    x, channel, pixel = a.x, a.gates.channel, a.gates.pixel

    def grad(t: Tensor | None, wanted: bool) -> Tensor:
        return torch.empty_like(t) if wanted and t is not None else x.new_empty(0)

    w1, b1, w2, b2 = (None, None, None, None) if channel is None else (channel.w1, channel.b1, channel.w2, channel.b2)
    sw, sb = (None, None) if pixel is None else (pixel.sw, pixel.sb)
    return GateGradients(
        d_x=torch.empty_like(x, memory_format=_CL) if a.needs.x else x.new_empty(0),
        d_w1=grad(w1, a.needs.channel),
        d_b1=grad(b1, a.needs.channel),
        d_w2=grad(w2, a.needs.channel),
        d_b2=grad(b2, a.needs.channel),
        d_sw=grad(sw, a.needs.pixel),
        d_sb=grad(sb, a.needs.pixel),
    )


def _fake_linked_backward(a: GateLinkedBackward) -> GateLinkedGradients:
    grads = _fake_backward(a._replace(needs=a.needs._replace(x=True)))
    stats, weight, bias = (torch.empty_like(t) for t in (a.link.stats, a.link.weight, a.link.bias))
    return GateLinkedGradients(*grads, d_link_stats=stats, d_link_weight=weight, d_link_bias=bias)


_gate = _library.define("gate", "gate", Gate, Tensor, _fake)
_gate_train = _library.define("gate_train", "gate", Gate, GateTrained, _fake_train)
_gate_backward = _library.define("gate_backward", "gate", GateBackward, GateGradients, _fake_backward)
gate_linked = _library.define("gate_linked", "gate", GateLinked, GateTrained, _fake_train)
_gate_linked_backward = _library.define(
    "gate_linked_backward", "gate", GateLinkedBackward, GateLinkedGradients, _fake_linked_backward
)
_library.autograd(_gate_train, _gate_backward)
_library.autograd(gate_linked, _gate_linked_backward)
for _op in (_gate, _gate_train, gate_linked):
    _library.autocast(_op)


def _run(x: Tensor, gates: Gates) -> Tensor:
    fields = Gate(x, gates)
    return _gate_train(fields).out if _gate_train.needs_gradient(fields) else _gate(fields)


def _convolved(weight: Tensor) -> ChannelSide:
    """ECA's channel gate."""
    return ChannelSide(weight, None, None, None, 0, _SIGMOID)


def _check_input(op: str, x: Tensor, least: int = 1) -> None:
    _checks.image(op, "x", x)
    if x.shape[1] == 0 or min(x.shape[2:]) < least:
        raise ValueError(f"{op}: x: expected C >= 1, H and W >= {least}, got shape {tuple(x.shape)}")


def _check_mlp(op: str, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    channels = x.shape[1]
    hidden = w1.shape[0] if _checks.is_tensor(op, "w1", w1).dim() else 0
    if hidden == 0:
        raise ValueError(f"{op}: w1: expected shape (H, {channels}), got {tuple(w1.shape)}")
    for name, weight, shape in (("w1", w1, (hidden, channels)), ("w2", w2, (channels, hidden))):
        square = _checks.is_tensor(op, name, weight).dim() == 4
        _checks.like(op, name, weight, x, (*shape, 1, 1) if square else shape)
    _checks.like(op, "b1", b1, x, (hidden,))
    _checks.like(op, "b2", b2, x, (channels,))


def _check_conv(op: str, x: Tensor, name: str, weight: Tensor) -> None:
    size = weight.shape[-1] if _checks.is_tensor(op, name, weight).dim() else 0
    if size % 2 == 0:
        raise ValueError(f"{op}: {name}: expected shape (1, 1, K) with K odd, got {tuple(weight.shape)}")
    _checks.like(op, name, weight, x, (1, 1, size))


def squeeze_excite(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, act: str | None = "relu", gate: str = "hardsigmoid"
) -> Tensor:
    """x · gate(w2 · act(w1 · mean_hw x + b1) + b2): (N, C, H, W) -> the same shape, channels_last.

    x is float32 or float64; w1 (H, C) and w2 (C, H), or the same as 1×1 convolutions (.., .., 1, 1), b1 (H,), b2 (C,),
    H hidden units; ``gate`` is an activation's name. Raises TypeError or ValueError naming the argument.
    Source: Hu et al. 2018, eq. 2-4; Howard et al. 2019, section 5.3 (hard-sigmoid).
    """
    op = "squeeze_excite"
    _check_input(op, x)
    _check_mlp(op, x, w1, b1, w2, b2)
    channel = ChannelSide(w1, b1, w2, b2, _checks.act_code(op, act), _checks.act_code(op, gate, "gate"))
    return _run(x, Gates(channel, None, False))


def eca(x: Tensor, weight: Tensor) -> Tensor:
    """x · sigmoid(convolution of mean_hw x over the channels): (N, C, H, W) -> the same shape, channels_last.

    x is float32 or float64; weight (1, 1, K), K odd, zeros beside the channels, no bias. Raises TypeError or ValueError
    naming the argument. Source: Wang et al. 2020, eq. 9.
    """
    _check_input("eca", x)
    _check_conv("eca", x, "weight", weight)
    return _run(x, Gates(_convolved(weight), None, False))


def csa_gates(x: Tensor, channel_weight: Tensor, spatial_weight: Tensor, spatial_bias: Tensor, pool: bool) -> Gates:
    """The gates of `csa`, checked: errors name its argument."""
    _check_input("csa", x, 2 if pool else 1)
    _check_conv("csa", x, "channel_weight", channel_weight)
    _checks.like("csa", "spatial_weight", spatial_weight, x, (1, 2, 1, 1))
    _checks.like("csa", "spatial_bias", spatial_bias, x, (1,))
    return Gates(_convolved(channel_weight), PixelSide(spatial_weight, spatial_bias, False), bool(pool))


def csa(
    x: Tensor, channel_weight: Tensor, spatial_weight: Tensor, spatial_bias: Tensor, *, pool: bool = False
) -> Tensor:
    """x · (eca gate + sigmoid(spatial_weight · [max_c x; mean_c x] + spatial_bias)): (N, C, H, W), channels_last.

    x is float32 or float64; channel_weight (1, 1, K) as `eca`, spatial_weight (1, 2, 1, 1), the maximum's first,
    spatial_bias (1,). ``pool`` adds the 2×2 maximum, stride 2: -> (N, C, H // 2, W // 2); among equals the first, row
    by row, gets the gradient. Raises TypeError or ValueError naming the argument. Source: light VGG16, eq. 1-4.
    """
    return _run(x, csa_gates(x, channel_weight, spatial_weight, spatial_bias, pool))


def sa(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x · sigmoid(weight · [max_c x; mean_c x] + bias), the spatial part of `csa`: -> the same shape, channels_last.

    x (N, C, H, W) float32 or float64, weight (1, 2, 1, 1), the maximum's first, bias (1,). Raises TypeError or
    ValueError naming the argument. Source: light VGG16, eq. 2.
    """
    _check_input("sa", x)
    _checks.like("sa", "weight", weight, x, (1, 2, 1, 1))
    _checks.like("sa", "bias", bias, x, (1,))
    return _run(x, Gates(None, PixelSide(weight, bias, False), False))


def scse(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, spatial_weight: Tensor, spatial_bias: Tensor
) -> Tensor:
    """x · (sigmoid(w2 · relu(w1 · mean_hw x + b1) + b2) + sigmoid(spatial_weight · x + spatial_bias)), as it came.

    x (N, C, H, W) float32 or float64; w1, b1, w2, b2 as `squeeze_excite`; spatial_weight (1, C, 1, 1), spatial_bias
    (1,). The two are added, as in the first publication and as CSA does after it; a later version of the paper also
    tries the maximum. Returns the same shape, channels_last. Raises TypeError or ValueError naming the argument.
    Source: Roy et al. 2018 (MICCAI), section 2.
    """
    _check_input("scse", x)
    _check_mlp("scse", x, w1, b1, w2, b2)
    _checks.like("scse", "spatial_weight", spatial_weight, x, (1, x.shape[1], 1, 1))
    _checks.like("scse", "spatial_bias", spatial_bias, x, (1,))
    channel = ChannelSide(w1, b1, w2, b2, _RELU, _SIGMOID)
    return _run(x, Gates(channel, PixelSide(spatial_weight, spatial_bias, True), False))
