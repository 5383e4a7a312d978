# SPDX-License-Identifier: Apache-2.0
"""Rows of a depthwise convolution and of its two gradients, on NHWC arrays and weights (KH, KW, C).

y[i, j, c] = sum_kl x[i·sh + k - top, j·sw + l - left, c] · w[k, l, c], and the input gradient is the same sum over dy
with the kernel walked backwards. `taps` lists, for one axis, where each position's taps lie, so that one row routine
serves both and nothing outside the image is read. Vectorised over channels; 8 or 4 pixels that share their taps at a
time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fastfer.backends.numba._numba import Array, inline, piece
from fastfer.backends.numba._simd import compact, fill, fma, lanes, load, store
from fastfer.backends.numba._span import Span, get


@lru_cache(maxsize=1024)
def taps(length: int, size: int, kernel: int, stride: int, pad: int, transposed: bool) -> Array:
    """Taps of every position of an axis, int64 (length, 3): first tap, number of taps, source position of the first.

    ``length`` is the axis that is written, ``size`` the one that is read: output and input, or the reverse when
    ``transposed``. Taps are in the order of their sources, which step by 1; their place in the kernel steps by 1, or
    by ``-stride`` when transposed.
    """
    table = np.zeros((length, 3), np.int64)
    for p in range(length):
        if transposed:
            q = p + pad
            last = min(kernel - 1, q)
            first = last - (last - q) % stride
            table[p] = (
                first,
                max(0, (first - max(q % stride, q - (size - 1) * stride)) // stride + 1),
                (q - first) // stride,
            )
        else:
            first = max(0, pad - p * stride)
            table[p] = first, max(0, min(kernel, size + pad - p * stride) - first), p * stride - pad + first
    return table


@lru_cache(maxsize=1024)
def tiles(length: int, size: int, kernel: int, stride: int, pad: int, transposed: bool, overlap: bool = True) -> Array:
    """An axis cut into tiles, int64 (tiles, 5): position, pixels (8, 4 or 1), then as `taps` for the first pixel.

    A tile's pixels have the same taps, are 1 apart (``stride`` when transposed) and their sources ``stride`` (1). With
    ``overlap`` the last tile of a run reaches back over pixels that are done, where that saves single ones.
    """
    table = taps(length, size, kernel, stride, pad, transposed)
    step, largest = stride if transposed else 1, 8 if transposed or stride == 1 else 4
    rows: list[tuple[int, ...]] = []
    for phase in range(min(step, length)):
        positions = range(phase, length, step)
        start = 0
        while start < len(positions):
            stop = start + 1
            while stop < len(positions) and (table[positions[stop], :2] == table[positions[start], :2]).all():
                stop += 1
            for offset, pixels in _cut(stop - start, largest, overlap):
                p = positions[start + offset]
                rows.append((p, pixels, *table[p]))
            start = stop
    return np.array(rows, np.int64).reshape(-1, 5)


def _cut(run: int, largest: int, overlap: bool) -> list[tuple[int, int]]:
    """Offsets and sizes of the tiles of a run of pixels."""
    done = run - run % largest
    cut = [(i, largest) for i in range(0, done, largest)]
    if overlap and done and run - done > 4:
        return [*cut, (run - largest, largest)]
    if run - done >= 4:
        cut.append((done, 4))
        done += 4
    if overlap and done and done < run:
        return [*cut, (run - 4, 4)]
    return cut + [(i, 1) for i in range(done, run)]


GROUP = 4
"""Registers of channels that a row is done for at a time: its weights and sources then stay in L1."""

Accumulators = Any
"""Annotation of a tuple of registers, one for each pixel of a tile."""


@inline
def _taps3_eight(x: Span, xp: int, xs: int, w: Span, wp: int, wtap: int, n: int, a: Accumulators) -> Accumulators:
    """Add three taps to eight pixels whose sources adjoin: 10 loads of x serve 24 products."""
    a0, a1, a2, a3, a4, a5, a6, a7 = a
    v0, v1, v2 = load(w, wp, n), load(w, wp + wtap, n), load(w, wp + 2 * wtap, n)
    u0, u1 = load(x, xp, n), load(x, xp + xs, n)
    u2 = load(x, xp + 2 * xs, n)
    a0 = fma(u2, v2, fma(u1, v1, fma(u0, v0, a0)))
    u0 = load(x, xp + 3 * xs, n)
    a1 = fma(u0, v2, fma(u2, v1, fma(u1, v0, a1)))
    u1 = load(x, xp + 4 * xs, n)
    a2 = fma(u1, v2, fma(u0, v1, fma(u2, v0, a2)))
    u2 = load(x, xp + 5 * xs, n)
    a3 = fma(u2, v2, fma(u1, v1, fma(u0, v0, a3)))
    u0 = load(x, xp + 6 * xs, n)
    a4 = fma(u0, v2, fma(u2, v1, fma(u1, v0, a4)))
    u1 = load(x, xp + 7 * xs, n)
    a5 = fma(u1, v2, fma(u0, v1, fma(u2, v0, a5)))
    u2 = load(x, xp + 8 * xs, n)
    a6 = fma(u2, v2, fma(u1, v1, fma(u0, v0, a6)))
    u0 = load(x, xp + 9 * xs, n)
    a7 = fma(u0, v2, fma(u2, v1, fma(u1, v0, a7)))
    return a0, a1, a2, a3, a4, a5, a6, a7


@inline
def _tap_eight(x: Span, xp: int, xs: int, w: Span, wp: int, n: int, a: Accumulators) -> Accumulators:
    """Add a tap to eight pixels."""
    a0, a1, a2, a3, a4, a5, a6, a7 = a
    v = load(w, wp, n)
    return (
        fma(load(x, xp, n), v, a0),
        fma(load(x, xp + xs, n), v, a1),
        fma(load(x, xp + 2 * xs, n), v, a2),
        fma(load(x, xp + 3 * xs, n), v, a3),
        fma(load(x, xp + 4 * xs, n), v, a4),
        fma(load(x, xp + 5 * xs, n), v, a5),
        fma(load(x, xp + 6 * xs, n), v, a6),
        fma(load(x, xp + 7 * xs, n), v, a7),
    )


@inline
def _eight(
    y: Span, yo: int, ys: int, x: Span, xo: int, xs: int, xrow: int, w: Span, wo: int, wrow: int, wtap: int,
    channels: int, rows: int, cols: int, b: Span, c: int, n: int,
) -> None:  # fmt: skip
    """Eight pixels of y."""
    start = load(b, c, n) if b.size else fill(y, 0.0)
    a = (start, start, start, start, start, start, start, start)
    xp, wp = xo + c, wo + c
    if rows == 3 and cols == 3 and xs == channels:
        # Three taps a row and three rows without a loop: half the time of the general case.
        a = _taps3_eight(x, xp, xs, w, wp, wtap, n, a)
        a = _taps3_eight(x, xp + xrow, xs, w, wp + wrow, wtap, n, a)
        a = _taps3_eight(x, xp + 2 * xrow, xs, w, wp + 2 * wrow, wtap, n, a)
    else:
        for _ in range(rows):
            xq, wq, left = xp, wp, cols
            while left > 2 and xs == channels:
                a = _taps3_eight(x, xq, xs, w, wq, wtap, n, a)
                xq, wq, left = xq + 3 * channels, wq + 3 * wtap, left - 3
            while left > 0:
                a = _tap_eight(x, xq, xs, w, wq, n, a)
                xq, wq, left = xq + channels, wq + wtap, left - 1
            xp, wp = xp + xrow, wp + wrow
    yp = yo + c
    store(y, yp, a[0], n)
    store(y, yp + ys, a[1], n)
    store(y, yp + 2 * ys, a[2], n)
    store(y, yp + 3 * ys, a[3], n)
    store(y, yp + 4 * ys, a[4], n)
    store(y, yp + 5 * ys, a[5], n)
    store(y, yp + 6 * ys, a[6], n)
    store(y, yp + 7 * ys, a[7], n)


@inline
def _taps3_four(x: Span, xp: int, xs: int, w: Span, wp: int, wtap: int, n: int, a: Accumulators) -> Accumulators:
    """Add three taps to four pixels whose sources adjoin: 6 loads of x serve 12 products."""
    a0, a1, a2, a3 = a
    v0, v1, v2 = load(w, wp, n), load(w, wp + wtap, n), load(w, wp + 2 * wtap, n)
    u0, u1 = load(x, xp, n), load(x, xp + xs, n)
    u2 = load(x, xp + 2 * xs, n)
    a0 = fma(u2, v2, fma(u1, v1, fma(u0, v0, a0)))
    u0 = load(x, xp + 3 * xs, n)
    a1 = fma(u0, v2, fma(u2, v1, fma(u1, v0, a1)))
    u1 = load(x, xp + 4 * xs, n)
    a2 = fma(u1, v2, fma(u0, v1, fma(u2, v0, a2)))
    u2 = load(x, xp + 5 * xs, n)
    a3 = fma(u2, v2, fma(u1, v1, fma(u0, v0, a3)))
    return a0, a1, a2, a3


@inline
def _tap_four(x: Span, xp: int, xs: int, w: Span, wp: int, n: int, a: Accumulators) -> Accumulators:
    """Add a tap to four pixels."""
    a0, a1, a2, a3 = a
    v = load(w, wp, n)
    return (
        fma(load(x, xp, n), v, a0),
        fma(load(x, xp + xs, n), v, a1),
        fma(load(x, xp + 2 * xs, n), v, a2),
        fma(load(x, xp + 3 * xs, n), v, a3),
    )


@inline
def _taps3_four_apart(
    x: Span, xp: int, channels: int, w: Span, wp: int, wtap: int, n: int, a: Accumulators
) -> Accumulators:
    """Add three taps to four pixels whose sources are 2 apart: 9 loads of x serve 12 products."""
    a0, a1, a2, a3 = a
    v0, v1, v2 = load(w, wp, n), load(w, wp + wtap, n), load(w, wp + 2 * wtap, n)
    u0, u1 = load(x, xp, n), load(x, xp + 2 * channels, n)
    a0 = fma(u1, v2, fma(load(x, xp + channels, n), v1, fma(u0, v0, a0)))
    u0 = load(x, xp + 4 * channels, n)
    a1 = fma(u0, v2, fma(load(x, xp + 3 * channels, n), v1, fma(u1, v0, a1)))
    u1 = load(x, xp + 6 * channels, n)
    a2 = fma(u1, v2, fma(load(x, xp + 5 * channels, n), v1, fma(u0, v0, a2)))
    u0 = load(x, xp + 8 * channels, n)
    a3 = fma(u0, v2, fma(load(x, xp + 7 * channels, n), v1, fma(u1, v0, a3)))
    return a0, a1, a2, a3


@inline
def _four(
    y: Span, yo: int, ys: int, x: Span, xo: int, xs: int, xrow: int, w: Span, wo: int, wrow: int, wtap: int,
    channels: int, rows: int, cols: int, b: Span, c: int, n: int,
) -> None:  # fmt: skip
    """Four pixels of y."""
    start = load(b, c, n) if b.size else fill(y, 0.0)
    a = (start, start, start, start)
    xp, wp = xo + c, wo + c
    if rows == 3 and cols == 3 and xs == channels:
        # Three taps a row and three rows without a loop: half the time of the general case.
        a = _taps3_four(x, xp, xs, w, wp, wtap, n, a)
        a = _taps3_four(x, xp + xrow, xs, w, wp + wrow, wtap, n, a)
        a = _taps3_four(x, xp + 2 * xrow, xs, w, wp + 2 * wrow, wtap, n, a)
    elif rows == 3 and cols == 3 and xs == 2 * channels:
        a = _taps3_four_apart(x, xp, channels, w, wp, wtap, n, a)
        a = _taps3_four_apart(x, xp + xrow, channels, w, wp + wrow, wtap, n, a)
        a = _taps3_four_apart(x, xp + 2 * xrow, channels, w, wp + 2 * wrow, wtap, n, a)
    else:
        for _ in range(rows):
            xq, wq, left = xp, wp, cols
            while left > 2 and xs == channels:
                a = _taps3_four(x, xq, xs, w, wq, wtap, n, a)
                xq, wq, left = xq + 3 * channels, wq + 3 * wtap, left - 3
            while left > 0:
                a = _tap_four(x, xq, xs, w, wq, n, a)
                xq, wq, left = xq + channels, wq + wtap, left - 1
            xp, wp = xp + xrow, wp + wrow
    yp = yo + c
    store(y, yp, a[0], n)
    store(y, yp + ys, a[1], n)
    store(y, yp + 2 * ys, a[2], n)
    store(y, yp + 3 * ys, a[3], n)


@inline
def _one(
    y: Span, yo: int, x: Span, xo: int, xrow: int, w: Span, wo: int, wrow: int, wtap: int,
    channels: int, rows: int, cols: int, b: Span, c: int, n: int,
) -> None:  # fmt: skip
    """One pixel of y."""
    a = load(b, c, n) if b.size else fill(y, 0.0)
    for k in range(rows):
        xp, wp = xo + k * xrow + c, wo + k * wrow + c
        for _ in range(cols):
            a = fma(load(x, xp, n), load(w, wp, n), a)
            xp, wp = xp + channels, wp + wtap
    store(y, yo + c, a, n)


@inline
def _one_group(
    y: Span, yo: int, x: Span, xo: int, xrow: int, w: Span, wo: int, wrow: int, wtap: int,
    channels: int, rows: int, cols: int, b: Span, c: int,
) -> None:  # fmt: skip
    """One pixel of y, a group of channels."""
    n = lanes(y)
    a0 = load(b, c, n) if b.size else fill(y, 0.0)
    a1 = load(b, c + n, n) if b.size else a0
    a2 = load(b, c + 2 * n, n) if b.size else a0
    a3 = load(b, c + 3 * n, n) if b.size else a0
    for k in range(rows):
        xp, wp = xo + k * xrow + c, wo + k * wrow + c
        for _ in range(cols):
            a0 = fma(load(x, xp, n), load(w, wp, n), a0)
            a1 = fma(load(x, xp + n, n), load(w, wp + n, n), a1)
            a2 = fma(load(x, xp + 2 * n, n), load(w, wp + 2 * n, n), a2)
            a3 = fma(load(x, xp + 3 * n, n), load(w, wp + 3 * n, n), a3)
            xp, wp = xp + channels, wp + wtap
    yp = yo + c
    store(y, yp, a0, n)
    store(y, yp + n, a1, n)
    store(y, yp + 2 * n, a2, n)
    store(y, yp + 3 * n, a3, n)


@piece
def row(
    y: Span, yo: int, ys: int, x: Span, xo: int, xs: int, width: int, w: Span, kw: int, step_y: int, step_x: int,
    b: Span, channels: int, vertical: Span, i: int, horizontal: Span,
) -> None:  # fmt: skip
    """Row ``i`` of an output, at ``y[yo:]``, from the image at ``x[xo:]`` whose rows are ``width`` pixels.

    ``ys`` and ``xs`` are the elements between a tile's pixels in y and in x, ``step_y`` and ``step_x`` the kernel
    positions between taps. ``vertical`` is `taps`, ``horizontal`` is `tiles`. Bias ``b`` (C,) or empty.
    """
    compact()
    first, rows, source = get(vertical, 3 * i), get(vertical, 3 * i + 1), get(vertical, 3 * i + 2)
    xrow, wrow, wtap = width * channels, step_y * kw * channels, step_x * channels
    body, group = channels - channels % lanes(y), GROUP * lanes(y)
    for c0 in range(0, channels, group):
        c1 = min(c0 + group, body)
        tail = channels - c1 if c0 + group >= channels else 0
        for t in range(0, horizontal.size, 5):
            j, pixels, cols = get(horizontal, t), get(horizontal, t + 1), get(horizontal, t + 3)
            yp = yo + j * channels
            xp = xo + (source * width + get(horizontal, t + 4)) * channels
            wp = (first * kw + get(horizontal, t + 2)) * channels
            if pixels == 8:
                for c in range(c0, c1, lanes(y)):
                    _eight(y, yp, ys, x, xp, xs, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c, lanes(y))
            elif pixels == 4:
                for c in range(c0, c1, lanes(y)):
                    _four(y, yp, ys, x, xp, xs, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c, lanes(y))
            elif c1 - c0 == group:
                _one_group(y, yp, x, xp, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c0)
            else:
                for c in range(c0, c1, lanes(y)):
                    _one(y, yp, x, xp, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c, lanes(y))
            if tail:
                for p in range(0, pixels - 3, 4):
                    yq, xq = yp + p * ys, xp + p * xs
                    _four(y, yq, ys, x, xq, xs, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c1, tail)
                if pixels == 1:
                    _one(y, yp, x, xp, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c1, tail)


@inline
def _weight_four(
    dw: Span, wo: int, wrow: int, dy: Span, do: int, x: Span, xo: int, xs: int, xrow: int,
    channels: int, rows: int, cols: int, c: int, n: int,
) -> None:  # fmt: skip
    d0 = load(dy, do + c, n)
    d1 = load(dy, do + channels + c, n)
    d2 = load(dy, do + 2 * channels + c, n)
    d3 = load(dy, do + 3 * channels + c, n)
    for k in range(rows):
        xp, wp = xo + k * xrow + c, wo + k * wrow + c
        for _ in range(cols):
            a = fma(d0, load(x, xp, n), load(dw, wp, n))
            a = fma(d1, load(x, xp + xs, n), a)
            a = fma(d2, load(x, xp + 2 * xs, n), a)
            a = fma(d3, load(x, xp + 3 * xs, n), a)
            store(dw, wp, a, n)
            xp, wp = xp + channels, wp + channels


@inline
def _weight_one(
    dw: Span, wo: int, wrow: int, dy: Span, do: int, x: Span, xo: int, xs: int, xrow: int,
    channels: int, rows: int, cols: int, c: int, n: int,
) -> None:  # fmt: skip
    d0 = load(dy, do + c, n)
    for k in range(rows):
        xp, wp = xo + k * xrow + c, wo + k * wrow + c
        for _ in range(cols):
            a = fma(d0, load(x, xp, n), load(dw, wp, n))
            store(dw, wp, a, n)
            xp, wp = xp + channels, wp + channels


@piece
def weight_row(
    dw: Span, wo: int, dy: Span, do: int, x: Span, xo: int, xs: int, width: int, kw: int, channels: int,
    vertical: Span, i: int, horizontal: Span,
) -> None:  # fmt: skip
    """Add row ``i`` of dy, at ``dy[do:]``, times the image at ``x[xo:]`` to the weight gradient at ``dw[wo:]``.

    The gradient is (KH, KW, C). Arguments as `row` forward; ``horizontal`` without overlap.
    """
    compact()
    first, rows, source = get(vertical, 3 * i), get(vertical, 3 * i + 1), get(vertical, 3 * i + 2)
    xrow, wrow = width * channels, kw * channels
    body, group = channels - channels % lanes(dw), GROUP * lanes(dw)
    for c0 in range(0, channels, group):
        c1 = min(c0 + group, body)
        tail = channels - c1 if c0 + group >= channels else 0
        for t in range(0, horizontal.size, 5):
            j, pixels, cols = get(horizontal, t), get(horizontal, t + 1), get(horizontal, t + 3)
            dp = do + j * channels
            xp = xo + (source * width + get(horizontal, t + 4)) * channels
            wp = wo + (first * kw + get(horizontal, t + 2)) * channels
            for p in range(0, pixels - 3, 4):
                dq, xq = dp + p * channels, xp + p * xs
                for c in range(c0, c1, lanes(dw)):
                    _weight_four(dw, wp, wrow, dy, dq, x, xq, xs, xrow, channels, rows, cols, c, lanes(dw))
                if tail:
                    _weight_four(dw, wp, wrow, dy, dq, x, xq, xs, xrow, channels, rows, cols, c1, tail)
            if pixels == 1:
                for c in range(c0, c1, lanes(dw)):
                    _weight_one(dw, wp, wrow, dy, dp, x, xp, xs, xrow, channels, rows, cols, c, lanes(dw))
                if tail:
                    _weight_one(dw, wp, wrow, dy, dp, x, xp, xs, xrow, channels, rows, cols, c1, tail)
