# SPDX-License-Identifier: Apache-2.0
"""Row-major matrices as Numba pieces: the product of any two, copies with room for whole panels, sums over lanes."""

from __future__ import annotations

from typing import Any

from fastfer.backends.numba._gemm import ROWS, _affine, _tile, panel
from fastfer.backends.numba._numba import inline, piece
from fastfer.backends.numba._simd import Register, compact, fill, fma, lanes, load, mul, splat, store, sub
from fastfer.backends.numba._span import Span, get, no_offsets, put


@inline
def padded(a: Span, columns: int) -> Any:
    """``columns`` rounded up to whole panels."""
    return (columns + panel(a) - 1) // panel(a) * panel(a)


@piece
def product(
    c: Span,
    co: int,
    c_row: int,
    a: Span,
    ao: int,
    a_row: int,
    a_step: int,
    b: Span,
    bo: int,
    b_row: int,
    bias: Span,
    rows: int,
    columns: int,
    depth: int,
    accumulate: int,
) -> None:
    """c = bias + a · b, or c += a · b: c (rows, columns), a(i, k) at ``i·a_row + k·a_step``, b (depth, columns).

    ``b`` is read up to a whole panel beyond its columns; bias has ``columns`` elements or none.
    """
    compact()
    for j in range(0, columns, panel(c)):
        n0, n1 = min(columns - j, lanes(c)), max(0, min(columns - j - lanes(c), lanes(c)))
        for r in range(0, rows, ROWS):
            _tile(
                c, co + r * c_row + j, c_row, a, _affine(ao + r * a_row, a_row, min(ROWS, rows - r)), a_step,
                no_offsets(), b, bo + j, b_row, bias, j, depth, min(ROWS, rows - r), n0, n1, accumulate,
            )  # fmt: skip


@piece
def transpose(to: Span, at: int, row: int, a: Span, ao: int, rows: int, columns: int) -> None:
    """to (columns, row) at ``to[at:]`` = aᵀ for a (rows, columns) at ``a[ao:]``, zeros beyond ``rows``."""
    compact()
    for k in range(columns):
        for i in range(row):
            put(to, at + k * row + i, get(a, ao + i * columns + k) if i < rows else 0.0)


@piece
def copy(to: Span, at: int, row: int, a: Span, ao: int, rows: int, columns: int) -> None:
    """to (rows, row) at ``to[at:]`` = a (rows, columns) at ``a[ao:]``; beyond ``columns`` nothing is written."""
    compact()
    for i in range(rows):
        for c in range(0, columns, lanes(a)):
            n = min(columns - c, lanes(a))
            store(to, at + i * row + c, load(a, ao + i * columns + c, n), n)


@piece
def scale(a: Span, ao: int, columns: int, rows: int, factors: Span, at: int) -> None:
    """Row i of a (rows, columns) at ``a[ao:]`` times ``factors[at + i]``, in place."""
    compact()
    for i in range(rows):
        factor = splat(factors, at + i)
        for c in range(0, columns, lanes(a)):
            n, to = min(columns - c, lanes(a)), ao + i * columns + c
            store(a, to, mul(load(a, to, n), factor), n)


@inline
def lane_sum(scratch: Span, at: int, v: Register) -> Any:
    """Sum of the lanes of ``v`` through ``scratch[at:]``: the even ones in order, and the odd ones."""
    store(scratch, at, v, lanes(scratch))
    even, odd = get(scratch, at), get(scratch, at + 1)
    for i in range(2, lanes(scratch), 2):
        even, odd = even + get(scratch, at + i), odd + get(scratch, at + i + 1)
    return even + odd


@piece
def inner(scratch: Span, at: int, a: Span, ao: int, b: Span, bo: int, count: int) -> Any:
    """Inner product of ``count`` elements; ``scratch[at:]`` has room for a register."""
    compact()
    total = fill(a, 0.0)
    for c in range(0, count, lanes(a)):
        n = min(count - c, lanes(a))
        total = fma(load(a, ao + c, n), load(b, bo + c, n), total)
    return lane_sum(scratch, at, total)


@piece
def square_distance(scratch: Span, at: int, a: Span, ao: int, b: Span, bo: int, count: int) -> Any:
    """Sum of squared differences of ``count`` elements; ``scratch`` as in `inner`."""
    compact()
    total = fill(a, 0.0)
    for c in range(0, count, lanes(a)):
        n = min(count - c, lanes(a))
        diff = sub(load(a, ao + c, n), load(b, bo + c, n))
        total = fma(diff, diff, total)
    return lane_sum(scratch, at, total)
