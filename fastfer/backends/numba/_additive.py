# SPDX-License-Identifier: Apache-2.0
"""Additive attention: the hidden layer by rows of all tokens, the softmax and the weighted sum by sequences."""

from __future__ import annotations

import numpy as np

from fastfer.backends.numba._gemm import ONE, ZERO
from fastfer.backends.numba._numba import Pointer, arguments, inline, kernel
from fastfer.backends.numba._rows import copy, inner, lane_sum, padded, product
from fastfer.backends.numba._simd import (
    Register,
    add,
    add_to,
    div,
    fill,
    fma,
    is_float32,
    lanes,
    load,
    mul,
    splat,
    store,
    sub,
    where_lt,
)
from fastfer.backends.numba._softmax import weight_of
from fastfer.backends.numba._span import absent, area, get, keep, put, room
from fastfer.backends.numba.elementwise import exp

BLOCK = 96
"""Tokens between fused steps."""


@inline
def tanh(v: Register) -> Register:
    """tanh(v) to a few ulp: Cephes's polynomials below 0.625, else 1 - 2 / (exp(2|v|) + 1)."""
    square, zero, one = mul(v, v), fill(v, 0.0), fill(v, 1.0)
    if is_float32(v):
        p = fma(fill(v, -5.70498872745e-3), square, fill(v, 2.06390887954e-2))
        p = fma(p, square, fill(v, -5.37397155531e-2))
        p = fma(p, square, fill(v, 1.33314422036e-1))
        p = fma(p, square, fill(v, -3.33332819422e-1))
    else:
        p = fma(fill(v, -9.64399179425052238628e-1), square, fill(v, -9.92877231001918586564e1))
        p = fma(p, square, fill(v, -1.61468768441708447952e3))
        q = fma(add(square, fill(v, 1.12811678491632931402e2)), square, fill(v, 2.23548839060100448583e3))
        p = div(p, fma(q, square, fill(v, 4.84406305325125486048e3)))
    near = fma(mul(v, square), p, v)
    size = where_lt(v, zero, sub(zero, v), v)
    far = sub(one, div(fill(v, 2.0), add(exp(add(size, size)), one)))
    return where_lt(size, fill(v, 0.625), near, where_lt(v, zero, sub(zero, far), far))


@kernel
def hidden_forward(pointer: Pointer, chunk: int) -> None:
    """u = tanh(x·wx + h·wh + bias), scores = u·v + v_bias of rows ``starts[chunk] ..``; w (2, dim, hidden padded)."""
    u, scores, x, h, w, bias, v, v_bias, starts, dim, hidden = arguments(pointer, "FFFFFFFFLii")
    pitch = padded(x, hidden)
    memory = np.empty(room(x, lanes(x)), np.uint8)
    s = area(x, memory)
    for first in range(get(starts, chunk), get(starts, chunk + 1), BLOCK):
        rows, at = min(BLOCK, get(starts, chunk + 1) - first), first * dim
        product(u, first * hidden, hidden, x, at, dim, ONE, w, ZERO, pitch, bias, rows, hidden, dim, ZERO)
        product(u, first * hidden, hidden, h, at, dim, ONE, w, dim * pitch, pitch, absent(x), rows, hidden, dim, ONE)
        for r in range(first, first + rows):
            total = fill(x, 0.0)
            for c in range(0, hidden, lanes(x)):
                n = min(hidden - c, lanes(x))
                unit = tanh(load(u, r * hidden + c, n))
                store(u, r * hidden + c, unit, n)
                total = fma(unit, load(v, c, n), total)
            put(scores, r, lane_sum(s, ZERO, total) + get(v_bias, 0))
    keep(memory)


