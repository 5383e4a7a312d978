# SPDX-License-Identifier: Apache-2.0
"""Activations and their derivatives; codes as ``fastfer._types.ACTIVATIONS``.

Vectorised over elements in storage order; parallel over chunks of them. ``apply`` and ``derive`` work on one register
and are what the other families fuse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.numba._numba import Pointer, arguments, chunks, inline, kernel
from fastfer.backends.numba._simd import (
    Register,
    add,
    div,
    exp2_int,
    fill,
    fma,
    is_float32,
    lanes,
    load,
    mul,
    rint,
    store,
    sub,
    where_le,
    where_lt,
)
from fastfer.backends.numba._span import Span
from fastfer.signatures.elementwise import Activation, ActivationBackward

_RELU, _RELU6, _HARDSWISH, _HARDSIGMOID, _SILU, _SIGMOID = range(1, 7)


@inline
def exp(v: Register) -> Register:
    """exp(v) to about 1 ulp: 2^n times the Taylor series on |r| <= ln(2)/2; 0 below normal numbers, NaN kept."""
    single = is_float32(v)
    low, high = (-87.0, 89.0) if single else (-708.0, 710.0)
    v = where_lt(v, fill(v, low), fill(v, low), v)
    n = rint(mul(where_lt(v, fill(v, high), v, fill(v, high)), fill(v, 1.4426950408889634)))
    # ln(2) in two parts, the first with trailing zeros so that n times it is exact.
    r = fma(n, fill(v, -0.693145751953125 if single else -6.93147180369123816490e-01), v)
    r = fma(n, fill(v, -1.42860682030941723212e-6 if single else -1.90821492927058770002e-10), r)
    p = fill(v, 1.0 / 5040)
    if not single:
        p = fill(v, 1.0 / 6227020800)
        p = fma(p, r, fill(v, 1.0 / 479001600))
        p = fma(p, r, fill(v, 1.0 / 39916800))
        p = fma(p, r, fill(v, 1.0 / 3628800))
        p = fma(p, r, fill(v, 1.0 / 362880))
        p = fma(p, r, fill(v, 1.0 / 40320))
        p = fma(p, r, fill(v, 1.0 / 5040))
    p = fma(p, r, fill(v, 1.0 / 720))
    p = fma(p, r, fill(v, 1.0 / 120))
    p = fma(p, r, fill(v, 1.0 / 24))
    p = fma(p, r, fill(v, 1.0 / 6))
    p = fma(p, r, fill(v, 0.5))
    p = fma(p, r, fill(v, 1.0))
    return mul(fma(p, r, fill(v, 1.0)), exp2_int(n))


@inline
def _clamp06(v: Register) -> Register:
    """min(max(v, 0), 6), NaN kept."""
    v = where_lt(v, fill(v, 0.0), fill(v, 0.0), v)
    return where_lt(fill(v, 6.0), v, fill(v, 6.0), v)


@inline
def _exp_negative_plus_one(v: Register) -> Register:
    return add(exp(sub(fill(v, 0.0), v)), fill(v, 1.0))


@inline
def apply(v: Register, act: int) -> Register:
    """act(v)."""
    if act == _RELU:
        return where_lt(v, fill(v, 0.0), fill(v, 0.0), v)
    if act == _RELU6:
        return _clamp06(v)
    if act == _HARDSWISH:
        return mul(v, div(_clamp06(add(v, fill(v, 3.0))), fill(v, 6.0)))
    if act == _HARDSIGMOID:
        return div(_clamp06(add(v, fill(v, 3.0))), fill(v, 6.0))
    if act == _SILU:
        return div(v, _exp_negative_plus_one(v))
    if act == _SIGMOID:
        return div(fill(v, 1.0), _exp_negative_plus_one(v))
    return v


@inline
def derive(g: Register, v: Register, act: int) -> Register:
    """g · act'(v), with torch's choice at the kinks and for NaN: relu passes ``g``, relu6 and hardsigmoid give 0."""
    zero, one = fill(v, 0.0), fill(v, 1.0)
    if act == _RELU:
        return where_le(v, zero, zero, g)
    if act == _RELU6:
        return where_lt(zero, v, where_lt(v, fill(v, 6.0), g, zero), zero)
    if act == _HARDSWISH:
        slope = fma(v, fill(v, 1.0 / 3.0), fill(v, 0.5))
        return where_le(v, fill(v, -3.0), zero, where_le(fill(v, 3.0), v, g, mul(g, slope)))
    if act == _HARDSIGMOID:
        return where_lt(fill(v, -3.0), v, where_lt(v, fill(v, 3.0), div(g, fill(v, 6.0)), zero), zero)
    if act == _SILU:
        s = div(one, _exp_negative_plus_one(v))
        return mul(g, mul(s, fma(v, sub(one, s), one)))
    if act == _SIGMOID:
        s = div(one, _exp_negative_plus_one(v))
        return mul(g, mul(s, sub(one, s)))
    return g


@inline
def _forward_at(y: Span, x: Span, i: int, n: int, act: int) -> None:
    store(y, i, apply(load(x, i, n), act), n)


@inline
def _backward_at(dx: Span, dy: Span, x: Span, i: int, n: int, act: int) -> None:
    store(dx, i, derive(load(dy, i, n), load(x, i, n), act), n)


@kernel
def _forward(pointer: Pointer, chunk: int) -> None:
    y, x, act, count = arguments(pointer, "FFii")
    start, stop = x.size * chunk // count, x.size * (chunk + 1) // count
    body = stop - (stop - start) % lanes(x)
    for i in range(start, body, lanes(x)):
        _forward_at(y, x, i, lanes(x), act)
    _forward_at(y, x, body, stop - body, act)


@kernel
def _backward(pointer: Pointer, chunk: int) -> None:
    dx, dy, x, act, count = arguments(pointer, "FFFii")
    start, stop = x.size * chunk // count, x.size * (chunk + 1) // count
    body = stop - (stop - start) % lanes(x)
    for i in range(start, body, lanes(x)):
        _backward_at(dx, dy, x, i, lanes(x), act)
    _backward_at(dx, dy, x, body, stop - body, act)


def _dense(x: Tensor, like: Tensor) -> Tensor:
    """``x`` with the strides of ``like``."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def activation(a: Activation) -> Tensor:
    """act(x) with the strides of ``torch.empty_like(x)``."""
    y, size = torch.empty_like(a.x), a.x.numel()
    if size:
        count = chunks(size, size)
        _forward(a.x.dtype, count, size, y, _dense(a.x, y), a.act, count)
    return y


def activation_backward(a: ActivationBackward) -> Tensor:
    """d_out · act'(x) with the strides of ``torch.empty_like(x)``."""
    dx, size = torch.empty_like(a.x), a.x.numel()
    if size:
        count = chunks(size, size)
        _backward(a.x.dtype, count, size, dx, _dense(a.d_out, dx), _dense(a.x, dx), a.act, count)
    return dx
