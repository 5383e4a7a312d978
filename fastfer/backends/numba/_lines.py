# SPDX-License-Identifier: Apache-2.0
"""The passes over memory of ``coordinate``: rows and columns of NHWC images pooled and gated, and the way back.

Values of rows and columns are flat, (N, H, C) and (N, W, C); an absent array has no elements. Chunk ``i`` takes image
``i``. Vectorised over channels: a row's values stay in registers along it, the columns' in memory.
"""

from __future__ import annotations

from typing import Any

from fastfer.backends.numba._numba import Pointer, arguments, inline, kernel
from fastfer.backends.numba._simd import Register, add, div, fill, fma, lanes, load, mul, store, sub, where_le, where_lt
from fastfer.backends.numba._span import Span

INFINITY = float("inf")


@inline
def _larger(most: Register, at: Register, v: Register, place: Register) -> Any:
    """The larger of ``most`` and ``v``, the first among equals, and its place; a NaN wins and stays."""
    at, most = where_lt(most, v, place, at), where_lt(most, v, v, most)
    return where_le(v, v, most, v), where_le(v, v, at, place)


@inline
def _equal(a: Register, b: Register, x: Register) -> Register:
    """x where a is b, else 0."""
    zero = fill(x, 0.0)
    return where_le(a, b, where_le(b, a, x, zero), zero)


@inline
def _pool_at(
    row_mean: Span,
    row_max: Span,
    row_at: Span,
    col_mean: Span,
    col_max: Span,
    col_at: Span,
    x: Span,
    image: int,
    i: int,
    height: int,
    width: int,
    channels: int,
    c: int,
    n: int,
) -> None:
    total, most, at = fill(x, 0.0), fill(x, -INFINITY), fill(x, 0.0)
    xo, line, col = ((image * height + i) * width) * channels + c, fill(x, i), image * width * channels + c
    for j in range(width):
        v = load(x, xo + j * channels, n)
        to = col + j * channels
        if row_mean.size:
            total = add(total, v)
            store(col_mean, to, add(load(col_mean, to, n), v) if i else v, n)
        if row_max.size:
            most, at = _larger(most, at, v, fill(x, j))
            if i:
                below, where = _larger(load(col_max, to, n), load(col_at, to, n), v, line)
                store(col_max, to, below, n)
                store(col_at, to, where, n)
            else:
                store(col_max, to, v, n)
                store(col_at, to, line, n)
    row = (image * height + i) * channels + c
    if row_mean.size:
        store(row_mean, row, div(total, fill(x, width)), n)
    if row_max.size:
        store(row_max, row, most, n)
        store(row_at, row, at, n)


@kernel
def pool(pointer: Pointer, chunk: int) -> None:
    """Means, or maxima and their places, or all six, of an image's rows and columns."""
    row_mean, row_max, row_at, col_mean, col_max, col_at, x, height, width, channels = arguments(pointer, "FFFFFFFiii")
    body = channels - channels % lanes(x)
    for i in range(height):
        for c in range(0, body, lanes(x)):
            _pool_at(
                row_mean, row_max, row_at, col_mean, col_max, col_at, x, chunk, i, height, width, channels, c, lanes(x)
            )
        if body < channels:
            _pool_at(
                row_mean, row_max, row_at, col_mean, col_max, col_at, x, chunk, i, height, width, channels, body,
                channels - body,
            )  # fmt: skip
    if row_mean.size:
        start, stop = chunk * width * channels, (chunk + 1) * width * channels
        for k in range(start, stop, lanes(x)):
            n = min(lanes(x), stop - k)
            store(col_mean, k, div(load(col_mean, k, n), fill(x, height)), n)


@inline
def _apply_at(
    out: Span,
    x: Span,
    rows: Span,
    cols: Span,
    image: int,
    i: int,
    height: int,
    width: int,
    channels: int,
    c: int,
    n: int,
) -> None:
    gate = load(rows, (image * height + i) * channels + c, n)
    at, col = (image * height + i) * width * channels + c, image * width * channels + c
    for j in range(width):
        k = j * channels
        store(out, at + k, mul(mul(load(x, at + k, n), gate), load(cols, col + k, n)), n)


