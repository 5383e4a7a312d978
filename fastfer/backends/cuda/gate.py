# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on CUDA tensors, NHWC; the functions and kept tensors of `backends.reference.gate`.

Forward reads x for all gates, a block an image, and again to multiply; backward goes over (dout, x) an image at a time.
What is kept is in the compute dtype.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastfer.backends import composed
from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, lanes, nhwc, type_name
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

THREADS, IMAGE_THREADS = 256, 512
_LANES = 32  # csrc/cuda/columns.cuh


def _sizes(x: Tensor, gates: Gates) -> tuple[int, int, int, int]:
    """Images, pixels, channels, and hidden units or taps."""
    units = 0 if gates.channel is None else gates.channel.units
    return x.shape[0], x.shape[2] * x.shape[3], x.shape[1], units


def _parameters(gates: Gates) -> tuple[Tensor | int, ...]:
    """w1, b1, w2, b2, sw, sb, dense; 0 for those that are not there."""
    side, pixel = gates.channel, gates.pixel
    of_channel = (None, None, None, None) if side is None else (side.w1, side.b1, side.w2, side.b2)
    of_pixel = (None, None) if pixel is None else (pixel.sw, pixel.sb)
    return tuple(0 if t is None else t.contiguous() for t in (*of_channel, *of_pixel))


def _codes(gates: Gates) -> tuple[int, int, int]:
    """The two activations, and whether the pixel gate is linear."""
    side, pixel = gates.channel, gates.pixel
    act, gate_act = (0, 0) if side is None else (side.act, side.gate_act)
    return act, gate_act, int(pixel is not None and pixel.linear)


def gate_train(launch: Launch, a: Gate) -> GateTrained:
    """Output, the images' means, the pixels' values."""
    x, gates = nhwc(a.x), a.gates
    dtype, (n, c, h, w) = compute_dtype(x), x.shape
    has_channel, has_pixel = gates.channel is not None, gates.pixel is not None
    means, factors, pixels, spatial = (
        torch.empty(size, dtype=dtype, device=x.device)
        for size in (
            (n, c) if has_channel else 0,
            (2, n, c) if has_channel else 0,
            (n, 1 if gates.pixel is not None and gates.pixel.linear else 3, h, w) if has_pixel else 0,
            (n, h, w) if has_pixel else 0,
        )
    )
    of_channel = (means, factors) if has_channel else (0, 0)
    of_pixel = (pixels, spatial) if has_pixel else (0, 0)
    name = f"gate_values<{type_name('gate', x)}, {IMAGE_THREADS}>"
    arguments = (*_parameters(gates), *of_channel, *of_pixel, *_sizes(x, gates), *_codes(gates))
    launch(name, x, (n, 1, 1), IMAGE_THREADS, x, *arguments)
    out = empty_nhwc(x, c, h // 2, w // 2) if gates.pool else torch.empty_like(x)
    vec = lanes(x, out)
    vec = 1 if c % vec else vec
    name, count = f"gate_apply<{type_name('gate', x)}, {vec}, {THREADS}>", out.numel() // vec
    both = factors if has_channel else 0, spatial if has_pixel else 0
    launch.strided(name, x, count, THREADS, x, *both, out, count, h, w, c, int(gates.pool))
    return GateTrained(out, means, pixels)


def gate(launch: Launch, a: Gate) -> Tensor:
    """Output."""
    return gate_train(launch, a).out


def gate_backward(launch: Launch, a: GateBackward) -> GateGradients:
    """Gradients of x, of the channel gate and of the pixel gate."""
    dout, x, gates, needs = nhwc(a.d_out), nhwc(a.x), a.gates, a.needs
    side, pixel = gates.channel, gates.pixel
    (n, c, h, w), (*_, units) = x.shape, _sizes(x, gates)
    dx = torch.empty_like(x) if needs.x else x.new_empty(0)
    dz, dh, sums, dl, d_pixel, factors, spatial = (
        torch.empty(size, dtype=compute_dtype(x), device=x.device)
        for size in ((n, c), (n, units), (n, units), (n, h, w), (n, 1, 3), (3, n, c), (n, h, w))
    )
    values = a.pixels if pixel is not None else 0
    name = f"gate_bwd<{type_name('gate', x)}, {IMAGE_THREADS}>"
    targets = (dx if needs.x else 0, dz, dh, sums, dl, d_pixel, factors, spatial)
    inputs = (dout, x, a.means, values, *_parameters(gates))
    launch(name, x, (n, 1, 1), IMAGE_THREADS, *inputs, *targets, n, h, w, c, units, *_codes(gates), int(gates.pool))
    nothing = (x.new_empty(0) for _ in range(6))
    of_channel = next(nothing), next(nothing), next(nothing), next(nothing)
    if side is not None and needs.channel:
        of_channel = _channel_gradients(launch, dz, dh, sums, a.means, side)
    of_pixel = next(nothing), next(nothing)
    if pixel is not None and needs.pixel:
        totals = norm.total(launch, d_pixel)
        d_weight, d_bias = totals[:2], totals[2:]
        if pixel.linear:
            parts = torch.empty((n, 1, c), dtype=compute_dtype(x), device=x.device)
            name = f"gate_linear_weight<{type_name('gate', x)}, {IMAGE_THREADS}>"
            launch(name, x, (n, 1, 1), IMAGE_THREADS, x, dl, parts, h * w, c)
            d_weight = norm.total(launch, parts)
        of_pixel = d_weight.reshape(pixel.sw.shape).clone(), d_bias.clone()
    return GateGradients(dx, *of_channel, *of_pixel)


def _channel_gradients(
    launch: Launch, dz: Tensor, dh: Tensor, sums: Tensor, means: Tensor, side: ChannelSide
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w1, b1, w2, b2 by what `gate_bwd` left for each image."""
    if side.w2 is None:
        d_w1 = norm.total(launch, dh).view(side.w1.shape)
        return d_w1, dz.new_empty(0), dz.new_empty(0), dz.new_empty(0)
    d_w1, d_b1, d_w2, d_b2 = layer_gradients(launch, dh, means, dz, sums, 1.0)
    return d_w1.view(side.w1.shape), d_b1, d_w2.view(side.w2.shape), d_b2


def layer_gradients(
    launch: Launch, dh: Tensor, inputs: Tensor, dz: Tensor, sums: Tensor, times: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w1 (hidden, C), b1, w2 (C, hidden), b2 of a gate's two layers, summed over images.

    ``dh`` (rows, hidden) belongs to ``inputs`` (rows, C), ``dz`` (images, C) to the hidden layer ``sums``
    (images, hidden), on which b2 counts ``times``.
    """
    (images, c), hidden = dz.shape, dh.shape[1]
    make = torch.empty if images else torch.zeros
    sizes = ((hidden, c), (hidden,), (c, hidden), (c,))
    made = tuple(make(size, dtype=dz.dtype, device=dz.device) for size in sizes)
    if images:
        name, grid = f"gate_layers_weights<{type_name('gate', dz)}>", (-(-c // _LANES), hidden, 2)
        launch(name, dz, grid, THREADS, dh, inputs, dz, sums, *made, len(dh), images, c, hidden, times)
    return made[0], made[1], made[2], made[3]


def gate_linked(launch: Launch, a: GateLinked) -> GateTrained:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.gate_linked(partial(gate_train, launch), a)


def gate_linked_backward(launch: Launch, a: GateLinkedBackward) -> GateLinkedGradients:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.gate_linked_backward(partial(gate_backward, launch), a)
