# SPDX-License-Identifier: Apache-2.0
"""Dot-product and additive attention on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty


def _dot(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float, train: bool
) -> tuple[Tensor, Tensor | None]:
    (batch, queries, depth), (_, keys, width) = q.shape, v.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if not batch * queries * keys:
        return q.new_zeros((batch, queries, width)), q.new_zeros((2, batch, queries)) if train else None
    out = empty(q, batch, queries, width)
    stats = q.new_empty((2, batch, queries)) if train else None
    params = _C.DotProductParams(
        batch=batch,
        queries=queries,
        keys=keys,
        depth=depth,
        width=width,
        q=q,
        k=k,
        v=v,
        scale=scale,
        factor=factor,
        out=out,
        stats=stats,
        threads=num_threads(),
    )
    _C.dot_product_attention_fwd(q.dtype == torch.float64, params)
    return out, stats


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float) -> Tensor:
    """softmax(factor·scale·q kᵀ) v."""
    return _dot(q, k, v, scale, factor, False)[0]


def dot_product_attention_train(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float
) -> tuple[Tensor, Tensor | None]:
    """Output and statistics (2, B, T): the largest score of each query, 1 / sum_j exp(score_j - largest)."""
    return _dot(q, k, v, scale, factor, True)


def dot_product_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float, out: Tensor, stats: Tensor,
    mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v and scale; those not in ``mask`` are empty."""
    (batch, queries, depth), (_, keys, width) = q.shape, v.shape
    busy = batch * queries * keys > 0
    grads = [
        (empty(q, *t.shape) if busy else torch.zeros_like(t)) if wanted and t is not None else None
        for wanted, t in zip(mask, (q, k, v, scale), strict=True)
    ]
    if busy:
        dq, dk, dv, dscale = grads
        params = _C.DotProductParams(
            batch=batch,
            queries=queries,
            keys=keys,
            depth=depth,
            width=width,
            q=q.contiguous(),
            k=k.contiguous(),
            v=v.contiguous(),
            scale=scale,
            factor=factor,
            out=out,
            stats=stats,
            dout=dout.contiguous(),
            dq=dq,
            dk=dk,
            dv=dv,
            dscale=dscale,
            threads=num_threads(),
        )
        _C.dot_product_attention_bwd(q.dtype == torch.float64, params)
    return tuple(q.new_empty(0) if grad is None else grad for grad in grads)


def _additive(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor, train: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    (batch, tokens, dim), hidden = x.shape, weight.shape[0]
    u = empty(x, batch, tokens, hidden) if train else None
    weights = x.new_empty((batch, tokens)) if train else None
    if not x.numel():
        if u is not None and weights is not None and u.numel():  # no features: the score depends on the biases alone
            u.copy_(bias.tanh().expand(u.shape))
            weights.fill_(1 / tokens)
        return x.new_zeros((batch, dim)), u, weights
    out = x.new_empty((batch, dim))
    params = _C.AdditiveParams(
        batch=batch,
        tokens=tokens,
        dim=dim,
        hidden=hidden,
        x=x.contiguous(),
        h=h.contiguous(),
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        v=v.contiguous(),
        v_bias=v_bias,
        out=out,
        u=u,
        weights=weights,
        threads=num_threads(),
    )
    _C.additive_attention_fwd(x.dtype == torch.float64, params)
    return out, u, weights


def additive_attention(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor) -> Tensor:
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t."""
    return _additive(x, h, weight, bias, v, v_bias, False)[0]


def additive_attention_train(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output, the hidden layer u (B, T, A) and the attention weights (B, T)."""
    return _additive(x, h, weight, bias, v, v_bias, True)


def additive_attention_backward(
    dout: Tensor, x: Tensor, h: Tensor, weight: Tensor, v: Tensor, u: Tensor, weights: Tensor, mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x; h; weight, bias, v and v_bias (the last mask); those not in ``mask`` are empty."""
    (batch, tokens, dim), hidden = x.shape, weight.shape[0]
    shapes = (x.shape, x.shape, weight.shape, (hidden,), v.shape, (1,))
    wanted = (mask[0], mask[1], mask[2], mask[2], mask[2], mask[2])
    grads = [
        (empty(x, *shape) if x.numel() else x.new_zeros(shape)) if want else None
        for want, shape in zip(wanted, shapes, strict=True)
    ]
    if x.numel():
        dx, dh, d_weight, d_bias, d_v, d_v_bias = grads
        params = _C.AdditiveParams(
            batch=batch,
            tokens=tokens,
            dim=dim,
            hidden=hidden,
            x=x.contiguous(),
            h=h.contiguous(),
            weight=weight.contiguous(),
            v=v.contiguous(),
            u=u,
            weights=weights,
            dout=dout.contiguous(),
            dx=dx,
            dh=dh,
            d_weight=d_weight,
            d_bias=d_bias,
            d_v=d_v,
            d_v_bias=d_v_bias,
            threads=num_threads(),
        )
        _C.additive_attention_bwd(x.dtype == torch.float64, params)
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)
