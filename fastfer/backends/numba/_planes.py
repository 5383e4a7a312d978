# SPDX-License-Identifier: Apache-2.0
"""Pieces of the CBAM kernels that work on planes of one value a pixel: the K×K convolution and the norm's gate.

``padded`` is a plane inside a border of zeros, ``border_width`` elements a row; vectorised along x.
"""

from __future__ import annotations

from fastfer.backends.numba._numba import piece
from fastfer.backends.numba._simd import add, compact, fill, fma, lanes, load, mul, splat, store, sub, total
from fastfer.backends.numba._span import Span, get, put
from fastfer.backends.numba.elementwise import apply

ROWS = 4
"""Rows of a convolution's output at a time."""

_SIGMOID = 6


@piece
def border_width(padded: Span, width: int, size: int) -> int:
    """Elements of a row: whole vectors, and what the kernel reads beside them."""
    elements: int = (width + lanes(padded) - 1) // lanes(padded) * lanes(padded) + size - 1
    return elements


@piece
def border_size(padded: Span, height: int, width: int, size: int) -> int:
    """Elements of a plane inside its border."""
    elements: int = ((height + ROWS - 1) // ROWS * ROWS + size - 1) * border_width(padded, width, size)
    return elements


@piece
def enclose(padded: Span, plane: Span, po: int, height: int, width: int, size: int) -> None:
    """Copy the plane at ``po`` inside the border, which is zero already."""
    compact()
    row = border_width(padded, width, size)
    for y in range(height):
        to = (y + size // 2) * row + size // 2
        for x in range(0, width, lanes(padded)):
            n = min(lanes(padded), width - x)
            store(padded, to + x, load(plane, po + y * width + x, n), n)


@piece
def correlate(
    out: Span, oo: int, padded: Span, weight: Span, wo: int, step: int, more: int, height: int, width: int, size: int
) -> None:
    """out[y, x] = sum_ij padded[y + i, x + j] · weight[wo + step · (i, j)], added to out where ``more`` is not 0."""
    compact()
    row = border_width(padded, width, size)
    for y in range(0, height, ROWS):
        for x in range(0, width, lanes(padded)):
            a0, a1, a2, a3 = fill(out, 0.0), fill(out, 0.0), fill(out, 0.0), fill(out, 0.0)
            w = wo
            for i in range(size):
                at = (y + i) * row + x
                for j in range(size):
                    v = splat(weight, w)
                    a0 = fma(load(padded, at + j, lanes(out)), v, a0)
                    a1 = fma(load(padded, at + j + row, lanes(out)), v, a1)
                    a2 = fma(load(padded, at + j + 2 * row, lanes(out)), v, a2)
                    a3 = fma(load(padded, at + j + 3 * row, lanes(out)), v, a3)
                    w += step
            n, left, to = min(lanes(out), width - x), height - y, oo + y * width + x
            if more:
                a0 = add(a0, load(out, to, n))
                a1 = add(a1, load(out, to + width, n if left > 1 else 0))
                a2 = add(a2, load(out, to + 2 * width, n if left > 2 else 0))
                a3 = add(a3, load(out, to + 3 * width, n if left > 3 else 0))
            store(out, to, a0, n)
            store(out, to + width, a1, n if left > 1 else 0)
            store(out, to + 2 * width, a2, n if left > 2 else 0)
            store(out, to + 3 * width, a3, n if left > 3 else 0)


@piece
def weight_grad(grads: Span, go: int, plane: Span, po: int, padded: Span, height: int, width: int, size: int) -> None:
    """Add sum_yx dy[y, x] · plane[y + i, x + j] to ``grads[go:]``, float64 (K, K); ``padded`` holds dy."""
    compact()
    row = border_width(padded, width, size)
    for i in range(size):
        for j in range(size):
            result = fill(plane, 0.0)
            for y in range(height):
                at = (y + size - 1 - i) * row + size - 1 - j
                for x in range(0, width, lanes(plane)):
                    v = load(plane, po + y * width + x, min(lanes(plane), width - x))
                    result = fma(v, load(padded, at + x, lanes(plane)), result)
            to = go + i * size + j
            put(grads, to, get(grads, to) + total(result))


@piece
def plane_moments(moments: Span, i: int, y: Span, yo: int, pixels: int) -> None:
    """Mean and sum of squared deviations of a plane to ``moments[2 · i:]``, float64."""
    mean = 0.0
    for p in range(pixels):
        mean += get(y, yo + p)
    mean /= pixels
    m2 = 0.0
    for p in range(pixels):
        m2 += (get(y, yo + p) - mean) ** 2
    put(moments, 2 * i, mean)
    put(moments, 2 * i + 1, m2)


@piece
def plane_gate(s: Span, so: int, y: Span, yo: int, line: Span, pixels: int) -> None:
    """s = sigmoid(y · line[0] + line[1])."""
    for p in range(0, pixels, lanes(y)):
        n = min(lanes(y), pixels - p)
        store(s, so + p, apply(fma(load(y, yo + p, n), splat(line, 0), splat(line, 1)), _SIGMOID), n)


@piece
def plane_gate_grad(t: Span, s: Span, to: int, y: Span, yo: int, mean: Span, pixels: int, sums: Span, i: int) -> None:
    """t · s · (1 - s) in place of t; its sum, and that of its products with y - mean, to ``sums[2 · i:]``, float64."""
    compact()
    result, moment = fill(t, 0.0), fill(t, 0.0)
    for p in range(0, pixels, lanes(t)):
        n = min(lanes(t), pixels - p)
        gate = load(s, to + p, n)
        g = mul(load(t, to + p, n), mul(gate, sub(fill(t, 1.0), gate)))
        store(t, to + p, g, n)
        result, moment = add(result, g), fma(g, sub(load(y, yo + p, n), splat(mean, 0)), moment)
    put(sums, 2 * i, total(result))
    put(sums, 2 * i + 1, total(moment))
