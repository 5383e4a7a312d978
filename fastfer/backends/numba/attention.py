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

_PART_ELEMENTS = 1 << 22
"""Elements of weight gradient that all chunks together may hold: 16 MiB in float32."""


def _starts(items: int, count: int) -> Array:
    return np.arange(count + 1, dtype=np.int64) * items // count


def _rate(q: Tensor, scale: Tensor | None, factor: float) -> Tensor:
    return q.new_full((1,), factor) if scale is None else scale.reshape(1) * factor


def _dot(a: DotProduct, train: bool) -> DotProductTrained:
    q, k, v, scale, factor = a
    (batch, queries, depth), (_, keys, width) = q.shape, v.shape
    stats = q.new_zeros((2, batch, queries) if train else 0)
    if not batch * queries * keys:
        return DotProductTrained(q.new_zeros((batch, queries, width)), stats)
    out = q.new_empty((batch, queries, width))
    units, work = batch * -(-queries // _softmax.QUERIES), batch * queries * keys * (depth + width)
    count = chunks(units, work)
    _softmax.dot_forward(
        q.dtype,
        count,
        work,
        out,
        stats,
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        _rate(q, scale, factor),
        _starts(units, count),
        queries,
        keys,
        depth,
        width,
    )
    return DotProductTrained(out, stats)


def dot_product_attention(a: DotProduct) -> Tensor:
    """softmax(factor·scale·q kᵀ) v."""
    return _dot(a, False).out


def dot_product_attention_train(a: DotProduct) -> DotProductTrained:
    """Output and statistics."""
    return _dot(a, True)


def dot_product_attention_backward(a: DotProductBackward) -> DotProductGradients:
    """Gradients of q, k, v and scale."""
    q, k, v, needs = a.q, a.k, a.v, a.needs
    (batch, queries, depth), (_, keys, width) = q.shape, v.shape
    busy = batch * queries * keys > 0
    make = torch.empty if busy else torch.zeros
    dq, dk, dv = (
        make(t.shape if wanted else 0, dtype=q.dtype) for wanted, t in ((needs.q, q), (needs.k, k), (needs.v, v))
    )
    none = q.new_empty(0)
    if not busy:
        d_scale = torch.zeros_like(a.scale) if needs.scale and a.scale is not None else none
        return DotProductGradients(dq, dk, dv, d_scale)
    key_blocks, query_blocks = -(-keys // _softmax.KEYS), -(-queries // _softmax.QUERIES)
    work = 2 * batch * queries * keys * (depth + width)
    parts = torch.zeros(batch * max(key_blocks, query_blocks), dtype=torch.float64, device="cpu")
    dout, rate = a.d_out.contiguous(), _rate(q, a.scale, a.factor)
    tensors = dout, q.contiguous(), k.contiguous(), v.contiguous(), a.out, a.stats, rate
    passes = [(1, key_blocks)] if key_blocks == 1 or needs.k or needs.v else []
    passes += [(0, query_blocks)] if key_blocks > 1 and (needs.q or needs.scale) else []
    for by_keys, blocks in passes:
        count = chunks(batch * blocks, work)
        _softmax.dot_backward(
            q.dtype,
            count,
            work,
            dq,
            dk,
            dv,
            parts,
            *tensors,
            _starts(batch * blocks, count),
            queries,
            keys,
            depth,
            width,
            by_keys,
        )
    d_scale = none
    if needs.scale and a.scale is not None:
        d_scale = (parts.sum() * a.factor).to(q.dtype).reshape(a.scale.shape)
    return DotProductGradients(dq, dk, dv, d_scale)


def _panel(x: Tensor) -> int:
    return 2 * REGISTER_BYTES // x.element_size()


def _padded(x: Tensor) -> Tensor:
    """``x`` dense, with zeros after its last dimension up to whole panels."""
    return F.pad(x, (0, -x.shape[-1] % _panel(x))).contiguous()


def additive_attention_train(a: Additive) -> AdditiveTrained:
    """Output, the hidden layer u and the attention weights."""
    x, h, weight, bias, v, v_bias = a
    (batch, tokens, dim), hidden = x.shape, weight.shape[0]
    out = x.new_zeros((batch, dim))
    u, weights = x.new_empty((batch, tokens, hidden)), x.new_empty((batch, tokens))
    if not batch * tokens:
        return AdditiveTrained(out, u, weights)
    x, h, rows = x.contiguous(), h.contiguous(), batch * tokens
    work = 2 * rows * dim * hidden + rows * hidden
    count = chunks(-(-rows // _additive.BLOCK), work)
    _additive.hidden_forward(
        x.dtype,
        count,
        work,
        u,
        weights,
        x,
        h,
        _padded(weight.t()),
        bias.contiguous(),
        v.contiguous(),
        v_bias,
        _starts(rows, count),
        dim,
        hidden,
    )
    work = rows * (dim + 32)
    count = chunks(batch, work)
    _additive.sequence_forward(x.dtype, count, work, out, weights, x, _starts(batch, count), tokens, dim)
    return AdditiveTrained(out, u, weights)


def additive_attention(a: Additive) -> Tensor:
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t."""
    return additive_attention_train(a).out


def additive_attention_backward(a: AdditiveBackward) -> AdditiveGradients:
    """Gradients of x; h; weight, bias, v and v_bias."""
    x, h, weight, v, needed = a.x, a.h, a.weight, a.v, a.needs.params
    (batch, tokens, dim), hidden, rows = x.shape, weight.shape[0], x.shape[0] * x.shape[1]
    none = x.new_empty(0)
    dx, dh = (x.new_empty(x.shape if wanted else 0) for wanted in (a.needs.x, a.needs.h))
    de, panels = x.new_zeros(rows), _padded(weight.view(hidden, 2, dim).transpose(0, 1))
    work = 6 * rows * dim * hidden
    count = chunks(-(-rows // _additive.BLOCK), work, max(1, min(16, _PART_ELEMENTS // max(1, panels.numel()))))
    parts = x.new_zeros((count, *panels.shape) if needed else 0)
    sums = torch.zeros((count, 2, hidden) if needed else 0, dtype=torch.float64, device="cpu")
    if rows:
        x, h = x.contiguous(), h.contiguous()
        split = chunks(batch, rows * dim)
        _additive.sequence_backward(
            x.dtype, split, rows * dim, de, dx, a.d_out.contiguous(), a.weights, x, _starts(batch, split), tokens, dim
        )
        _additive.hidden_backward(
            x.dtype,
            count,
            work,
            dx,
            dh,
            parts,
            sums,
            de,
            a.u,
            x,
            h,
            panels,
            v.contiguous(),
            _starts(rows, count),
            dim,
            hidden,
        )
    if not needed:
        return AdditiveGradients(dx, dh, none, x.new_empty(0), x.new_empty(0), x.new_empty(0))
    dweight = parts.sum(0)[:, :, :dim].transpose(0, 1).reshape(weight.shape).contiguous()
    dbias, dv = sums.sum(0).to(x.dtype)
    d_v_bias = de.double().sum().to(x.dtype).reshape(1)
    return AdditiveGradients(dx, dh, dweight, dbias.clone(), dv.reshape(v.shape).clone(), d_v_bias)
