# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, flat, nhwc
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
)


def _tensors(channel: ChannelSide | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """w1, b1, w2, b2, those that there are dense."""
    if channel is None:
        return None, None, None, None
    return channel.w1.contiguous(), flat(channel.b1), flat(channel.w2), flat(channel.b2)


def _forward(x: Tensor, gates: Gates, train: bool, linked: _C.LinkedInputParams | None = None) -> GateTrained:
    (n, c, h, w), (channel, pixel, pool) = x.shape, gates
    w1, b1, w2, b2 = _tensors(channel)
    out = empty_nhwc(x, c, h // 2, w // 2) if pool else empty_nhwc(x, c, h, w)
    means = pixels = out  # not written in inference
    if train:
        means = x.new_empty(0 if channel is None else (n, c))
        pixels = x.new_empty(0 if pixel is None else (n, 1 if pixel.linear else 3, h, w))
    params = _C.GateParams(
        n=n,
        h=h,
        w=w,
        c=c,
        hidden=0 if channel is None else channel.units,
        act=0 if channel is None else channel.act,
        gate_act=0 if channel is None else channel.gate_act,
        linear=pixel is not None and pixel.linear,
        pool=pool,
        x=nhwc(x),
        w1=w1,
        b1=b1,
        w2=w2,
        b2=b2,
        sw=None if pixel is None else pixel.sw.contiguous(),
        sb=None if pixel is None else pixel.sb.contiguous(),
        out=out,
        means=means,
        pixels=pixels,
        linked_input=linked,
        threads=num_threads(),
    )
    run = _C.gate_train if train else _C.gate_fwd
    run(x.dtype == torch.float64, params)
    return GateTrained(out, means, pixels)


def gate(a: Gate) -> Tensor:
    """Output."""
    return _forward(a.x, a.gates, False).out


def gate_train(a: Gate) -> GateTrained:
    """Output, the images' means, the pixels' values."""
    return _forward(a.x, a.gates, True)


def gate_linked(a: GateLinked) -> GateTrained:
    """As `gate_train` of the normalised x."""
    link = a.link
    linked = _C.LinkedInputParams(
        weight=link.weight.contiguous(), bias=link.bias.contiguous(), stats=link.stats.contiguous(), act=link.act
    )
    return _forward(a.x, a.gates, True, linked)


def gate_backward(a: GateBackward) -> GateGradients:
    """Gradients of x, of the channel gate and of the pixel gate."""
    return _backward(a, None)


def gate_linked_backward(a: GateLinkedBackward) -> GateLinkedGradients:
    """Gradients as `gate_backward`, and of the link's tensors; x's is always computed."""
    link, needs = a.link, a.needs._replace(x=True)
    weight, bias, stats = link.weight.contiguous(), link.bias.contiguous(), link.stats.contiguous()
    d_stats, d_weight, d_bias = torch.empty_like(stats), torch.empty_like(weight), torch.empty_like(bias)
    linked = _C.LinkedInputParams(
        weight=weight, bias=bias, stats=stats, act=link.act, d_weight=d_weight, d_bias=d_bias, d_stats=d_stats
    )
    grads = _backward(GateBackward(a.d_out, a.x, a.means, a.pixels, a.gates, needs), linked)
    return GateLinkedGradients(*grads, d_link_stats=d_stats, d_link_weight=d_weight, d_link_bias=d_bias)


def _backward(a: GateBackward, linked: _C.LinkedInputParams | None) -> GateGradients:
    x, (n, c, h, w), (channel, pixel, pool) = a.x, a.x.shape, a.gates
    w1, b1, w2, b2 = _tensors(channel)
    sw, sb = (None, None) if pixel is None else (pixel.sw.contiguous(), pixel.sb.contiguous())

    def grad(t: Tensor | None, needed: bool) -> Tensor | None:
        return torch.empty_like(t) if needed and t is not None else None

    dx = empty_nhwc(x, c, h, w) if a.needs.x else None
    d_w1, d_b1, d_w2, d_b2 = (grad(t, a.needs.channel) for t in (w1, b1, w2, b2))
    d_sw, d_sb = grad(sw, a.needs.pixel), grad(sb, a.needs.pixel)
    params = _C.GateParams(
        n=n,
        h=h,
        w=w,
        c=c,
        hidden=0 if channel is None else channel.units,
        act=0 if channel is None else channel.act,
        gate_act=0 if channel is None else channel.gate_act,
        linear=pixel is not None and pixel.linear,
        pool=pool,
        x=nhwc(x),
        w1=w1,
        b1=b1,
        w2=w2,
        b2=b2,
        sw=sw,
        sb=sb,
        means=a.means,
        pixels=a.pixels,
        dout=nhwc(a.d_out),
        dx=dx,
        d_w1=d_w1,
        d_b1=d_b1,
        d_w2=d_w2,
        d_b2=d_b2,
        d_sw=d_sw,
        d_sb=d_sb,
        linked_input=linked,
        threads=num_threads(),
    )
    _C.gate_bwd(x.dtype == torch.float64, params)
    grads = (dx, d_w1, d_b1, d_w2, d_b2, d_sw, d_sb)
    return GateGradients(*(x.new_empty(0) if grad is None else grad for grad in grads))