@kernel
def sequence_forward(pointer: Pointer, chunk: int) -> None:
    """Scores to attention weights, in place, and out = weights · x, of sequences ``starts[chunk] ..``."""
    out, scores, x, starts, tokens, dim = arguments(pointer, "FFFLii")
    memory = np.empty(room(x, lanes(x)), np.uint8)
    s, w = area(x, memory), lanes(x)
    for b in range(get(starts, chunk), get(starts, chunk + 1)):
        largest = get(scores, b * tokens)
        for t in range(1, tokens):
            score = get(scores, b * tokens + t)
            largest = score if score > largest else largest
        total = fill(x, 0.0)
        for t in range(0, tokens, w):
            n, at = min(tokens - t, w), b * tokens + t
            store(scores, at, weight_of(sub(load(scores, at, n), fill(x, largest))), n)
            total = add(total, load(scores, at, n))
        inverse = fill(x, 1 / lane_sum(s, ZERO, total))
        for t in range(0, tokens, w):
            n, at = min(tokens - t, w), b * tokens + t
            store(scores, at, mul(load(scores, at, n), inverse), n)
        for c in range(0, dim, w):
            n, mean = min(dim - c, w), fill(x, 0.0)
            for t in range(b * tokens, (b + 1) * tokens):
                mean = fma(splat(scores, t), load(x, t * dim + c, n), mean)
            store(out, b * dim + c, mean, n)
    keep(memory)


@kernel
def sequence_backward(pointer: Pointer, chunk: int) -> None:
    """de = a·(dout·x - sum a·dout·x) and, where wanted, dx = a·dout, of sequences ``starts[chunk] ..``."""
    de, dx, dout, weights, x, starts, tokens, dim = arguments(pointer, "FFFFFLii")
    memory = np.empty(room(x, lanes(x)), np.uint8)
    s, w = area(x, memory), lanes(x)
    for b in range(get(starts, chunk), get(starts, chunk + 1)):
        mean = 0.0
        for t in range(b * tokens, (b + 1) * tokens):
            reach = inner(s, ZERO, dout, b * dim, x, t * dim, dim)
            put(de, t, reach)
            mean += get(weights, t) * reach
        for t in range(b * tokens, (b + 1) * tokens):
            put(de, t, get(weights, t) * (get(de, t) - mean))
            if dx.size:
                for c in range(0, dim, w):
                    n = min(dim - c, w)
                    store(dx, t * dim + c, mul(splat(weights, t), load(dout, b * dim + c, n)), n)
    keep(memory)


@kernel
def hidden_backward(pointer: Pointer, chunk: int) -> None:
    """Adds to dx, writes dh; per chunk ``parts`` (chunks, 2, hidden, dim padded) and ``sums`` (chunks, 2, hidden).

    Those are the weight's gradient, and those of bias and v. ``w`` is (2, hidden, dim padded). Rows as in
    `hidden_forward`; gradients that are not wanted have no elements.
    """
    dx, dh, parts, sums, de, u, x, h, w, v, starts, dim, hidden = arguments(pointer, "FFFDFFFFFFLii")
    pitch, none = padded(x, dim), absent(x)
    half = hidden * pitch
    space = BLOCK * hidden
    memory = np.empty(room(x, space + BLOCK * pitch), np.uint8)
    s = area(x, memory)
    for first in range(get(starts, chunk), get(starts, chunk + 1), BLOCK):
        rows, at = min(BLOCK, get(starts, chunk + 1) - first), first * dim
        for c in range(0, hidden, lanes(x)):
            n, total, moment = min(hidden - c, lanes(x)), fill(x, 0.0), fill(x, 0.0)
            for r in range(rows):
                unit, grad = load(u, (first + r) * hidden + c, n), splat(de, first + r)
                dz = mul(mul(grad, load(v, c, n)), sub(fill(x, 1.0), mul(unit, unit)))
                store(s, r * hidden + c, dz, n)
                total, moment = add(total, dz), fma(grad, unit, moment)
            if sums.size:
                add_to(sums, 2 * hidden * chunk + c, total, n)
                add_to(sums, 2 * hidden * chunk + hidden + c, moment, n)
        if dx.size:
            product(dx, at, dim, s, ZERO, hidden, ONE, w, ZERO, pitch, none, rows, dim, hidden, ONE)
        if dh.size:
            product(dh, at, dim, s, ZERO, hidden, ONE, w, half, pitch, none, rows, dim, hidden, ZERO)
        if parts.size:
            copy(s, space, pitch, x, at, rows, dim)
            product(parts, 2 * half * chunk, pitch, s, ZERO, ONE, hidden, s, space, pitch, none, hidden, dim, rows, ONE)
            copy(s, space, pitch, h, at, rows, dim)
            product(
                parts,
                2 * half * chunk + half,
                pitch,
                s,
                ZERO,
                ONE,
                hidden,
                s,
                space,
                pitch,
                none,
                hidden,
                dim,
                rows,
                ONE,
            )
    keep(memory)