@kernel
def apply_gates(pointer: Pointer, chunk: int) -> None:
    """out = x · gate of the row · gate of the column."""
    out, x, rows, cols, height, width, channels = arguments(pointer, "FFFFiii")
    body = channels - channels % lanes(x)
    for i in range(height):
        for c in range(0, body, lanes(x)):
            _apply_at(out, x, rows, cols, chunk, i, height, width, channels, c, lanes(x))
        if body < channels:
            _apply_at(out, x, rows, cols, chunk, i, height, width, channels, body, channels - body)


@inline
def _gradients_at(
    d_rows: Span,
    d_cols: Span,
    x: Span,
    dout: Span,
    rows: Span,
    cols: Span,
    image: int,
    i: int,
    height: int,
    width: int,
    channels: int,
    c: int,
    n: int,
) -> None:
    row = (image * height + i) * channels + c
    gate, total, one = load(rows, row, n), fill(x, 0.0), fill(x, 1.0)
    at, col = (image * height + i) * width * channels + c, image * width * channels + c
    for j in range(width):
        k = j * channels
        v = mul(load(x, at + k, n), load(dout, at + k, n))
        total = fma(v, load(cols, col + k, n), total)
        below = mul(v, gate)
        store(d_cols, col + k, add(load(d_cols, col + k, n), below) if i else below, n)
    store(d_rows, row, mul(total, mul(gate, sub(one, gate))), n)


@kernel
def gate_gradients(pointer: Pointer, chunk: int) -> None:
    """Sums of dout · x · the other gate along an image's rows and columns, times the slope of the sigmoid."""
    d_rows, d_cols, x, dout, rows, cols, height, width, channels = arguments(pointer, "FFFFFFiii")
    body = channels - channels % lanes(x)
    for i in range(height):
        for c in range(0, body, lanes(x)):
            _gradients_at(d_rows, d_cols, x, dout, rows, cols, chunk, i, height, width, channels, c, lanes(x))
        if body < channels:
            _gradients_at(d_rows, d_cols, x, dout, rows, cols, chunk, i, height, width, channels, body, channels - body)
    start, stop = chunk * width * channels, (chunk + 1) * width * channels
    for k in range(start, stop, lanes(x)):
        n = min(lanes(x), stop - k)
        gate = load(cols, k, n)
        store(d_cols, k, mul(load(d_cols, k, n), mul(gate, sub(fill(x, 1.0), gate))), n)


@inline
def _spread_at(
    dx: Span,
    dout: Span,
    rows: Span,
    cols: Span,
    row_mean: Span,
    row_max: Span,
    row_at: Span,
    col_mean: Span,
    col_max: Span,
    col_at: Span,
    image: int,
    i: int,
    height: int,
    width: int,
    channels: int,
    c: int,
    n: int,
) -> None:
    row, zero, line = (image * height + i) * channels + c, fill(dx, 0.0), fill(dx, i)
    at, col = (image * height + i) * width * channels + c, image * width * channels + c
    gate = load(rows, row, n) if dout.size else zero
    mean = div(load(row_mean, row, n), fill(dx, width)) if row_mean.size else zero
    most = load(row_max, row, n) if row_max.size else zero
    place = load(row_at, row, n) if row_max.size else zero
    for j in range(width):
        k = j * channels
        d = mul(mul(load(dout, at + k, n), gate), load(cols, col + k, n)) if dout.size else zero
        if row_mean.size:
            d = add(d, add(mean, div(load(col_mean, col + k, n), fill(dx, height))))
        if row_max.size:
            d = add(d, _equal(place, fill(dx, j), most))
            d = add(d, _equal(load(col_at, col + k, n), line, load(col_max, col + k, n)))
        store(dx, at + k, d, n)


@kernel
def spread(pointer: Pointer, chunk: int) -> None:
    """dx = dout · gates + gradients of means over their length + gradients of maxima at their places, where given."""
    (
        dx, dout, rows, cols, row_mean, row_max, row_at, col_mean, col_max, col_at, height, width, channels,
    ) = arguments(pointer, "FFFFFFFFFFiii")  # fmt: skip
    body = channels - channels % lanes(dx)
    for i in range(height):
        for c in range(0, body, lanes(dx)):
            _spread_at(
                dx, dout, rows, cols, row_mean, row_max, row_at, col_mean, col_max, col_at, chunk, i, height, width,
                channels, c, lanes(dx),
            )  # fmt: skip
        if body < channels:
            _spread_at(
                dx, dout, rows, cols, row_mean, row_max, row_at, col_mean, col_max, col_at, chunk, i, height, width,
                channels, body, channels - body,
            )  # fmt: skip
