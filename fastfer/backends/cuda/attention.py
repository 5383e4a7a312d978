# SPDX-License-Identifier: Apache-2.0
"""Dot-product and additive attention on CUDA tensors, as `fastfer.backends.reference.attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.cuda import norm
from fastfer.backends.cuda.conv2d import tiles
from fastfer.backends.cuda.loader import Launch, compute_dtype, type_name

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


def dot_product_attention_train(
    launch: Launch, q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float
) -> tuple[Tensor, Tensor]:
    """Output (B, T, E) and statistics (2, B, T)."""
    (b, t, d), (s, e) = q.shape, v.shape[1:]
    q, k, v = _dense(q, k, v)
    if not s:
        return q.new_zeros((b, t, e)), torch.zeros_like(_new(q, 2, b, t))
    out, stats, rate = q.new_empty((b, t, e)), _new(q, 2, b, t), _scale(scale, q)
    name = f"attention_fwd<{type_name('attention', q)}>"
    launch(name, q, _grid(b, t, e), THREADS, q, k, v, rate, out, stats, b, t, s, d, e, float(factor))
    return out, stats


def dot_product_attention(
    launch: Launch, q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float
) -> Tensor:
    """softmax(factor·scale·q kᵀ) v."""
    return dot_product_attention_train(launch, q, k, v, scale, factor)[0]


def dot_product_attention_backward(
    launch: Launch, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float, out: Tensor,
    stats: Tensor, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v and scale; those not in ``mask`` are empty."""
    (b, t, d), (s, e), dtype = q.shape, v.shape[1:], type_name("attention", q)
    dout, q, k, v, out = _dense(dout, q, k, v, out)
    rate, delta = _scale(scale, q), _new(q, b, t)
    launch(f"pixel_dots<{dtype}, {DOT_THREADS}>", q, (b, 1, 1), DOT_THREADS, dout, out, 0, delta, t, e)
    dq, dk, dv = (torch.empty_like(x) if flag else x.new_empty(0) for x, flag in zip((q, k, v), mask, strict=False))
    d_scale, scaled = q.new_empty(0), mask[3] and scale is not None
    inputs, sizes = (dout, q, k, v, rate, stats, delta), (b, t, s, d, e, float(factor))
    if mask[0] or scaled:
        grid = _grid(b, t, d)
        partial = _new(q, grid[0], 1)
        targets = (dq if mask[0] else 0, partial if scaled else 0)
        launch(f"attention_bwd_queries<{dtype}>", q, grid, THREADS, *inputs, *targets, *sizes)
        if scaled and scale is not None:
            d_scale = (norm.column_sums(launch, partial) * factor).to(scale.dtype).reshape(scale.shape)
    if mask[1] or mask[2]:
        targets = (dk if mask[1] else 0, dv if mask[2] else 0)
        launch(f"attention_bwd_keys<{dtype}>", q, _grid(b, s, max(d, e)), THREADS, *inputs, *targets, *sizes)
    return dq, dk, dv, d_scale


def additive_attention_train(
    launch: Launch, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, D), the hidden layer u (B, T, A) and the attention weights (B, T)."""
    x, h, weight = _dense(x, h, weight)
    (b, t, d), units, dtype = x.shape, weight.shape[0], type_name("attention", x)
    u, weights, out = _new(x, b, t, units), _new(x, b, t), x.new_empty((b, d))
    grid = (tiles(b * t), tiles(units), 1)
    launch(f"additive_hidden<{dtype}>", x, grid, THREADS, x, h, weight, bias, u, b * t, d, units)
    name = f"additive_fwd<{dtype}, {STEP_THREADS}>"
    launch(name, x, (b, 1, 1), STEP_THREADS, u, x, v.contiguous(), v_bias, weights, out, t, d, units)
    return out, u, weights


def additive_attention(
    launch: Launch, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor
) -> Tensor:
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t."""
    return additive_attention_train(launch, x, h, weight, bias, v, v_bias)[0]


def additive_attention_backward(
    launch: Launch, dout: Tensor, x: Tensor, h: Tensor, weight: Tensor, v: Tensor, u: Tensor, weights: Tensor,
    mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; h; weight, bias, v and v_bias (the last mask); those not in ``mask`` are empty."""
    dout, x, h, weight = _dense(dout, x, h, weight)
    (b, t, d), units, dtype = x.shape, weight.shape[0], type_name("attention", x)
    de, dz, partial = _new(x, b, t), _new(x, b * t, units), _new(x, b, 1, units + 1)
    name = f"additive_bwd<{dtype}, {STEP_THREADS}>"
    launch(name, x, (b, 1, 1), STEP_THREADS, dout, x, u, v.contiguous(), weights, de, dz, partial, t, d, units)
    dx, dh = (torch.empty_like(x) if flag else x.new_empty(0) for flag in mask[:2])
    if mask[0] or mask[1]:
        targets, grid = (dx if mask[0] else 0, dh if mask[1] else 0), (tiles(b * t), tiles(2 * d), 1)
        inputs = (dz, weight, weights, dout)
        launch(f"additive_bwd_input<{dtype}>", x, grid, THREADS, *inputs, *targets, b * t, t, d, units)
    if not mask[2]:
        return dx, dh, *(x.new_empty(0) for _ in range(4))
    part = max(_PART, -(-b * t // _PARTS))
    parts = _new(x, -(-b * t // part), units, 2 * d)
    grid = (tiles(units), tiles(2 * d), len(parts))
    launch(f"additive_bwd_weight<{dtype}>", x, grid, THREADS, dz, x, h, parts, b * t, part, d, units)
    dv = norm.total(launch, partial)[0]
    d_weight, d_bias = norm.total(launch, parts), norm.column_sums(launch, dz)
    return dx, dh, d_weight, d_bias, dv[:units].reshape(v.shape).clone(), dv[units:].clone()
