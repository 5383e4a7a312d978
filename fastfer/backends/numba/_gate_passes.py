# SPDX-License-Identifier: Apache-2.0
"""The passes over memory of ``gate``: NHWC images of C channels and ``plane`` pixels, chunk ``i`` takes image ``i``.

Four pixels go together, the next four or those of a 2×2 window, so that what belongs to a channel is loaded once; where
fewer are left, the others take part with no lanes.
"""

from __future__ import annotations

from typing import Any

from fastfer.backends.numba._numba import Pointer, arguments, inline, kernel
from fastfer.backends.numba._simd import (
    Register,
    add,
    add_to,
    div,
    fill,
    fma,
    lanes,
    load,
    mul,
    splat,
    store,
    where_le,
    where_lt,
)
from fastfer.backends.numba._simd import (
    lane_numbers as iota,
)
from fastfer.backends.numba._simd import (
    largest as across_max,
)
from fastfer.backends.numba._simd import (
    smallest as across_min,
)
from fastfer.backends.numba._simd import (
    total as across_add,
)
from fastfer.backends.numba._span import Span, get, put

INFINITY = float("inf")
Registers = Any
"""Annotation of a tuple of registers, one for each of four pixels."""


@inline
def _equal(a: Register, b: Register, x: Register, y: Register) -> Register:
    """x where a is b, else y."""
    return where_le(a, b, where_le(b, a, x, y), y)


@inline
def _largest(v: Register, most: Register, at: Register, c: int, n: int) -> Any:
    v = where_lt(iota(v), fill(v, n), v, fill(v, -INFINITY))
    return where_lt(most, v, v, most), where_lt(most, v, fill(v, c), at)


@inline
def _measure_at(
    means: Span,
    mo: int,
    x: Span,
    xo: int,
    channels: int,
    weights: Span,
    c: int,
    n: int,
    n1: int,
    n2: int,
    n3: int,
    sums: Registers,
    most: Registers,
    at: Registers,
) -> Any:
    v0, v1 = load(x, xo + c, n), load(x, xo + channels + c, n1)
    v2, v3 = load(x, xo + 2 * channels + c, n2), load(x, xo + 3 * channels + c, n3)
    if means.size:
        add_to(means, mo + c, add(add(v0, v1), add(v2, v3)), n)
    if weights.size:
        w = load(weights, c, n)
        sums = fma(v0, w, sums[0]), fma(v1, w, sums[1]), fma(v2, w, sums[2]), fma(v3, w, sums[3])
        return sums, most, at
    sums = add(sums[0], v0), add(sums[1], v1), add(sums[2], v2), add(sums[3], v3)
    m0, a0 = _largest(v0, most[0], at[0], c, n)
    m1, a1 = _largest(v1, most[1], at[1], c, n)
    m2, a2 = _largest(v2, most[2], at[2], c, n)
    m3, a3 = _largest(v3, most[3], at[3], c, n)
    return sums, (m0, m1, m2, m3), (a0, a1, a2, a3)


@inline
def _finish(
    pixels: Span,
    i: int,
    plane: int,
    x: Span,
    xo: int,
    channels: int,
    linear: int,
    total: Register,
    most: Register,
    at: Register,
) -> None:
    """Write a pixel's values from its registers."""
    value = across_add(total)
    if linear:
        put(pixels, i, value)
        return
    largest = across_max(most)
    place = across_min(_equal(most, fill(most, largest), add(at, iota(at)), fill(at, channels)))
    if value != value:  # a NaN, or infinities of both signs
        for c in range(channels):
            v = get(x, xo + c)
            if v != v:
                largest, place = v, across_max(fill(at, c))
                break
    put(pixels, i, largest)
    put(pixels, i + plane, across_max(div(fill(total, value), fill(total, channels))))
    put(pixels, i + 2 * plane, place)


@kernel
def measure(pointer: Pointer, chunk: int) -> None:
    """Sums of channels in ``means`` (N, C), zeros before, and pixels (N, 3, plane): maximum, mean, its place.

    With ``weights`` (C,) pixels (N, 1, plane): their sums weighted. Empty ``means``: no sums.
    """
    means, pixels, x, weights, plane, channels = arguments(pointer, "FFFFii")
    linear = 1 if weights.size else 0
    mo, planes = chunk * channels, 1 if linear else 3
    width, body = lanes(x), channels - channels % lanes(x)
    tail, zero, low = channels - body, fill(x, 0.0), fill(x, -INFINITY)
    for p in range(0, plane, 4):
        xo, left = (chunk * plane + p) * channels, plane - p
        sums, most, at = (zero, zero, zero, zero), (low, low, low, low), (zero, zero, zero, zero)
        if left >= 4:
            for c in range(0, body, width):
                sums, most, at = _measure_at(
                    means, mo, x, xo, channels, weights, c, lanes(x), lanes(x), lanes(x), lanes(x), sums, most, at
                )
        else:
            n1, n2 = width if left > 1 else 0, width if left > 2 else 0
            for c in range(0, body, width):
                sums, most, at = _measure_at(means, mo, x, xo, channels, weights, c, width, n1, n2, 0, sums, most, at)
        if tail:
            n1, n2, n3 = tail if left > 1 else 0, tail if left > 2 else 0, tail if left > 3 else 0
            sums, most, at = _measure_at(means, mo, x, xo, channels, weights, body, tail, n1, n2, n3, sums, most, at)
        i = chunk * planes * plane + p
        _finish(pixels, i, plane, x, xo, channels, linear, sums[0], most[0], at[0])
        if left > 1:
            _finish(pixels, i + 1, plane, x, xo + channels, channels, linear, sums[1], most[1], at[1])
        if left > 2:
            _finish(pixels, i + 2, plane, x, xo + 2 * channels, channels, linear, sums[2], most[2], at[2])
        if left > 3:
            _finish(pixels, i + 3, plane, x, xo + 3 * channels, channels, linear, sums[3], most[3], at[3])


