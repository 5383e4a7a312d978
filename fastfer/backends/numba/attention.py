# SPDX-License-Identifier: Apache-2.0
"""Dot-product and additive attention on Numba, with the functions of the reference backend."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.backends.numba import _additive, _softmax
from fastfer.backends.numba._numba import Array, chunks
from fastfer.backends.numba._simd import REGISTER_BYTES

_PART_ELEMENTS = 1 << 22
"""Elements of weight gradient that all chunks together may hold: 16 MiB in float32."""


def _starts(items: int, count: int) -> Array:
    return np.arange(count + 1, dtype=np.int64) * items // count


def _rate(q: Tensor, scale: Tensor | None, factor: float) -> Tensor:
    return q.new_full((1,), factor) if scale is None else scale.reshape(1) * factor


def _dot(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float, train: bool) -> tuple[Tensor, Tensor]:
    (batch, queries, depth), (_, keys, width) = q.shape, v.shape
    stats = q.new_zeros((2, batch, queries) if train else 0)
    if not batch * queries * keys:
        return q.new_zeros((batch, queries, width)), stats
    out = q.new_empty((batch, queries, width))
    units, work = batch * -(-queries // _softmax.QUERIES), batch * queries * keys * (depth + width)
    count = chunks(units, work)
    _softmax.dot_forward(
        q.dtype, count, work, out, stats, q.contiguous(), k.contiguous(), v.contiguous(), _rate(q, scale, factor),
        _starts(units, count), queries, keys, depth, width,
    )  # fmt: skip
    return out, stats


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float) -> Tensor:
    """softmax(factor·scale·q kᵀ) v."""
    return _dot(q, k, v, scale, factor, False)[0]


def dot_product_attention_train(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float
) -> tuple[Tensor, Tensor]:
    """Output and statistics (2, B, T): the largest score of each query, 1 / sum_j exp(score_j - largest)."""
    return _dot(q, k, v, scale, factor, True)


def dot_product_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float, out: Tensor, stats: Tensor,
    mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v and scale; those not in ``mask`` are empty."""
    (batch, queries, depth), (_, keys, width) = q.shape, v.shape
    busy = batch * queries * keys > 0
    make = torch.empty if busy else torch.zeros
    dq, dk, dv = (make(t.shape if wanted else 0, dtype=q.dtype) for wanted, t in zip(mask, (q, k, v), strict=False))
    none = q.new_empty(0)
    if not busy:
        return dq, dk, dv, torch.zeros_like(scale) if mask[3] and scale is not None else none
    key_blocks, query_blocks = -(-keys // _softmax.KEYS), -(-queries // _softmax.QUERIES)
    work = 2 * batch * queries * keys * (depth + width)
    parts = torch.zeros(batch * max(key_blocks, query_blocks), dtype=torch.float64, device="cpu")
    tensors = dout.contiguous(), q.contiguous(), k.contiguous(), v.contiguous(), out, stats, _rate(q, scale, factor)
    passes = [(1, key_blocks)] if key_blocks == 1 or mask[1] or mask[2] else []
    passes += [(0, query_blocks)] if key_blocks > 1 and (mask[0] or mask[3]) else []
    for by_keys, blocks in passes:
        count = chunks(batch * blocks, work)
        _softmax.dot_backward(
            q.dtype, count, work, dq, dk, dv, parts, *tensors, _starts(batch * blocks, count), queries, keys, depth,
            width, by_keys,
        )  # fmt: skip
    dscale = none if not mask[3] or scale is None else (parts.sum() * factor).to(q.dtype).reshape(scale.shape)
    return dq, dk, dv, dscale


def _panel(x: Tensor) -> int:
    return 2 * REGISTER_BYTES // x.element_size()


def _padded(x: Tensor) -> Tensor:
    """``x`` dense, with zeros behind its last dimension up to whole panels."""
    return F.pad(x, (0, -x.shape[-1] % _panel(x))).contiguous()


def additive_attention_train(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, the hidden layer u (B, T, A) and the attention weights (B, T)."""
    (batch, tokens, dim), hidden = x.shape, weight.shape[0]
    out = x.new_zeros((batch, dim))
    u, weights = x.new_empty((batch, tokens, hidden)), x.new_empty((batch, tokens))
    if not batch * tokens:
        return out, u, weights
    x, h, rows = x.contiguous(), h.contiguous(), batch * tokens
    work = 2 * rows * dim * hidden + rows * hidden
    count = chunks(-(-rows // _additive.BLOCK), work)
    _additive.hidden_forward(
        x.dtype, count, work, u, weights, x, h, _padded(weight.t()), bias.contiguous(), v.contiguous(), v_bias,
        _starts(rows, count), dim, hidden,
    )  # fmt: skip
    work = rows * (dim + 32)
    count = chunks(batch, work)
    _additive.sequence_forward(x.dtype, count, work, out, weights, x, _starts(batch, count), tokens, dim)
    return out, u, weights


def additive_attention(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor) -> Tensor:
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t."""
    return additive_attention_train(x, h, weight, bias, v, v_bias)[0]


def additive_attention_backward(
    dout: Tensor, x: Tensor, h: Tensor, weight: Tensor, v: Tensor, u: Tensor, weights: Tensor, mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x; h; weight, bias, v and v_bias (the last mask); those not in ``mask`` are empty."""
    (batch, tokens, dim), hidden, rows = x.shape, weight.shape[0], x.shape[0] * x.shape[1]
    none = x.new_empty(0)
    dx, dh = (x.new_empty(x.shape) if wanted else x.new_empty(0) for wanted in mask[:2])
    de, panels = x.new_zeros(rows), _padded(weight.view(hidden, 2, dim).transpose(0, 1))
    work = 6 * rows * dim * hidden
    count = chunks(-(-rows // _additive.BLOCK), work, max(1, min(16, _PART_ELEMENTS // max(1, panels.numel()))))
    parts = x.new_zeros((count, *panels.shape) if mask[2] else 0)
    sums = torch.zeros((count, 2, hidden) if mask[2] else 0, dtype=torch.float64, device="cpu")
    if rows:
        x, h = x.contiguous(), h.contiguous()
        split = chunks(batch, rows * dim)
        _additive.sequence_backward(
            x.dtype, split, rows * dim, de, dx, dout.contiguous(), weights, x, _starts(batch, split), tokens, dim
        )
        _additive.hidden_backward(
            x.dtype, count, work, dx, dh, parts, sums, de, u, x, h, panels, v.contiguous(), _starts(rows, count), dim,
            hidden,
        )  # fmt: skip
    if not mask[2]:
        return dx, dh, none, x.new_empty(0), x.new_empty(0), x.new_empty(0)
    dweight = parts.sum(0)[:, :, :dim].transpose(0, 1).reshape(weight.shape).contiguous()
    dbias, dv = sums.sum(0).to(x.dtype)
    return dx, dh, dweight, dbias.clone(), dv.reshape(v.shape).clone(), de.double().sum().to(x.dtype).reshape(1)
