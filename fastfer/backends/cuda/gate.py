# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels on CUDA tensors, NHWC; the functions and kept tensors of `backends.reference.gate`.

Forward reads x for all gates, a block an image, and again to multiply; backward goes over (dout, x) an image at a time.
What is kept is in the compute dtype.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, lanes, nhwc, type_name
from fastfer.backends.cuda.separable_conv import PLAIN, product_backward
from fastfer.backends.reference import _linked
from fastfer.signatures.separable_conv import ConvNeeds

THREADS, IMAGE_THREADS = 256, 512


def _sizes(x: Tensor, w1: Tensor | None, w2: Tensor | None) -> tuple[int, int, int, int]:
    """Images, pixels, channels, and hidden units or taps."""
    hidden = 0 if w1 is None else w1.shape[2] if w2 is None else w1.shape[0]
    return x.shape[0], x.shape[2] * x.shape[3], x.shape[1], hidden


def _pointers(*optional: Tensor | None) -> tuple[Tensor | int, ...]:
    return tuple(0 if t is None else t for t in optional)


def gate_train(
    launch: Launch, x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None,
    act: int, gate_act: int, sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, the images' means (N, C), the pixels' values (N, 3 or 1, H, W); the last two empty where not used."""
    x = nhwc(x)
    dtype, (n, c, h, w) = compute_dtype(x), x.shape
    means, gates, pixels, spatial = (
        torch.empty(size, dtype=dtype, device=x.device)
        for size in (
            (n, c) if w1 is not None else 0,
            (2, n, c) if w1 is not None else 0,
            (n, 1 if linear else 3, h, w) if sw is not None else 0,
            (n, h, w) if sw is not None else 0,
        )
    )
    kept = [0 if t is None else kept for t, kept in ((w1, means), (w1, gates), (sw, pixels), (sw, spatial))]
    name = f"gate_values<{type_name('gate', x)}, {IMAGE_THREADS}>"
    arguments = (*_pointers(w1, b1, w2, b2, sw, sb), *kept, *_sizes(x, w1, w2), act, gate_act, int(linear))
    launch(name, x, (n, 1, 1), IMAGE_THREADS, x, *arguments)
    out = empty_nhwc(x, c, h // 2, w // 2) if pool else torch.empty_like(x)
    vec = lanes(x, out)
    vec = 1 if c % vec else vec
    name, count = f"gate_apply<{type_name('gate', x)}, {vec}, {THREADS}>", out.numel() // vec
    launch.strided(name, x, count, THREADS, x, kept[1], kept[3], out, count, h, w, c, int(pool))
    return out, means, pixels


def gate(launch: Launch, *args: object) -> Tensor:
    """Output."""
    return gate_train(launch, *args)[0]  # type: ignore[arg-type]


def gate_backward(
    launch: Launch, dout: Tensor, x: Tensor, means: Tensor, pixels: Tensor,
    w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int, gate_act: int,
    sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2; sw, sb. Those not asked for (x, channel, pixel side) or not there are empty."""
    dout, x = nhwc(dout), nhwc(x)
    sizes, (h, w) = _sizes(x, w1, w2), x.shape[2:]
    n, _, c, hidden = sizes
    dx = torch.empty_like(x) if mask[0] else x.new_empty(0)
    dz, dh, sums, dl, d_pixel, gates, spatial = (
        torch.empty(size, dtype=compute_dtype(x), device=x.device)
        for size in ((n, c), (n, hidden), (n, hidden), (n, h, w), (n, 1, 3), (3, n, c), (n, h, w))
    )
    values = pixels if sw is not None else 0
    parameters = _pointers(w1, b1, w2, b2, sw, sb)
    name = f"gate_bwd<{type_name('gate', x)}, {IMAGE_THREADS}>"
    targets = (dx if mask[0] else 0, dz, dh, sums, dl, d_pixel, gates, spatial)
    flags = (act, gate_act, int(linear), int(pool))
    launch(name, x, (n, 1, 1), IMAGE_THREADS, dout, x, means, values, *parameters, *targets, n, h, w, c, hidden, *flags)
    channel = tuple(x.new_empty(0) for _ in range(4))
    if w1 is not None and mask[1]:
        channel = _channel_gradients(launch, dz, dh, sums, means, w1, w2)
    if sw is None or not mask[2]:
        return dx, *channel, x.new_empty(0), x.new_empty(0)
    totals = norm.total(launch, d_pixel)[0]
    d_weight, d_bias = totals[:2], totals[2:]
    if linear:
        partial = torch.empty((n, 1, c), dtype=compute_dtype(x), device=x.device)
        name = f"gate_linear_weight<{type_name('gate', x)}, {IMAGE_THREADS}>"
        launch(name, x, (n, 1, 1), IMAGE_THREADS, x, dl, partial, h * w, c)
        d_weight = norm.total(launch, partial)
    return dx, *channel, d_weight.reshape(sw.shape).clone(), d_bias.clone()


def _channel_gradients(
    launch: Launch, dz: Tensor, dh: Tensor, sums: Tensor, means: Tensor, w1: Tensor, w2: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of w1, b1, w2, b2 by what `gate_bwd` left for each image."""
    if w2 is None:
        return norm.total(launch, dh[:, None]).view(w1.shape), *(dz.new_empty(0) for _ in range(3))
    _, d_w1, d_b1 = product_backward(launch, dh, means, PLAIN, w1, ConvNeeds(False, True, True))
    _, d_w2, d_b2 = product_backward(launch, dz, sums, PLAIN, w2, ConvNeeds(False, True, True))
    return d_w1, d_b1, d_w2, d_b2


def gate_linked(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """As `fastfer.backends.reference._linked` composes it of these kernels."""
    return _linked.gate_linked(partial(gate_train, launch), *args)


def gate_linked_backward(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """As `fastfer.backends.reference._linked` composes it of these kernels."""
    return _linked.gate_linked_backward(partial(gate_backward, launch), *args)