@inline
def _dot_at(out: Span, oo: int, a: Span, b: Span, at: int, pixels: int, channels: int, c: int, n: int) -> None:
    total = fill(a, 0.0)
    for p in range(pixels):
        v, k = fill(a, 1.0), at + p * channels + c
        if b.size:
            v = load(b, k, n)
        total = fma(load(a, k, n), v, total)
    store(out, oo + c, total, n)


@kernel
def channel_sums(pointer: Pointer, chunk: int) -> None:
    """out (N, C) = sums of a · b over the pixels; b empty: of a."""
    out, a, b, plane, channels = arguments(pointer, "FFFii")
    body = channels - channels % lanes(a)
    for c in range(0, body, lanes(a)):
        _dot_at(out, chunk * channels, a, b, chunk * plane * channels, plane, channels, c, lanes(a))
    if body < channels:
        _dot_at(out, chunk * channels, a, b, chunk * plane * channels, plane, channels, body, channels - body)


@inline
def _gate(gates: Span, i: int) -> Register:
    return splat(gates, i) if gates.size else fill(gates, 0.0)


@inline
def _product(x: Span, i: int, channel: Register, pixel: Register, n: int) -> Register:
    return mul(load(x, i, n), add(channel, pixel))


@inline
def _larger(v: Register, most: Register) -> Register:
    most = where_lt(most, v, v, most)
    return where_le(v, v, most, v)


@inline
def _window_at(
    out: Span,
    oo: int,
    x: Span,
    xo: int,
    below: int,
    channels: int,
    channel: Span,
    co: int,
    gates: Registers,
    c: int,
    n: int,
) -> None:
    g, xo = load(channel, co + c, n), xo + c
    most = _product(x, xo, g, gates[0], n)
    most = _larger(_product(x, xo + channels, g, gates[1], n), most)
    most = _larger(_product(x, xo + below, g, gates[2], n), most)
    store(out, oo + c, _larger(_product(x, xo + below + channels, g, gates[3], n), most), n)


@kernel
def multiply(pointer: Pointer, chunk: int) -> None:
    """out = x · (channel gate (N, C) + pixel gate (N, plane) or empty)."""
    out, x, channel, pixel, plane, channels = arguments(pointer, "FFFFii")
    body, co = channels - channels % lanes(x), chunk * channels
    for i in range(chunk * plane, (chunk + 1) * plane):
        s, at = _gate(pixel, i), i * channels
        for c in range(0, body, lanes(x)):
            store(out, at + c, _product(x, at + c, load(channel, co + c, lanes(x)), s, lanes(x)), lanes(x))
        if body < channels:
            n = channels - body
            store(out, at + body, _product(x, at + body, load(channel, co + body, n), s, n), n)


