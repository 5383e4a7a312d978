# SPDX-License-Identifier: Apache-2.0
"""Dot-product attention by tiles: products of some keys with some queries, (keys, queries), a register over queries.

As ``csrc/attention``: forward is a streaming softmax over blocks of keys, backward recomputes the probabilities from
the saved maxima and sums. Lanes beyond the queries hold numbers that nothing reads. A kernel's scratch is one span;
names of places in it are offsets.
"""

from __future__ import annotations

import math

import numpy as np

from fastfer.backends.numba._gemm import ONE, ZERO
from fastfer.backends.numba._numba import Pointer, arguments, inline, kernel, piece
from fastfer.backends.numba._rows import copy, inner, lane_sum, padded, product, scale, transpose
from fastfer.backends.numba._simd import (
    Register,
    add,
    compact,
    fill,
    fma,
    is_float32,
    lanes,
    load,
    mul,
    splat,
    store,
    sub,
    where_le,
    where_lt,
)
from fastfer.backends.numba._span import Span, absent, area, get, keep, put, room
from fastfer.backends.numba.elementwise import exp

QUERIES, KEYS = 96, 256
"""Of a tile."""


@inline
def weight_of(v: Register) -> Register:
    """exp(v), 0 where that is below normal numbers."""
    low = fill(v, -87.0) if is_float32(v) else fill(v, -708.0)
    return where_le(v, low, fill(v, 0.0), exp(v))


@inline
def _origin(largest: Register) -> Register:
    """What is subtracted from scores: their maximum, or 0 where all are -inf."""
    return where_le(largest, fill(largest, -math.inf), fill(largest, 0.0), largest)


@piece
def _softmax(s: Span, tile: int, keys: int, row: int, rate: Span, state: int) -> None:
    """Products to exp(score - largest so far); state (3, row): maxima, sums, exp(old maximum - new one)."""
    compact()
    w, rates = lanes(s), splat(rate, 0)
    for c in range(0, row, w):
        before = load(s, state + c, w)
        largest = before
        for j in range(keys):
            score = mul(load(s, tile + j * row + c, w), rates)
            largest = where_lt(largest, score, score, largest)
        origin, total = _origin(largest), fill(s, 0.0)
        for j in range(keys):
            weight = weight_of(sub(mul(load(s, tile + j * row + c, w), rates), origin))
            store(s, tile + j * row + c, weight, w)
            total = add(total, weight)
        rescale = weight_of(sub(before, origin))
        store(s, state + c, largest, w)
        store(s, state + row + c, fma(load(s, state + row + c, w), rescale, total), w)
        store(s, state + 2 * row + c, rescale, w)


@piece
def _times(
    c: Span,
    co: int,
    columns: int,
    s: Span,
    tile: int,
    row: int,
    step: int,
    b: Span,
    bo: int,
    space: int,
    rows: int,
    depth: int,
    accumulate: int,
) -> None:
    """c (rows, columns) at ``c[co:]`` = a tile, a(i, k) at ``i·row + k·step``, times b (depth, columns) at ``b[bo:]``.

    Where the columns do not fill whole panels, b is copied to ``s[space:]`` first.
    """
    compact()
    pitch = padded(s, columns)
    if pitch == columns:
        product(c, co, columns, s, tile, row, step, b, bo, columns, absent(c), rows, columns, depth, accumulate)
    else:
        copy(s, space, pitch, b, bo, depth, columns)
        product(c, co, columns, s, tile, row, step, s, space, pitch, absent(c), rows, columns, depth, accumulate)


