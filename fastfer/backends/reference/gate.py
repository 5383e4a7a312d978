# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and on pixels, in parallel: out = x · (channel gate (N, C) + pixel gate (N, H, W)), one or both.

- channel: gate_act(w2 · act(w1 · m + b1) + b2) (squeeze-and-excitation, Hu et al. 2018), or, without w2,
  gate_act(convolution of m over the channels by w1, odd, zeros beside them) (ECA, Wang et al. 2020); m is mean_hw x;
- pixel: sigmoid(sw · [max_c x; mean_c x] + sb) (CSA, eq. 2), or, when ``linear``, sigmoid(sw · x + sb)
  (Roy et al. 2018). A maximum's gradient goes to the first of the largest channels.

``pool`` takes the 2×2 maximum of the result, stride 2, in the same pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.backends.reference import elementwise
from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference._linked import link_gradients, normalised
from fastfer.signatures.gate import (
    ChannelSide,
    Gate,
    GateBackward,
    GateGradients,
    GateLinked,
    GateLinkedBackward,
    GateLinkedGradients,
    GateTrained,
    PixelSide,
)


def _channel_logits(means: Tensor, side: ChannelSide) -> tuple[Tensor, Tensor]:
    """Logits of the channel gates (N, C), and the hidden units before their activation (without w2: empty)."""
    if side.w2 is None:
        return F.conv1d(means[:, None], side.w1, padding=side.units // 2)[:, 0], means.new_empty(0)
    hidden = F.linear(means, side.w1.flatten(1), side.b1)
    return F.linear(elementwise.apply(hidden, side.act), side.w2.flatten(1), side.b2), hidden


def _channel_gates(means: Tensor, side: ChannelSide) -> Tensor:
    return elementwise.apply(_channel_logits(means, side)[0], side.gate_act)[:, :, None, None]


def _pixels(x: Tensor, side: PixelSide) -> Tensor:
    """Of each pixel the maximum, the mean and the maximum's channel (N, 3, H, W), or the logit (N, 1, H, W)."""
    if side.linear:
        return F.conv2d(x, side.sw, side.sb)
    largest = x.max(1, keepdim=True)
    return torch.cat([largest.values, x.mean(1, keepdim=True), largest.indices.to(x.dtype)], 1)


def _pixel_gates(pixels: Tensor, side: PixelSide) -> Tensor:
    return (pixels if side.linear else F.conv2d(pixels[:, :2], side.sw, side.sb)).sigmoid()


def gate_train(a: Gate) -> GateTrained:
    """Output, the images' means, the pixels' values."""
    x, (side, pixel, pool) = a.x, a.gates
    gates, means, pixels = x.new_zeros(()), x.new_empty(0), x.new_empty(0)
    if side is not None:
        means = x.mean((2, 3))
        gates = gates + _channel_gates(means, side)
    if pixel is not None:
        pixels = _pixels(x, pixel).contiguous()
        gates = gates + _pixel_gates(pixels, pixel)
    y = x * gates
    return GateTrained(nhwc(F.max_pool2d(y, 2) if pool else y), means, pixels)


def gate(a: Gate) -> Tensor:
    """Output."""
    return gate_train(a).out


def _channel_backward(dg: Tensor, means: Tensor, side: ChannelSide) -> tuple[Tensor, ...]:
    """Gradients of the means, w1, b1, w2, b2 from that of the gates (N, C)."""
    logits, hidden = _channel_logits(means, side)
    dl = elementwise.backward(dg, logits, side.gate_act)
    nothing = dg.new_empty(0)
    if side.w2 is None:
        dm, dw, _ = torch.ops.aten.convolution_backward(
            dl[:, None], means[:, None], side.w1, None, [1], [side.units // 2], [1], False, [0], 1, [True, True, False]
        )
        return dm[:, 0], dw, nothing, nothing, nothing
    dh = elementwise.backward(dl @ side.w2.flatten(1), hidden, side.act)
    return (
        dh @ side.w1.flatten(1),
        (dh.t() @ means).view(side.w1.shape),
        dh.sum(0),
        (dl.t() @ elementwise.apply(hidden, side.act)).view(side.w2.shape),
        dl.sum(0),
    )


def gate_backward(a: GateBackward) -> GateGradients:
    """Gradients of x, of the channel gate and of the pixel gate."""
    x, dout, (side, pixel, pool), needs = a.x, a.d_out, a.gates, a.needs
    gates, s, nothing = x.new_zeros(()), x.new_empty(0), x.new_empty(0)
    if side is not None:
        gates = gates + _channel_gates(a.means, side)
    if pixel is not None:
        s = _pixel_gates(a.pixels, pixel)
        gates = gates + s
    if pool:
        _, where = F.max_pool2d((x * gates).contiguous(), 2, return_indices=True)
        dout = torch.zeros_like(x).contiguous().flatten(2).scatter_(2, where.flatten(2), dout.flatten(2)).view_as(x)
    dx, product = dout * gates, dout * x
    of_channel: tuple[Tensor, ...] = (nothing,) * 4
    of_pixel = nothing, nothing
    if side is not None:
        dm, *grads = _channel_backward(product.sum((2, 3)), a.means, side)
        dx = dx + dm[:, :, None, None] / max(x.shape[2] * x.shape[3], 1)
        of_channel = tuple(grads) if needs.channel else of_channel
    if pixel is not None:
        dl = product.sum(1, keepdim=True) * s * (1 - s)
        source = x if pixel.linear else a.pixels[:, :2]
        if needs.pixel:
            of_pixel = (dl * source).sum((0, 2, 3)).view(pixel.sw.shape), dl.sum().view(1)
        if pixel.linear:
            dx = dx + dl * pixel.sw
        else:
            dx = dx + dl * pixel.sw[:, 1:] / x.shape[1]
            dx = dx.scatter_add(1, a.pixels[:, 2:].long(), dl * pixel.sw[:, :1])
    made = (nhwc(dx) if needs.x else nothing, *of_channel, *of_pixel)
    return GateGradients(*(grad if grad.numel() else x.new_empty(grad.shape) for grad in made))


def gate_linked(a: GateLinked) -> GateTrained:
    """As `gate_train` of the normalised x."""
    return gate_train(Gate(normalised(a.x, a.link), a.gates))


def gate_linked_backward(a: GateLinkedBackward) -> GateLinkedGradients:
    """Gradients as `gate_backward`, and of the link's tensors."""
    z, needs = normalised(a.x, a.link), a.needs._replace(x=True)
    grads = gate_backward(GateBackward(a.d_out, z, a.means, a.pixels, a.gates, needs))
    of_input = link_gradients(grads.d_x, a.x, a.link)
    return GateLinkedGradients(
        *grads._replace(d_x=of_input.x),
        d_link_stats=of_input.stats,
        d_link_weight=of_input.weight,
        d_link_bias=of_input.bias,
    )
