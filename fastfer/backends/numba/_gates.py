# SPDX-License-Identifier: Apache-2.0
"""Pieces of the CBAM kernels, for one image of ``pixels`` rows of ``channels`` at ``x[xo:]``.

A gate is a vector of channels, a plane one value a pixel. Reductions over channels are made pixel by pixel.
"""

from __future__ import annotations

from fastfer.backends.numba._numba import inline, piece
from fastfer.backends.numba._simd import (
    Register,
    add,
    add_to,
    compact,
    fill,
    fma,
    lane_numbers,
    lanes,
    largest,
    load,
    mul,
    smallest,
    splat,
    store,
    sub,
    total,
    where_eq,
    where_lt,
)
from fastfer.backends.numba._span import Span, get, put
from fastfer.backends.numba.elementwise import apply

_SIGMOID = 6
_INFINITY = float("inf")


@inline
def _product(x: Span, xo: int, gate: Span, c: int, n: int) -> Register:
    return mul(load(x, xo + c, n), load(gate, c, n)) if gate.size else load(x, xo + c, n)


@piece
def _first_nan(x: Span, xo: int, gate: Span, channels: int) -> int:
    """The first channel of a pixel whose product is NaN; -1 for none."""
    for c in range(channels):
        v = get(x, xo + c) * get(gate, c) if gate.size else get(x, xo + c)
        if v != v:
            return c
    return -1


@piece
def channel_maxima(
    most: Span,
    mo: int,
    mean: Span,
    ao: int,
    channel: Span,
    co: int,
    x: Span,
    xo: int,
    gate: Span,
    pixels: int,
    channels: int,
) -> None:
    """Planes of the maximum and the mean of x · gate over channels, and the channel of the maximum."""
    compact()
    for p in range(pixels):
        at = xo + p * channels
        summed, best, best_at = fill(x, 0.0), fill(x, -_INFINITY), fill(x, 0.0)
        for c in range(0, channels, lanes(x)):
            n = min(lanes(x), channels - c)
            v, number = _product(x, at, gate, c, n), add(lane_numbers(x), fill(x, c))
            summed = add(summed, v)
            v = where_lt(number, fill(x, channels), v, fill(x, -_INFINITY))
            best, best_at = where_lt(best, v, v, best), where_lt(best, v, number, best_at)
        value, mean_value = largest(best), total(summed)
        found = int(smallest(where_eq(best, fill(x, value), best_at, fill(x, channels))))
        if mean_value != mean_value:
            nan = _first_nan(x, at, gate, channels)
            if nan >= 0:
                found, value = nan, mean_value
        put(most, mo + p, value)
        put(mean, ao + p, mean_value / channels)
        if channel.size:
            put(channel, co + p, found if value > -_INFINITY or value != value else 0)


@piece
def scale_pixels(out: Span, x: Span, xo: int, gate: Span, plane: Span, pixels: int, channels: int) -> None:
    """out = x · gate · plane, where they are."""
    compact()
    for p in range(pixels):
        at = xo + p * channels
        s = splat(plane, p) if plane.size else fill(x, 1.0)
        for c in range(0, channels, lanes(x)):
            n = min(lanes(x), channels - c)
            store(out, at + c, mul(_product(x, at, gate, c, n), s), n)


@piece
def channel_dots(plane: Span, po: int, dout: Span, x: Span, xo: int, gate: Span, pixels: int, channels: int) -> None:
    """plane = sum over channels of dout · x · gate."""
    compact()
    for p in range(pixels):
        at, result = xo + p * channels, fill(x, 0.0)
        for c in range(0, channels, lanes(x)):
            n = min(lanes(x), channels - c)
            result = fma(load(dout, at + c, n), _product(x, at, gate, c, n), result)
        put(plane, po + p, total(result))


@inline
def _du(
    dout: Span, at: int, plane: Span, po: int, dmean: Span, dmost: Span, channel: Span, co: int, p: int, c: int, n: int
) -> Register:
    """Gradient of x · gate: dout · plane + dmean, and dmost in addition at the pixel's largest channel."""
    v = load(dout, at + c, n)
    if plane.size:
        number = add(lane_numbers(dout), fill(dout, c))
        v = fma(v, splat(plane, po + p), splat(dmean, p))
        v = add(v, where_eq(number, fill(dout, get(channel, co + p)), splat(dmost, p), fill(dout, 0.0)))
    return v


@piece
def gate_sums(
    sums: Span,
    dout: Span,
    x: Span,
    xo: int,
    plane: Span,
    po: int,
    dmean: Span,
    dmost: Span,
    channel: Span,
    co: int,
    pixels: int,
    channels: int,
) -> None:
    """sums = sum over pixels of du · x, du as `_du`."""
    compact()
    for c in range(0, channels, lanes(x)):
        n, result = min(lanes(x), channels - c), fill(x, 0.0)
        for first in range(0, pixels, 256):  # blocks: the rounding of a long sum grows with its length
            part = fill(x, 0.0)
            for p in range(first, min(pixels, first + 256)):
                at = xo + p * channels
                part = fma(_du(dout, at, plane, po, dmean, dmost, channel, co, p, c, n), load(x, at + c, n), part)
            result = add(result, part)
        store(sums, c, result, n)