@kernel
def multiply_pool(pointer: Pointer, chunk: int) -> None:
    """The 2×2 maxima, stride 2, of the product of `multiply`; NaN wins."""
    out, x, channel, pixel, height, width, channels = arguments(pointer, "FFFFiii")
    body, below, co = channels - channels % lanes(x), width * channels, chunk * channels
    for i in range(height // 2):
        for j in range(width // 2):
            p = (chunk * height + 2 * i) * width + 2 * j
            oo = ((chunk * (height // 2) + i) * (width // 2) + j) * channels
            s = splat(pixel, p), splat(pixel, p + 1), splat(pixel, p + width), splat(pixel, p + width + 1)
            for c in range(0, body, lanes(x)):
                _window_at(out, oo, x, p * channels, below, channels, channel, co, s, c, lanes(x))
            if body < channels:
                _window_at(out, oo, x, p * channels, below, channels, channel, co, s, body, channels - body)


@inline
def _winner(v: Register, place: float, most: Register, winner: Register) -> Any:
    winner = where_lt(most, v, fill(v, place), winner)
    return _larger(v, most), where_le(v, v, winner, fill(v, place))


@inline
def _unpool_at(
    d: Span,
    dout: Span,
    do: int,
    x: Span,
    xo: int,
    below: int,
    channels: int,
    channel: Span,
    co: int,
    gates: Registers,
    c: int,
    n: int,
) -> None:
    g, at, zero = load(channel, co + c, n), xo + c, fill(x, 0.0)
    most, winner = _product(x, at, g, gates[0], n), zero
    most, winner = _winner(_product(x, at + channels, g, gates[1], n), 1.0, most, winner)
    most, winner = _winner(_product(x, at + below, g, gates[2], n), 2.0, most, winner)
    most, winner = _winner(_product(x, at + below + channels, g, gates[3], n), 3.0, most, winner)
    v = load(dout, do + c, n)
    store(d, at, _equal(winner, zero, v, zero), n)
    store(d, at + channels, _equal(winner, fill(v, 1.0), v, zero), n)
    store(d, at + below, _equal(winner, fill(v, 2.0), v, zero), n)
    store(d, at + below + channels, _equal(winner, fill(v, 3.0), v, zero), n)


@kernel
def unpool(pointer: Pointer, chunk: int) -> None:
    """d, zeros outside the windows, = dout at the first largest product of each, else 0."""
    d, dout, x, channel, pixel, height, width, channels = arguments(pointer, "FFFFFiii")
    body, below, co = channels - channels % lanes(x), width * channels, chunk * channels
    for i in range(height // 2):
        for j in range(width // 2):
            p = (chunk * height + 2 * i) * width + 2 * j
            do = ((chunk * (height // 2) + i) * (width // 2) + j) * channels
            s = splat(pixel, p), splat(pixel, p + 1), splat(pixel, p + width), splat(pixel, p + width + 1)
            for c in range(0, body, lanes(x)):
                _unpool_at(d, dout, do, x, p * channels, below, channels, channel, co, s, c, lanes(x))
            if body < channels:
                _unpool_at(d, dout, do, x, p * channels, below, channels, channel, co, s, body, channels - body)


@kernel
def pixel_sums(pointer: Pointer, chunk: int) -> None:
    """out (N, plane) = sums of a · b over the channels."""
    out, a, b, plane, channels = arguments(pointer, "FFFii")
    body = channels - channels % lanes(a)
    for i in range(chunk * plane, (chunk + 1) * plane):
        total, at = fill(a, 0.0), i * channels
        for c in range(0, body, lanes(a)):
            total = fma(load(a, at + c, lanes(a)), load(b, at + c, lanes(a)), total)
        if body < channels:
            total = fma(load(a, at + body, channels - body), load(b, at + body, channels - body), total)
        put(out, i, across_add(total))


@inline
def _weighted_at(
    out: Span, oo: int, x: Span, xo: int, d: Span, do: int, plane: int, channels: int, c: int, n: int
) -> None:
    total = fill(x, 0.0)
    for p in range(plane):
        total = fma(load(x, xo + p * channels + c, n), splat(d, do + p), total)
    store(out, oo + c, total, n)


@kernel
def weighted_sums(pointer: Pointer, chunk: int) -> None:
    """out (N, C) = sums over the pixels of x · d, d (N, plane)."""
    out, x, d, plane, channels = arguments(pointer, "FFFii")
    body, xo = channels - channels % lanes(x), chunk * plane * channels
    for c in range(0, body, lanes(x)):
        _weighted_at(out, chunk * channels, x, xo, d, chunk * plane, plane, channels, c, lanes(x))
    if body < channels:
        _weighted_at(out, chunk * channels, x, xo, d, chunk * plane, plane, channels, body, channels - body)


@inline
def _spread_at(
    dx: Span,
    dout: Span,
    at: int,
    channel: Span,
    share: Span,
    co: int,
    pixel: Register,
    each: Register,
    weights: Span,
    c: int,
    n: int,
) -> None:
    d = fma(load(dout, at + c, n), add(load(channel, co + c, n), pixel), load(share, co + c, n))
    store(dx, at + c, fma(each, load(weights, c, n), d) if weights.size else add(d, each), n)


@kernel
def spread(pointer: Pointer, chunk: int) -> None:
    """dx = dout · gates + share (N, C) + each (N, plane) · weights (C,) or 1 + ``largest`` (N, plane) at its channel.

    The places are plane 2 of ``pixels``; ``pixel``, ``each`` and ``largest`` may be empty.
    """
    (
        dx, dout, channel, share, pixel, each, weights, largest, pixels, plane, channels,
    ) = arguments(pointer, "FFFFFFFFFii")  # fmt: skip
    body, co = channels - channels % lanes(dx), chunk * channels
    for p in range(plane):
        i = chunk * plane + p
        s, e, at = _gate(pixel, i), _gate(each, i), i * channels
        for c in range(0, body, lanes(dx)):
            _spread_at(dx, dout, at, channel, share, co, s, e, weights, c, lanes(dx))
        if body < channels:
            _spread_at(dx, dout, at, channel, share, co, s, e, weights, body, channels - body)
        if largest.size:
            k = at + int(get(pixels, (3 * chunk + 2) * plane + p))
            put(dx, k, get(dx, k) + get(largest, i))
