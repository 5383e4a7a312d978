# SPDX-License-Identifier: Apache-2.0
"""Row blocks of normalisation and activation: applied, differentiated, and their sums.

A block is ``rows`` pixels of C channels at ``x[xo:]``. ``norm`` is (3, C) flat: mean, scale = weight · invstd, bias;
z = (y - mean) · scale + bias; empty for none. Sums stay in the dtype of the data within a block and are added
up in float64 between blocks. Vectorised over channels.
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
    lanes,
    lanes_f64,
    load,
    load_f64,
    mul,
    store,
    sub,
    where_le,
)
from fastfer.backends.numba._span import Span, get, put
from fastfer.backends.numba.elementwise import apply, derive


@inline
def _normalise(v: Register, norm: Span, channels: int, c: int, n: int) -> Register:
    if norm.size == 0:
        return v
    return fma(sub(v, load(norm, c, n)), load(norm, channels + c, n), load(norm, 2 * channels + c, n))


@inline
def _forward_at(z: Span, zo: int, y: Span, yo: int, channels: int, norm: Span, act: int, c: int, n: int) -> None:
    store(z, zo + c, apply(_normalise(load(y, yo + c, n), norm, channels, c, n), act), n)


@piece
def forward(z: Span, zo: int, z_row: int, y: Span, yo: int, rows: int, channels: int, norm: Span, act: int) -> None:
    """z = act(norm(y)); rows of z are ``z_row`` apart. ``z`` may be ``y``."""
    compact()
    body = channels - channels % lanes(y)
    for _ in range(rows):
        for c in range(0, body, lanes(y)):
            _forward_at(z, zo, y, yo, channels, norm, act, c, lanes(y))
        if body < channels:
            _forward_at(z, zo, y, yo, channels, norm, act, body, channels - body)
        zo, yo = zo + z_row, yo + channels


@inline
def _backward_at(
    dy: Span, do: int, dz: Span, y: Span, yo: int, channels: int, norm: Span, coef: Span, act: int, c: int, n: int
) -> None:
    v = load(y, yo + c, n)
    g = derive(load(dz, yo + c, n), _normalise(v, norm, channels, c, n), act)
    if norm.size:
        g = mul(g, load(norm, channels + c, n))
    if coef.size:
        g = add(g, fma(sub(v, load(norm, c, n)), load(coef, channels + c, n), load(coef, c, n)))
    store(dy, do + c, g, n)


@piece
def backward(
    dy: Span,
    do: int,
    d_row: int,
    dz: Span,
    y: Span,
    yo: int,
    rows: int,
    channels: int,
    norm: Span,
    coef: Span,
    act: int,
) -> None:
    """dy = dz · act'(z) · scale + coef[0] + (y - mean) · coef[1]; the last two from batch statistics, or empty.

    dz lies as y does, rows of dy are ``d_row`` apart.
    """
    compact()
    body = channels - channels % lanes(y)
    for _ in range(rows):
        for c in range(0, body, lanes(y)):
            _backward_at(dy, do, dz, y, yo, channels, norm, coef, act, c, lanes(y))
        if body < channels:
            _backward_at(dy, do, dz, y, yo, channels, norm, coef, act, body, channels - body)
        do, yo = do + d_row, yo + channels


@inline
def _sums_at(
    sums: Span,
    so: int,
    dy: Span,
    do: int,
    d_row: int,
    y: Span,
    yo: int,
    rows: int,
    channels: int,
    norm: Span,
    act: int,
    write: int,
    c: int,
    n: int,
) -> None:
    total, moment = fill(dy, 0.0), fill(dy, 0.0)
    for r in range(rows):
        g = load(dy, do + r * d_row + c, n)
        if norm.size or act:
            v = load(y, yo + r * channels + c, n)
            g = derive(g, _normalise(v, norm, channels, c, n), act)
            if norm.size:
                moment = fma(g, sub(v, load(norm, c, n)), moment)
            if write:
                store(dy, do + r * d_row + c, g, n)
        total = add(total, g)
    add_to(sums, so + c, total, n)
    if norm.size:
        add_to(sums, so + channels + c, moment, n)


@piece
def gradient_sums(
    sums: Span,
    so: int,
    dy: Span,
    do: int,
    d_row: int,
    y: Span,
    yo: int,
    rows: int,
    channels: int,
    norm: Span,
    act: int,
    write: int,
) -> None:
    """Add sum(g) and, with norm, sum(g · (y - mean)) to ``sums[so:]``, float64 (2, C), for g = dy · act'(z).

    ``write`` not 0 puts g in the place of dy. Without norm and activation y is not read.
    """
    compact()
    body = channels - channels % lanes(dy)
    for c in range(0, body, lanes(dy)):
        _sums_at(sums, so, dy, do, d_row, y, yo, rows, channels, norm, act, write, c, lanes(dy))
    if body < channels:
        _sums_at(sums, so, dy, do, d_row, y, yo, rows, channels, norm, act, write, body, channels - body)


@inline
def _moments_at(scratch: Span, y: Span, yo: int, rows: int, channels: int, c: int, n: int) -> None:
    first, zero = load(y, yo + c, n), fill(y, 0.0)
    shift = where_le(sub(first, first), zero, first, zero)
    total, square = zero, zero
    for r in range(rows):
        d = sub(load(y, yo + r * channels + c, n), shift)
        total, square = add(total, d), fma(d, d, square)
    store(scratch, c, shift, n)
    store(scratch, channels + c, total, n)
    store(scratch, 2 * channels + c, square, n)


@piece
def moments(stats: Span, so: int, count: int, scratch: Span, y: Span, yo: int, rows: int, channels: int) -> None:
    """Merge a block into ``stats[so:]``, float64 (3, C): sum, mean, squared deviations of ``count`` rows so far.

    Sums are shifted by the block's first row; blocks merge by the formula of Chan, Golub and LeVeque 1983.
    ``scratch`` is float64 (3, C).
    """
    compact()
    body = channels - channels % lanes(y)
    for c in range(0, body, lanes(y)):
        _moments_at(scratch, y, yo, rows, channels, c, lanes(y))
    if body < channels:
        _moments_at(scratch, y, yo, rows, channels, body, channels - body)
    for c in range(channels):
        total, square = get(scratch, channels + c), get(scratch, 2 * channels + c)
        mean = get(scratch, c) + total / rows
        m2 = max(square - total * total / rows, 0.0)
        _merge_at(stats, so + c, channels, count, get(scratch, c) * rows + total, mean, m2, rows)


@inline
def _merge_at(stats: Span, i: int, channels: int, count: int, total: float, mean: float, m2: float, rows: int) -> None:
    both = count + rows
    delta = mean - get(stats, i + channels)
    put(stats, i, get(stats, i) + total)
    put(stats, i + channels, get(stats, i + channels) + delta * rows / both)
    put(stats, i + 2 * channels, get(stats, i + 2 * channels) + m2 + delta * delta * count / both * rows)


@piece
def merge(stats: Span, counts: Span, channels: int) -> None:
    """Merge the chunks of ``stats``, float64 (chunks, 3, C), in order into the first; ``counts`` are their rows."""
    compact()
    count = get(counts, 0)
    for k in range(1, counts.size):
        rows = get(counts, k)
        for c in range(channels):
            i = 3 * channels * k + c
            total, mean, m2 = get(stats, i), get(stats, i + channels), get(stats, i + 2 * channels)
            _merge_at(stats, c, channels, count, total, mean, m2, rows)
        count += rows


@piece
def add_chunks(out: Span, parts: Span, start: int, stop: int) -> None:
    """out[i] = sum over chunks of parts[chunk, i], in float64 and chunk order, for start <= i < stop."""
    compact()
    size = out.size
    step = lanes_f64(parts)
    for i in range(start, stop, step):
        n = min(stop - i, step)
        total = load_f64(parts, i, n)
        for p in range(size + i, parts.size, size):
            total = add(total, load_f64(parts, p, n))
        store(out, i, total, n)
