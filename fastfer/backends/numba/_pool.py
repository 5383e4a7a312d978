# SPDX-License-Identifier: Apache-2.0
"""Pieces of the pooling kernels, on NHWC arrays; vectorised over channels.

Places of maxima are kept in registers of the data's dtype: exact below 2^24 elements of a window or an image.
"""

from __future__ import annotations

from fastfer.backends.numba._numba import inline, piece
from fastfer.backends.numba._simd import (
    Register,
    add,
    compact,
    div,
    fill,
    lanes,
    load,
    load_index,
    store,
    store_index,
    where_eq,
    where_le,
    where_lt,
)
from fastfer.backends.numba._span import Span


@inline
def larger(v: Register, best: Register, at: Register, best_at: Register) -> tuple[Register, Register]:
    """The larger of ``v`` and ``best`` with its place: the first of equal ones; a NaN in ``v`` always."""
    kept, kept_at = where_le(v, v, best, v), where_le(v, v, best_at, at)
    return where_lt(best, v, v, kept), where_lt(best, v, at, kept_at)


@inline
def _window_at(
    y: Span,
    yo: int,
    positions: Span,
    x: Span,
    xo: int,
    width: int,
    channels: int,
    kw: int,
    k0: int,
    k1: int,
    l0: int,
    l1: int,
    n: int,
) -> None:
    best = load(x, xo + (k0 * width + l0) * channels, n)
    at = fill(y, k0 * kw + l0)
    if positions.size:
        for k in range(k0, k1):
            for m in range(l0, l1):
                best, at = larger(load(x, xo + (k * width + m) * channels, n), best, fill(y, k * kw + m), at)
        store_index(positions, yo, at, n)
    else:
        for k in range(k0, k1):
            for m in range(l0, l1):
                v = load(x, xo + (k * width + m) * channels, n)
                best = where_lt(best, v, v, where_le(v, v, best, v))
    store(y, yo, best, n)


@piece
def max_row(
    y: Span,
    yo: int,
    positions: Span,
    x: Span,
    image: int,
    i: int,
    height: int,
    width: int,
    channels: int,
    out_width: int,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    top: int,
    left: int,
) -> None:
    """Output row ``i`` of the image at ``x[image:]``, and the places of its maxima where ``positions`` is there."""
    body, row = channels - channels % lanes(y), i * sh - top
    k0, k1 = max(0, -row), min(kh, height - row)
    for j in range(out_width):
        column = j * sw - left
        l0, l1 = max(0, -column), min(kw, width - column)
        xo, at = image + (row * width + column) * channels, yo + j * channels
        for c in range(0, body, lanes(y)):
            _window_at(y, at + c, positions, x, xo + c, width, channels, kw, k0, k1, l0, l1, lanes(y))
        if body < channels:
            n = channels - body
            _window_at(y, at + body, positions, x, xo + body, width, channels, kw, k0, k1, l0, l1, n)


@inline
def _gather_at(
    dx: Span, xo: int, dy: Span, positions: Span, yo: int, out_width: int, channels: int, kw: int, sh: int, sw: int,
    q_row: int, i0: int, i1: int, q: int, j0: int, j1: int, n: int,
) -> None:  # fmt: skip
    result, zero = fill(dx, 0.0), fill(dx, 0.0)
    for i in range(i0, i1):
        for j in range(j0, j1):
            at = yo + (i * out_width + j) * channels
            here = fill(dx, (q_row - i * sh) * kw + q - j * sw)
            result = add(result, where_eq(load_index(positions, at, n, dx), here, load(dy, at, n), zero))
    store(dx, xo, result, n)


@piece
def max_row_backward(
    dx: Span,
    xo: int,
    dy: Span,
    positions: Span,
    image: int,
    row: int,
    width: int,
    channels: int,
    out_height: int,
    out_width: int,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    top: int,
    left: int,
) -> None:
    """Row ``row`` of dx: what the windows over each element, at ``dy[image:]``, send to their place."""
    body, q_row = channels - channels % lanes(dx), row + top
    i0 = 0 if q_row < kh else (q_row - kh) // sh + 1
    i1 = min(q_row // sh, out_height - 1) + 1
    for column in range(width):
        q = column + left
        j0 = 0 if q < kw else (q - kw) // sw + 1
        j1 = min(q // sw, out_width - 1) + 1
        at = xo + column * channels
        for c in range(0, body, lanes(dx)):
            _gather_at(
                dx, at + c, dy, positions, image + c, out_width, channels, kw, sh, sw, q_row, i0, i1, q, j0, j1,
                lanes(dx),
            )  # fmt: skip
        if body < channels:
            _gather_at(
                dx, at + body, dy, positions, image + body, out_width, channels, kw, sh, sw, q_row, i0, i1, q, j0, j1,
                channels - body,
            )  # fmt: skip


@inline
def _image_at(
    avg: Span, ao: int, most: Span, positions: Span, x: Span, xo: int, pixels: int, channels: int, n: int
) -> None:
    result, best, at = fill(x, 0.0), load(x, xo, n), fill(x, 0.0)
    for first in range(0, pixels, 256):  # blocks: the rounding of a long sum grows with its length
        part = fill(x, 0.0)
        for p in range(first, min(pixels, first + 256)):
            v = load(x, xo + p * channels, n)
            part = add(part, v)
            best, at = larger(v, best, fill(x, p), at)
        result = add(result, part)
    if avg.size:
        store(avg, ao, div(result, fill(x, pixels)), n)
    if most.size:
        store(most, ao, best, n)
        store_index(positions, ao, at, n)


@piece
def pool_image(avg: Span, ao: int, most: Span, positions: Span, x: Span, xo: int, pixels: int, channels: int) -> None:
    """Mean, maximum and the maximum's pixel of the image at ``x[xo:]``, to ``ao`` in the arrays that are there."""
    compact()
    body = channels - channels % lanes(x)
    for c in range(0, body, lanes(x)):
        _image_at(avg, ao + c, most, positions, x, xo + c, pixels, channels, lanes(x))
    if body < channels:
        _image_at(avg, ao + body, most, positions, x, xo + body, pixels, channels, channels - body)
