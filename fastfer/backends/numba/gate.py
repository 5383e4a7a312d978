# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on Numba: ``_gate_passes`` over images, the hidden layer is of ``separable_conv``.

What lies between an image's means and its gates is of (N, C), and goes through the products of a pointwise convolution
as images of one pixel; sums that torch would split between its threads are left to numpy.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfer.backends.numba import _gate_passes
from fastfer.backends.numba._numba import image, nhwc
from fastfer.backends.numba._steps import distinct, merged
from fastfer.backends.numba.elementwise import activation, activation_backward
from fastfer.backends.numba.separable_conv import _pointwise, _pointwise_backward
from fastfer.backends.reference import _linked
from fastfer.signatures.elementwise import Activation, ActivationBackward

_SIGMOID = 6


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


def _channel_logits(
    means: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and hidden units (N, H, 1, 1) before their activation (without w2: empty)."""
    if w2 is None:
        return _conv_logits(means, w1), means.new_empty(0)
    hidden = _pointwise(_one_pixel(means), _one_pixel(w1), b1, None, 0, False)[0]
    return _pointwise(hidden, _one_pixel(w2), b2, None, act, False)[0].flatten(1), hidden


def _pixel_gates(pixels: Tensor, sw: Tensor, sb: Tensor, linear: bool) -> Tensor:
    """Pixel gates (N, H, W)."""
    if linear:
        return activation(Activation(pixels[:, 0].contiguous(), _SIGMOID))
    return activation(Activation(pixels[:, 0] * sw[0, 0, 0, 0] + pixels[:, 1] * sw[0, 1, 0, 0] + sb, _SIGMOID))


def _plane(x: Tensor) -> tuple[int, int]:
    return x.shape[2] * x.shape[3], x.shape[1]


def gate_train(
    x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int, gate_act: int,
    sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, the images' means (N, C), the pixels' values (N, 3 or 1, H, W); the last two empty where not used."""
    x = nhwc(x)
    n, c, h, w = x.shape
    out = image(x, c, h // 2, w // 2) if pool else image(x, c, h, w)
    means = x.new_zeros((n, c) if w1 is not None else 0)
    pixels = x.new_empty((n, 1 if linear else 3, h, w) if sw is not None else 0)
    if n == 0:
        return out, means, pixels
    if sw is None:
        _gate_passes.channel_sums(x.dtype, n, x.numel(), means, x, None, *_plane(x))
    else:
        weights = sw.contiguous() if linear else None
        _gate_passes.measure(x.dtype, n, 4 * x.numel(), means, pixels, x, weights, *_plane(x))
    channel, gates = x.new_zeros((n, c)), None
    if w1 is not None:
        means /= h * w
        channel = activation(Activation(_channel_logits(means, w1, b1, w2, b2, act)[0], gate_act))
    if sw is not None and sb is not None:
        if linear:
            pixels += sb
        gates = _pixel_gates(pixels, sw, sb, linear)
    if pool:
        _gate_passes.multiply_pool(x.dtype, n, 2 * x.numel(), out, x, channel, gates, h, w, c)
    else:
        _gate_passes.multiply(x.dtype, n, 2 * x.numel(), out, x, channel, gates, *_plane(x))
    return out, means, pixels


def gate(*args: Any) -> Tensor:
    """Output; arguments as the op's."""
    return gate_train(*args)[0]


def _sum(*factors: Tensor) -> float:
    """Sum of a product, in float64 and one order."""
    product = factors[0].double().numpy()
    for factor in factors[1:]:
        product = product * factor.double().numpy()
    return float(np.sum(product))


def _channel_backward(
    dg: Tensor, means: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None,
    act: int, gate_act: int, need: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the means, w1, b1, w2, b2 from that of the gates (N, C)."""
    logits, hidden = _channel_logits(means, w1, b1, w2, b2, act)
    dl, nothing = activation_backward(ActivationBackward(dg, logits, gate_act)), dg.new_empty(0)
    if w2 is None:
        taps, channels = w1.shape[2], means.shape[1]
        padded = torch.nn.functional.pad(means, (taps // 2, taps // 2))
        dw = [_sum(dl, padded[:, k : k + channels]) for k in range(taps)] if need else []
        return _conv_logits(dl, w1.flip(2)), dl.new_tensor(dw).view(1, 1, -1) if need else nothing, *(nothing,) * 3
    dl, inputs = _one_pixel(dl), _one_pixel(means)
    dh, dw2, db2, _ = _pointwise_backward(dl, dl, hidden, _one_pixel(w2), None, None, 0, None, act, True, need)
    dm, dw1, db1, _ = _pointwise_backward(dh, dh, inputs, _one_pixel(w1), None, None, 0, None, 0, True, need)
    if need:
        dw1, dw2 = dw1.view(w1.shape), dw2.view(w2.shape)
    return dm.flatten(1), dw1, db1, dw2, db2


def gate_backward(
    dout: Tensor, x: Tensor, means: Tensor, pixels: Tensor,
    w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int, gate_act: int,
    sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2; sw, sb. Those not asked for (x, channel, pixel side) or not there are empty."""
    need_dx, need_channel, need_pixel = mask
    dout, x, nothing = nhwc(dout), nhwc(x), x.new_empty(0)
    (n, c, h, w), plane, work = x.shape, _plane(x), 4 * x.numel()
    channel = share = x.new_zeros((n, c))
    gates = _pixel_gates(pixels, sw, sb, linear) if sw is not None and sb is not None else None
    channel_grads: tuple[Tensor, ...] = (nothing,) * 4
    pixel_grads: tuple[Tensor, ...] = (nothing,) * 2
    if w1 is not None:
        channel = activation(Activation(_channel_logits(means, w1, b1, w2, b2, act)[0], gate_act))
    if pool:
        unpooled = image(x, c, h, w).zero_() if h % 2 or w % 2 else image(x, c, h, w)
        if n:
            _gate_passes.unpool(x.dtype, n, work, unpooled, dout, x, channel, gates, h, w, c)
        dout = unpooled
    if w1 is not None:
        dg = x.new_zeros((n, c))
        if n:
            _gate_passes.channel_sums(x.dtype, n, work, dg, x, dout, *plane)
        dm, *grads = _channel_backward(dg, means, w1, b1, w2, b2, act, gate_act, need_channel)
        share = dm / (h * w)
        channel_grads = tuple(grads) if need_channel else channel_grads
    each = largest = weights = None
    if sw is not None and gates is not None:
        d = x.new_zeros((n, h, w))
        if n:
            _gate_passes.pixel_sums(x.dtype, n, work, d, x, dout, *plane)
        d = d * gates * (1 - gates)
        each, weights = d, sw.contiguous()
        if not linear:
            largest, each, weights = d * sw[0, 0, 0, 0], d * (sw[0, 1, 0, 0] / c), None
        if need_pixel:
            pixel_grads = _pixel_parameters(x, d, pixels, sw, linear), d.new_tensor([_sum(d)])
    dx = image(x, c, h, w) if need_dx else nothing
    if need_dx and n:
        places = pixels if largest is not None else None
        _gate_passes.spread(x.dtype, n, work, dx, dout, channel, share, gates, each, weights, largest, places, *plane)
    return distinct(dx, *channel_grads, *pixel_grads)


def _pixel_parameters(x: Tensor, d: Tensor, pixels: Tensor, sw: Tensor, linear: bool) -> Tensor:
    """Gradient of sw from that of the logits, d (N, H, W)."""
    if not linear:
        return d.new_tensor([_sum(d, pixels[:, 0]), _sum(d, pixels[:, 1])]).view(sw.shape)
    if x.shape[0] == 0:
        return torch.zeros_like(sw)
    parts = x.new_empty((x.shape[0], x.shape[1]))
    _gate_passes.weighted_sums(x.dtype, x.shape[0], x.numel(), parts, x, d, *_plane(x))
    return merged(parts, x.shape[1]).view(sw.shape)


gate_linked = partial(_linked.gate_linked, gate_train)
gate_linked_backward = partial(_linked.gate_linked_backward, gate_backward)