@piece
def pixel_grads(
    dx: Span,
    dout: Span,
    xo: int,
    gate: Span,
    share: Span,
    plane: Span,
    po: int,
    dmean: Span,
    dmost: Span,
    channel: Span,
    co: int,
    pixels: int,
    channels: int,
) -> None:
    """dx = du · gate + share, du as `_du`; without gate du."""
    compact()
    for p in range(pixels):
        at = xo + p * channels
        for c in range(0, channels, lanes(dx)):
            n = min(lanes(dx), channels - c)
            v = _du(dout, at, plane, po, dmean, dmost, channel, co, p, c, n)
            if gate.size:
                v = fma(v, load(gate, c, n), load(share, c, n))
            store(dx, at + c, v, n)


@piece
def mlp_hidden(hidden: Span, avg: Span, most: Span, vo: int, w1: Span, b1: Span, channels: int) -> None:
    """hidden (2, H) = w1 · v + b1 for the vectors avg and most at ``vo``."""
    compact()
    units = b1.size
    for j in range(units):
        a, m = fill(w1, 0.0), fill(w1, 0.0)
        for c in range(0, channels, lanes(w1)):
            n = min(lanes(w1), channels - c)
            w = load(w1, j * channels + c, n)
            a, m = fma(w, load(avg, vo + c, n), a), fma(w, load(most, vo + c, n), m)
        put(hidden, j, total(a) + get(b1, j))
        put(hidden, units + j, total(m) + get(b1, j))


@piece
def mlp_gate(gate: Span, vo: int, hidden: Span, w2: Span, b2: Span) -> None:
    """gate at ``vo`` = sigmoid(w2 · (relu(hidden[0]) + relu(hidden[1])) + 2 · b2); w2 (H, C)."""
    compact()
    units, channels = hidden.size // 2, b2.size
    for c in range(0, channels, lanes(w2)):
        n = min(lanes(w2), channels - c)
        z = add(load(b2, c, n), load(b2, c, n))
        for j in range(units):
            h = add(apply(splat(hidden, j), 1), apply(splat(hidden, units + j), 1))
            z = fma(load(w2, j * channels + c, n), h, z)
        store(gate, vo + c, apply(z, _SIGMOID), n)


@piece
def mlp_backward(
    davg: Span,
    dmost: Span,
    dz: Span,
    grads: Span,
    go: int,
    hidden: Span,
    gate: Span,
    avg: Span,
    most: Span,
    vo: int,
    w1: Span,
    w2: Span,
    units: int,
    channels: int,
) -> None:
    """From dz, the gradient of the gate, to those of avg and most; dz is passed through the sigmoid in place.

    Adds to ``grads[go:]``, where it is there, float64: w1 (H, C), w2 (H, C), b1 (H,), b2 (C,).
    """
    compact()
    size = units * channels
    for c in range(0, channels, lanes(dz)):
        n = min(lanes(dz), channels - c)
        g = load(gate, vo + c, n)
        v = mul(load(dz, c, n), mul(g, sub(fill(dz, 1.0), g)))
        store(dz, c, v, n)
        store(davg, c, fill(dz, 0.0), n)
        store(dmost, c, fill(dz, 0.0), n)
        if grads.size:
            add_to(grads, go + 2 * size + units + c, add(v, v), n)
    for j in range(units):
        result = fill(dz, 0.0)
        for c in range(0, channels, lanes(dz)):
            n = min(lanes(dz), channels - c)
            result = fma(load(dz, c, n), load(w2, j * channels + c, n), result)
        dh, a, m = total(result), get(hidden, j), get(hidden, units + j)
        da, dm = fill(dz, 0.0 if a <= 0.0 else dh), fill(dz, 0.0 if m <= 0.0 else dh)
        h = add(apply(fill(dz, a), 1), apply(fill(dz, m), 1))
        for c in range(0, channels, lanes(dz)):
            n = min(lanes(dz), channels - c)
            w = load(w1, j * channels + c, n)
            store(davg, c, fma(w, da, load(davg, c, n)), n)
            store(dmost, c, fma(w, dm, load(dmost, c, n)), n)
            if grads.size:
                add_to(grads, go + j * channels + c, fma(load(avg, vo + c, n), da, mul(load(most, vo + c, n), dm)), n)
                add_to(grads, go + size + j * channels + c, mul(load(dz, c, n), h), n)
        if grads.size:
            put(grads, go + 2 * size + j, get(grads, go + 2 * size + j) + largest(add(da, dm)))
