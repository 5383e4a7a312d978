# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on Numba: ``_gate_passes`` over images, the hidden layer is of ``separable_conv``.

What lies between an image's means and its gates is of (N, C), and goes through the products of a pointwise convolution
as images of one pixel; sums that torch would split between its threads are left to numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.backends import composed
from fastfer.backends.numba import _gate_passes
from fastfer.backends.numba._numba import image, nhwc
from fastfer.backends.numba._steps import distinct, merged
from fastfer.backends.numba.elementwise import activation, activation_backward
from fastfer.backends.numba.separable_conv import pointwise, pointwise_backward
from fastfer.signatures.elementwise import Activation, ActivationBackward
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

_SIGMOID = ACTIVATIONS.index("sigmoid")


def _conv_logits(means: Tensor, weight: Tensor) -> Tensor:
    """Convolution over the channels of means (N, C), zeros beside them."""
    taps, channels = weight.shape[2], means.shape[1]
    padded = torch.nn.functional.pad(means, (taps // 2, taps // 2))
    logits = padded[:, :channels] * weight[0, 0, 0]
    for k in range(1, taps):
        logits = logits + padded[:, k : k + channels] * weight[0, 0, k]
    return logits


def _one_pixel(t: Tensor) -> Tensor:
    """(A, B), or already (A, B, 1, 1)."""
    return t.reshape(*t.shape[:2], 1, 1)


def _channel_logits(means: Tensor, side: ChannelSide) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and hidden units (N, M, 1, 1) before their activation (without w2: empty)."""
    if side.w2 is None:
        return _conv_logits(means, side.w1), means.new_empty(0)
    hidden = pointwise(_one_pixel(means), _one_pixel(side.w1), side.b1).y
    return pointwise(hidden, _one_pixel(side.w2), side.b2, act=side.act).y.flatten(1), hidden


def _channel_gates(means: Tensor, side: ChannelSide) -> Tensor:
    """Channel gates (N, C)."""
    return activation(Activation(_channel_logits(means, side)[0], side.gate_act))


def _pixel_gates(pixels: Tensor, side: PixelSide) -> Tensor:
    """Pixel gates (N, H, W)."""
    if side.linear:
        return activation(Activation(pixels[:, 0].contiguous(), _SIGMOID))
    logits = pixels[:, 0] * side.sw[0, 0, 0, 0] + pixels[:, 1] * side.sw[0, 1, 0, 0] + side.sb
    return activation(Activation(logits, _SIGMOID))


def _plane(x: Tensor) -> tuple[int, int]:
    return x.shape[2] * x.shape[3], x.shape[1]


def gate_train(a: Gate) -> GateTrained:
    """Output, the images' means, the pixels' values."""
    x, (side, pixel, pool) = nhwc(a.x), a.gates
    n, c, h, w = x.shape
    out = image(x, c, h // 2, w // 2) if pool else image(x, c, h, w)
    means = x.new_zeros(0 if side is None else (n, c))
    pixels = x.new_empty(0 if pixel is None else (n, 1 if pixel.linear else 3, h, w))
    if n == 0:
        return GateTrained(out, means, pixels)
    if pixel is None:
        _gate_passes.channel_sums(x.dtype, n, x.numel(), means, x, None, *_plane(x))
    else:
        weights = pixel.sw.contiguous() if pixel.linear else None
        _gate_passes.measure(x.dtype, n, 4 * x.numel(), means, pixels, x, weights, *_plane(x))
    channel, gates = x.new_zeros((n, c)), None
    if side is not None:
        means /= h * w
        channel = _channel_gates(means, side)
    if pixel is not None:
        if pixel.linear:
            pixels += pixel.sb
        gates = _pixel_gates(pixels, pixel)
    if pool:
        _gate_passes.multiply_pool(x.dtype, n, 2 * x.numel(), out, x, channel, gates, h, w, c)
    else:
        _gate_passes.multiply(x.dtype, n, 2 * x.numel(), out, x, channel, gates, *_plane(x))
    return GateTrained(out, means, pixels)


def gate(a: Gate) -> Tensor:
    """Output."""
    return gate_train(a).out


def _sum(*factors: Tensor) -> float:
    """Sum of a product, in float64 and one order."""
    product = factors[0].double().numpy()
    for factor in factors[1:]:
        product = product * factor.double().numpy()
    return float(np.sum(product))


class _ChannelGradients(NamedTuple):
    """Gradients of the means and of the channel gate's parameters."""

    means: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor


def _channel_backward(dg: Tensor, means: Tensor, side: ChannelSide, need_params: bool) -> _ChannelGradients:
    """From the gradient of the gates (N, C)."""
    logits, hidden = _channel_logits(means, side)
    dl, nothing = activation_backward(ActivationBackward(dg, logits, side.gate_act)), dg.new_empty(0)
    if side.w2 is None:
        taps, channels = side.units, means.shape[1]
        padded = torch.nn.functional.pad(means, (taps // 2, taps // 2))
        dw = [_sum(dl, padded[:, k : k + channels]) for k in range(taps)] if need_params else []
        d_w1 = dl.new_tensor(dw).view(1, 1, -1) if need_params else nothing
        return _ChannelGradients(_conv_logits(dl, side.w1.flip(2)), d_w1, nothing, nothing, nothing)
    second = pointwise_backward(
        _one_pixel(dl), hidden, _one_pixel(side.w2), need_input=True, need_params=need_params, act1=side.act
    )
    first = pointwise_backward(
        second.d_y1, _one_pixel(means), _one_pixel(side.w1), need_input=True, need_params=need_params
    )
    d_w1 = first.d_weight.view(side.w1.shape) if need_params else nothing
    d_w2 = second.d_weight.view(side.w2.shape) if need_params else nothing
    return _ChannelGradients(first.d_y1.flatten(1), d_w1, first.d_bias, d_w2, second.d_bias)


def gate_backward(a: GateBackward) -> GateGradients:
    """Gradients of x, of the channel gate and of the pixel gate."""
    needs, (side, pixel, pool), means, pixels = a.needs, a.gates, a.means, a.pixels
    dout, x, nothing = nhwc(a.d_out), nhwc(a.x), a.x.new_empty(0)
    (n, c, h, w), plane, work = x.shape, _plane(x), 4 * x.numel()
    share = x.new_zeros((n, c))
    channel = share if side is None else _channel_gates(means, side)
    gates = None if pixel is None else _pixel_gates(pixels, pixel)
    if pool:
        unpooled = image(x, c, h, w).zero_() if h % 2 or w % 2 else image(x, c, h, w)
        if n:
            _gate_passes.unpool(x.dtype, n, work, unpooled, dout, x, channel, gates, h, w, c)
        dout = unpooled
    of_channel = _ChannelGradients(nothing, nothing, nothing, nothing, nothing)
    if side is not None:
        dg = x.new_zeros((n, c))
        if n:
            _gate_passes.channel_sums(x.dtype, n, work, dg, x, dout, *plane)
        of_channel = _channel_backward(dg, means, side, needs.channel)
        share = of_channel.means / (h * w)
    each = largest = weights = None
    d_sw = d_sb = nothing
    if pixel is not None and gates is not None:
        d = x.new_zeros((n, h, w))
        if n:
            _gate_passes.pixel_sums(x.dtype, n, work, d, x, dout, *plane)
        d = d * gates * (1 - gates)
        each, weights = d, pixel.sw.contiguous()
        if not pixel.linear:
            largest, each, weights = d * pixel.sw[0, 0, 0, 0], d * (pixel.sw[0, 1, 0, 0] / c), None
        if needs.pixel:
            d_sw, d_sb = _pixel_parameters(x, d, pixels, pixel), d.new_tensor([_sum(d)])
    dx = image(x, c, h, w) if needs.x else nothing
    if needs.x and n:
        places = pixels if largest is not None else None
        _gate_passes.spread(x.dtype, n, work, dx, dout, channel, share, gates, each, weights, largest, places, *plane)
    of_params = of_channel.w1, of_channel.b1, of_channel.w2, of_channel.b2, d_sw, d_sb
    return GateGradients(*distinct(dx, *of_params))


def _pixel_parameters(x: Tensor, d: Tensor, pixels: Tensor, side: PixelSide) -> Tensor:
    """Gradient of sw from that of the logits, d (N, H, W)."""
    if not side.linear:
        return d.new_tensor([_sum(d, pixels[:, 0]), _sum(d, pixels[:, 1])]).view(side.sw.shape)
    if x.shape[0] == 0:
        return torch.zeros_like(side.sw)
    parts = x.new_empty((x.shape[0], x.shape[1]))
    _gate_passes.weighted_sums(x.dtype, x.shape[0], x.numel(), parts, x, d, *_plane(x))
    return merged(parts, x.shape[1]).view(side.sw.shape)


def gate_linked(a: GateLinked) -> GateTrained:
    """As `fastfer.backends.composed` composes it of these functions."""
    return composed.gate_linked(gate_train, a)


def gate_linked_backward(a: GateLinkedBackward) -> GateLinkedGradients:
    """As `fastfer.backends.composed` composes it of these functions."""
    return composed.gate_linked_backward(gate_backward, a)