@kernel
def dot_forward(pointer: Pointer, chunk: int) -> None:
    """Output, and statistics (2, batch · queries) or none, of the units ``starts[chunk] ..``, blocks of queries."""
    out, stats, q, k, v, rate, starts, queries, keys, depth, width = arguments(pointer, "FFFFFFLiiii")
    blocks = (queries + QUERIES - 1) // QUERIES
    row, most = padded(q, min(queries, QUERIES)), min(keys, KEYS)
    tile = depth * row
    space = tile + most * row
    state = space + most * padded(q, width)
    memory = np.empty(room(q, state + 3 * row), np.uint8)
    s = area(q, memory)
    for unit in range(get(starts, chunk), get(starts, chunk + 1)):
        b, first = unit // blocks, unit % blocks * QUERIES
        count, at = min(QUERIES, queries - first), unit // blocks * queries + first
        transpose(s, ZERO, row, q, at * depth, count, depth)
        for i in range(row):
            put(s, state + i, -math.inf)
            put(s, state + row + i, 0.0)
        for key in range(0, keys, KEYS):
            here, ko = min(KEYS, keys - key), b * keys + key
            product(s, tile, row, k, ko * depth, depth, ONE, s, ZERO, row, absent(q), here, row, depth, ZERO)
            _softmax(s, tile, here, row, rate, state)
            if key:
                scale(out, at * width, width, count, s, state + 2 * row)
            _times(out, at * width, width, s, tile, ONE, row, v, ko * width, space, count, here, min(key, 1))
        for i in range(count):
            put(s, state + row + i, 1 / get(s, state + row + i))
            if stats.size:
                put(stats, at + i, get(s, state + i))
                put(stats, stats.size // 2 + at + i, get(s, state + row + i))
        scale(out, at * width, width, count, s, state + row)
    keep(memory)


@piece
def _prepare(
    s: Span, state: int, row: int, lane: int, dout: Span, out: Span, stats: Span, at: int, count: int, width: int
) -> None:
    """state (3, row): what is subtracted from scores, 1 / sum, dout · out; zeros beyond ``count``."""
    compact()
    for i in range(row):
        put(s, state + i, get(stats, at + i) if i < count else 0.0)
        put(s, state + row + i, get(stats, stats.size // 2 + at + i) if i < count else 0.0)
        put(s, state + 2 * row + i, 0.0)
    for i in range(count):
        o = (at + i) * width
        put(s, state + 2 * row + i, inner(s, lane, dout, o, out, o, width))
    for c in range(0, row, lanes(s)):
        store(s, state + c, _origin(load(s, state + c, lanes(s))), lanes(s))


@piece
def _score_grads(s: Span, weights: int, ds: int, keys: int, row: int, rate: Span, state: int, lane: int) -> float:
    """Products q·k and dout·v to probabilities p and rate·ds, ds = p·(dout·v - delta); returns sum ds·(q·k)."""
    compact()
    w, rates, result = lanes(s), splat(rate, 0), 0.0
    for c in range(0, row, w):
        origin, inverse = load(s, state + c, w), load(s, state + row + c, w)
        delta, total = load(s, state + 2 * row + c, w), fill(s, 0.0)
        for j in range(keys):
            at = j * row + c
            raw = load(s, weights + at, w)
            weight = mul(weight_of(sub(mul(raw, rates), origin)), inverse)
            grad = mul(weight, sub(load(s, ds + at, w), delta))
            total = fma(grad, raw, total)
            store(s, weights + at, weight, w)
            store(s, ds + at, mul(grad, rates), w)
        result += lane_sum(s, lane, total)
    return result


@kernel
def dot_backward(pointer: Pointer, chunk: int) -> None:
    """Gradients of the units ``starts[chunk] ..``, and ``parts`` (units) of that of the scale.

    ``by_keys``: units are blocks of keys, which give dk and dv, and the rest too where they are whole sequences;
    otherwise blocks of queries, which give dq. Gradients that are not wanted have no elements.
    """
    (
        dq, dk, dv, parts, dout, q, k, v, out, stats, rate, starts, queries, keys, depth, width, by_keys,
    ) = arguments(pointer, "FFFDFFFFFFFLiiiii")  # fmt: skip
    row, most = padded(q, min(queries, QUERIES)), min(keys, KEYS)
    key_blocks, query_blocks = (keys + KEYS - 1) // KEYS, (queries + QUERIES - 1) // QUERIES
    blocks = key_blocks if by_keys else query_blocks
    whole = key_blocks == 1 or by_keys == 0
    dt = depth * row
    weights = dt + width * row
    ds = weights + most * row
    space = ds + most * row
    state = space + max(most, row) * max(padded(q, depth), padded(q, width))
    lane = state + 3 * row
    memory = np.empty(room(q, lane + lanes(q)), np.uint8)
    s = area(q, memory)
    for unit in range(get(starts, chunk), get(starts, chunk + 1)):
        b, block, total = unit // blocks, unit % blocks, 0.0
        for first in range(0 if by_keys else block * QUERIES, queries if by_keys else block * QUERIES + 1, QUERIES):
            count, at = min(QUERIES, queries - first), b * queries + first
            transpose(s, ZERO, row, q, at * depth, count, depth)
            transpose(s, dt, row, dout, at * width, count, width)
            _prepare(s, state, row, lane, dout, out, stats, at, count, width)
            for key in range(block * KEYS if by_keys else 0, block * KEYS + 1 if by_keys else keys, KEYS):
                here, ko = min(KEYS, keys - key), b * keys + key
                product(s, weights, row, k, ko * depth, depth, ONE, s, ZERO, row, absent(q), here, row, depth, ZERO)
                product(s, ds, row, v, ko * width, width, ONE, s, dt, row, absent(q), here, row, width, ZERO)
                total += _score_grads(s, weights, ds, here, row, rate, state, lane)
                if by_keys and dk.size:
                    _times(dk, ko * depth, depth, s, ds, row, ONE, q, at * depth, space, here, count, min(first, 1))
                if by_keys and dv.size:
                    _times(
                        dv, ko * width, width, s, weights, row, ONE, dout, at * width, space, here, count, min(first, 1)
                    )
                if whole and dq.size:
                    _times(dq, at * depth, depth, s, ds, ONE, row, k, ko * depth, space, count, here, min(key, 1))
        if whole:
            put(parts, unit, total)
    keep(memory)
