# SPDX-License-Identifier: Apache-2.0
"""Dot-product and additive attention on CUDA tensors, as `fastfer.backends.reference.attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, compute_dtype, type_name
from fastfer.backends.cuda.product import tiles
from fastfer.signatures.attention import (
    Additive,
    AdditiveBackward,
    AdditiveGradients,
    AdditiveTrained,
    DotProduct,
    DotProductBackward,
    DotProductGradients,
    DotProductTrained,
)

THREADS, STEP_THREADS, DOT_THREADS = 256, 128, 512
_ROWS, _COLUMNS = 16, 64  # csrc/attention/cuda.cuh
_PART, _PARTS = 4096, 64
"""Least rows of one part of the additive weight gradient, and most parts."""


def _new(like: Tensor, *size: int) -> Tensor:
    """Memory in the compute dtype."""
    return torch.empty(size, dtype=compute_dtype(like), device=like.device)


def _grid(batch: int, rows: int, columns: int) -> tuple[int, int, int]:
    return batch * -(-rows // _ROWS), max(-(-columns // _COLUMNS), 1), 1


def _dense(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in tensors)


def _scale(scale: Tensor | None, like: Tensor) -> Tensor | int:
    return 0 if scale is None else scale.to(compute_dtype(like))


def dot_product_attention_train(launch: Launch, a: DotProduct) -> DotProductTrained:
    """Output and statistics."""
    (b, t, d), (s, e) = a.q.shape, a.v.shape[1:]
    q, k, v = _dense(a.q, a.k, a.v)
    if not s:
        return DotProductTrained(q.new_zeros((b, t, e)), torch.zeros_like(_new(q, 2, b, t)))
    out, stats, rate = q.new_empty((b, t, e)), _new(q, 2, b, t), _scale(a.scale, q)
    name = f"attention_fwd<{type_name('attention', q)}>"
    launch(name, q, _grid(b, t, e), THREADS, q, k, v, rate, out, stats, b, t, s, d, e, float(a.factor))
    return DotProductTrained(out, stats)


def dot_product_attention(launch: Launch, a: DotProduct) -> Tensor:
    """softmax(factor·scale·q kᵀ) v."""
    return dot_product_attention_train(launch, a).out


def dot_product_attention_backward(launch: Launch, a: DotProductBackward) -> DotProductGradients:
    """Gradients of q, k, v and scale."""
    (b, t, d), (s, e), dtype = a.q.shape, a.v.shape[1:], type_name("attention", a.q)
    dout, q, k, v, out = _dense(a.d_out, a.q, a.k, a.v, a.out)
    scale, needs = a.scale, a.needs
    rate, delta = _scale(scale, q), _new(q, b, t)
    launch(f"pixel_dots<{dtype}, {DOT_THREADS}>", q, (b, 1, 1), DOT_THREADS, dout, out, 0, delta, t, e)
    wanted = ((q, needs.q), (k, needs.k), (v, needs.v))
    dq, dk, dv = (torch.empty_like(x) if flag else x.new_empty(0) for x, flag in wanted)
    d_scale, scaled = q.new_empty(0), needs.scale and scale is not None
    inputs, sizes = (dout, q, k, v, rate, a.stats, delta), (b, t, s, d, e, float(a.factor))
    if needs.q or scaled:
        grid = _grid(b, t, d)
        partial = _new(q, grid[0], 1)
        targets = (dq if needs.q else 0, partial if scaled else 0)
        launch(f"attention_bwd_queries<{dtype}>", q, grid, THREADS, *inputs, *targets, *sizes)
        if scaled and scale is not None:
            d_scale = (norm.column_sums(launch, partial) * a.factor).to(scale.dtype).reshape(scale.shape)
    if needs.k or needs.v:
        targets = (dk if needs.k else 0, dv if needs.v else 0)
        launch(f"attention_bwd_keys<{dtype}>", q, _grid(b, s, max(d, e)), THREADS, *inputs, *targets, *sizes)
    return DotProductGradients(dq, dk, dv, d_scale)


def additive_attention_train(launch: Launch, a: Additive) -> AdditiveTrained:
    """Output, the hidden layer u and the attention weights."""
    x, h, weight = _dense(a.x, a.h, a.weight)
    (b, t, d), units, dtype = x.shape, weight.shape[0], type_name("attention", x)
    u, weights, out = _new(x, b, t, units), _new(x, b, t), x.new_empty((b, d))
    grid = (tiles(b * t), tiles(units), 1)
    launch(f"additive_hidden<{dtype}>", x, grid, THREADS, x, h, weight, a.bias, u, b * t, d, units)
    name = f"additive_fwd<{dtype}, {STEP_THREADS}>"
    launch(name, x, (b, 1, 1), STEP_THREADS, u, x, a.v.contiguous(), a.v_bias, weights, out, t, d, units)
    return AdditiveTrained(out, u, weights)


def additive_attention(launch: Launch, a: Additive) -> Tensor:
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t."""
    return additive_attention_train(launch, a).out


def additive_attention_backward(launch: Launch, a: AdditiveBackward) -> AdditiveGradients:
    """Gradients of x; h; weight, bias, v and v_bias."""
    dout, x, h, weight = _dense(a.d_out, a.x, a.h, a.weight)
    v, needs = a.v, a.needs
    (b, t, d), units, dtype = x.shape, weight.shape[0], type_name("attention", x)
    de, dz, partial = _new(x, b, t), _new(x, b * t, units), _new(x, b, 1, units + 1)
    name = f"additive_bwd<{dtype}, {STEP_THREADS}>"
    launch(name, x, (b, 1, 1), STEP_THREADS, dout, x, a.u, v.contiguous(), a.weights, de, dz, partial, t, d, units)
    dx, dh = (torch.empty_like(x) if flag else x.new_empty(0) for flag in (needs.x, needs.h))
    if needs.x or needs.h:
        targets, grid = (dx if needs.x else 0, dh if needs.h else 0), (tiles(b * t), tiles(2 * d), 1)
        inputs = (dz, weight, a.weights, dout)
        launch(f"additive_bwd_input<{dtype}>", x, grid, THREADS, *inputs, *targets, b * t, t, d, units)
    if not needs.params:
        return AdditiveGradients(dx, dh, *(x.new_empty(0) for _ in range(4)))
    part = max(_PART, -(-b * t // _PARTS))
    parts = _new(x, -(-b * t // part), units, 2 * d)
    grid = (tiles(units), tiles(2 * d), len(parts))
    launch(f"additive_bwd_weight<{dtype}>", x, grid, THREADS, dz, x, h, parts, b * t, part, d, units)
    dv = norm.total(launch, partial)
    d_weight, d_bias = norm.total(launch, parts).view(weight.shape), norm.column_sums(launch, dz)
    return AdditiveGradients(dx, dh, d_weight, d_bias, dv[:units].reshape(v.shape).clone(), dv[units:].clone())
