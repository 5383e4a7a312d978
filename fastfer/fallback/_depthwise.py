# SPDX-License-Identifier: Apache-2.0
"""Rows of a depthwise convolution and of its two gradients, on NHWC arrays and weights (KH, KW, C).

y[i, j, c] = sum_kl x[i·sh + k - top, j·sw + l - left, c] · w[k, l, c], and the input gradient is the same sum over dy
with the taps walked the other way. ``taps`` lists, for one axis, where each position's taps lie, so that one row routine
serves both and nothing outside the image is read. Vectorised over channels; four pixels that share their taps at a time.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastfer.fallback._numba import Array, inline, kernel
from fastfer.fallback._simd import compact, fill, fma, lanes, load, store


@lru_cache(maxsize=1024)
def taps(length: int, size: int, kernel: int, stride: int, pad: int, transposed: bool) -> Array:
    """Taps of every position of an axis, int64 (length, 3): first tap, number of taps, source position of the first.

    ``length`` is the axis that is written, ``size`` the one that is read: output and input, or the reverse when
    ``transposed``. Taps are in the order of their sources, which step by 1; their place in the kernel steps by 1, and by
    ``-stride`` when transposed.
    """
    table = np.zeros((length, 3), np.int64)
    for p in range(length):
        if transposed:
            q = p + pad
            last = min(kernel - 1, q)
            first = last - (last - q) % stride
            table[p] = first, max(0, (first - max(q % stride, q - (size - 1) * stride)) // stride + 1), (q - first) // stride
        else:
            first = max(0, pad - p * stride)
            table[p] = first, max(0, min(kernel, size + pad - p * stride) - first), p * stride - pad + first
    return table


@lru_cache(maxsize=1024)
def tiles(
    length: int, size: int, kernel: int, stride: int, pad: int, transposed: bool, overlap: bool = True
) -> Array:
    """An axis cut into tiles, int64 (tiles, 5): position, pixels (8, 4 or 1), then as `taps` for the first pixel.

    A tile's pixels have the same taps, are 1 apart (``stride`` when transposed) and their sources ``stride`` (1). With
    ``overlap`` the last tile of a run reaches back over pixels that are done, where that saves single ones.
    """
    table = taps(length, size, kernel, stride, pad, transposed)
    step = stride if transposed else 1
    rows: list[tuple[int, ...]] = []
    for phase in range(min(step, length)):
        positions = range(phase, length, step)
        start = 0
        while start < len(positions):
            stop = start + 1
            while stop < len(positions) and (table[positions[stop], :2] == table[positions[start], :2]).all():
                stop += 1
            for offset, pixels in _cut(stop - start, overlap):
                p = positions[start + offset]
                rows.append((p, pixels, *table[p]))
            start = stop
    return np.array(rows, np.int64).reshape(-1, 5)


def _cut(run: int, overlap: bool) -> list[tuple[int, int]]:
    """Offsets and sizes of the tiles of a run of pixels."""
    cut = [(i, 8) for i in range(0, run - 7, 8)]
    done = run - run % 8
    if run - done >= 4:
        cut.append((done, 4))
        done += 4
    if overlap and done and done < run:
        return [*cut, (run - 4, 4)]
    return cut + [(i, 1) for i in range(done, run)]


@inline
def _eight(
    y: Array, yo: int, ys: int, x: Array, xo: int, xs: int, xrow: int, w: Array, wo: int, wrow: int, wtap: int,
    channels: int, rows: int, cols: int, b: Array, c: int, n: int,
) -> None:  # fmt: skip
    """Eight pixels; where their sources adjoin, three taps share the loads of ten."""
    a0 = load(b, c, n) if b.size else fill(y, 0.0)
    a1, a2, a3, a4, a5, a6, a7 = a0, a0, a0, a0, a0, a0, a0
    for k in range(rows):
        xp, wp, left = xo + k * xrow + c, wo + k * wrow + c, cols
        while left > 2 and xs == channels:
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
            xp, wp, left = xp + 3 * xs, wp + 3 * wtap, left - 3
        while left > 0:
            v0 = load(w, wp, n)
            a0 = fma(load(x, xp, n), v0, a0)
            a1 = fma(load(x, xp + xs, n), v0, a1)
            a2 = fma(load(x, xp + 2 * xs, n), v0, a2)
            a3 = fma(load(x, xp + 3 * xs, n), v0, a3)
            a4 = fma(load(x, xp + 4 * xs, n), v0, a4)
            a5 = fma(load(x, xp + 5 * xs, n), v0, a5)
            a6 = fma(load(x, xp + 6 * xs, n), v0, a6)
            a7 = fma(load(x, xp + 7 * xs, n), v0, a7)
            xp, wp, left = xp + channels, wp + wtap, left - 1
    store(y, yo + c, a0, n)
    store(y, yo + ys + c, a1, n)
    store(y, yo + 2 * ys + c, a2, n)
    store(y, yo + 3 * ys + c, a3, n)
    store(y, yo + 4 * ys + c, a4, n)
    store(y, yo + 5 * ys + c, a5, n)
    store(y, yo + 6 * ys + c, a6, n)
    store(y, yo + 7 * ys + c, a7, n)


@inline
def _four(
    y: Array, yo: int, ys: int, x: Array, xo: int, xs: int, xrow: int, w: Array, wo: int, wrow: int, wtap: int,
    channels: int, rows: int, cols: int, b: Array, c: int, n: int,
) -> None:  # fmt: skip
    """Four pixels, as `_eight`."""
    a0 = load(b, c, n) if b.size else fill(y, 0.0)
    a1, a2, a3 = a0, a0, a0
    for k in range(rows):
        xp, wp, left = xo + k * xrow + c, wo + k * wrow + c, cols
        while left > 2 and xs == channels:
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
            xp, wp, left = xp + 3 * xs, wp + 3 * wtap, left - 3
        while left > 0:
            v0 = load(w, wp, n)
            a0 = fma(load(x, xp, n), v0, a0)
            a1 = fma(load(x, xp + xs, n), v0, a1)
            a2 = fma(load(x, xp + 2 * xs, n), v0, a2)
            a3 = fma(load(x, xp + 3 * xs, n), v0, a3)
            xp, wp, left = xp + channels, wp + wtap, left - 1
    store(y, yo + c, a0, n)
    store(y, yo + ys + c, a1, n)
    store(y, yo + 2 * ys + c, a2, n)
    store(y, yo + 3 * ys + c, a3, n)


@inline
def _one(
    y: Array, yo: int, x: Array, xo: int, xrow: int, w: Array, wo: int, wrow: int, wtap: int,
    channels: int, rows: int, cols: int, b: Array, c: int, n: int,
) -> None:  # fmt: skip
    a = load(b, c, n) if b.size else fill(y, 0.0)
    for k in range(rows):
        xp, wp = xo + k * xrow + c, wo + k * wrow + c
        for _ in range(cols):
            a = fma(load(x, xp, n), load(w, wp, n), a)
            xp, wp = xp + channels, wp + wtap
    store(y, yo + c, a, n)


@kernel
def row(
    y: Array, yo: int, ys: int, x: Array, xo: int, xs: int, width: int, w: Array, kw: int, step_y: int, step_x: int,
    b: Array, channels: int, vertical: Array, i: int, horizontal: Array,
) -> None:  # fmt: skip
    """Row ``i`` of an output, at ``y[yo:]``, from the image at ``x[xo:]`` whose rows are ``width`` pixels.

    ``ys`` and ``xs`` are the elements between a tile's pixels in y and in x, ``step_y`` and ``step_x`` the kernel positions
    between taps. ``vertical`` is `taps`, ``horizontal`` is `tiles`. Bias ``b`` (C,) or empty.
    """
    compact()
    first, rows, source = vertical[i, 0], vertical[i, 1], vertical[i, 2]
    xrow, wrow, wtap = width * channels, step_y * kw * channels, step_x * channels
    body = channels - channels % lanes(y)
    for t in range(horizontal.shape[0]):
        j, pixels, cols = horizontal[t, 0], horizontal[t, 1], horizontal[t, 3]
        yp = yo + j * channels
        xp = xo + (source * width + horizontal[t, 4]) * channels
        wp = (first * kw + horizontal[t, 2]) * channels
        if pixels == 8:
            for c in range(0, body, lanes(y)):
                _eight(y, yp, ys, x, xp, xs, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c, lanes(y))
        elif pixels == 4:
            for c in range(0, body, lanes(y)):
                _four(y, yp, ys, x, xp, xs, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c, lanes(y))
        else:
            for c in range(0, body, lanes(y)):
                _one(y, yp, x, xp, xrow, w, wp, wrow, wtap, channels, rows, cols, b, c, lanes(y))
        if body < channels:
            tail = channels - body
            for p in range(0, pixels - 3, 4):
                _four(
                    y, yp + p * ys, ys, x, xp + p * xs, xs, xrow, w, wp, wrow, wtap, channels, rows, cols, b, body, tail
                )
            if pixels == 1:
                _one(y, yp, x, xp, xrow, w, wp, wrow, wtap, channels, rows, cols, b, body, tail)


@inline
def _weight_four(
    dw: Array, wo: int, wrow: int, dy: Array, do: int, x: Array, xo: int, xs: int, xrow: int,
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
    dw: Array, wo: int, wrow: int, dy: Array, do: int, x: Array, xo: int, xs: int, xrow: int,
    channels: int, rows: int, cols: int, c: int, n: int,
) -> None:  # fmt: skip
    d0 = load(dy, do + c, n)
    for k in range(rows):
        xp, wp = xo + k * xrow + c, wo + k * wrow + c
        for _ in range(cols):
            a = fma(d0, load(x, xp, n), load(dw, wp, n))
            store(dw, wp, a, n)
            xp, wp = xp + channels, wp + channels


@kernel
def weight_row(
    dw: Array, wo: int, dy: Array, do: int, x: Array, xo: int, xs: int, width: int, kw: int, channels: int,
    vertical: Array, i: int, horizontal: Array,
) -> None:  # fmt: skip
    """Add row ``i`` of dy, at ``dy[do:]``, times the image at ``x[xo:]`` to the weight gradient (KH, KW, C) at ``dw[wo:]``.

    Arguments as `row` forward; ``horizontal`` without overlap.
    """
    compact()
    first, rows, source = vertical[i, 0], vertical[i, 1], vertical[i, 2]
    xrow, wrow = width * channels, kw * channels
    body = channels - channels % lanes(dw)
    for t in range(horizontal.shape[0]):
        j, pixels, cols = horizontal[t, 0], horizontal[t, 1], horizontal[t, 3]
        dp = do + j * channels
        xp = xo + (source * width + horizontal[t, 4]) * channels
        wp = wo + (first * kw + horizontal[t, 2]) * channels
        for p in range(0, pixels - 3, 4):
            dq, xq = dp + p * channels, xp + p * xs
            for c in range(0, body, lanes(dw)):
                _weight_four(dw, wp, wrow, dy, dq, x, xq, xs, xrow, channels, rows, cols, c, lanes(dw))
            if body < channels:
                _weight_four(dw, wp, wrow, dy, dq, x, xq, xs, xrow, channels, rows, cols, body, channels - body)
        if pixels == 1:
            for c in range(0, body, lanes(dw)):
                _weight_one(dw, wp, wrow, dy, dp, x, xp, xs, xrow, channels, rows, cols, c, lanes(dw))
            if body < channels:
                _weight_one(dw, wp, wrow, dy, dp, x, xp, xs, xrow, channels, rows, cols, body, channels - body)
