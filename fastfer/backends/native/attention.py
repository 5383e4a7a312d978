# SPDX-License-Identifier: Apache-2.0
"""Dot-product and additive attention on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty
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


def _dot(a: DotProduct, stats: Tensor | None) -> Tensor:
    """The output; ``stats`` are written in training."""
    (batch, queries, depth), (_, keys, width) = a.q.shape, a.v.shape
    q, k, v = a.q.contiguous(), a.k.contiguous(), a.v.contiguous()
    if not batch * queries * keys:
        return q.new_zeros((batch, queries, width))
    out = empty(q, batch, queries, width)
    params = _C.DotProductParams(
        batch=batch,
        queries=queries,
        keys=keys,
        depth=depth,
        width=width,
        q=q,
        k=k,
        v=v,
        scale=a.scale,
        factor=a.factor,
        out=out,
        stats=stats,
        threads=num_threads(),
    )
    _C.dot_product_attention_fwd(q.dtype == torch.float64, params)
    return out


def dot_product_attention(a: DotProduct) -> Tensor:
    """softmax(factor·scale·q kᵀ) v."""
    return _dot(a, None)


def dot_product_attention_train(a: DotProduct) -> DotProductTrained:
    """Output and statistics."""
    shape = (2, a.q.shape[0], a.q.shape[1])
    stats = a.q.new_empty(shape) if a.k.shape[1] else a.q.new_zeros(shape)
    return DotProductTrained(_dot(a, stats), stats)


def dot_product_attention_backward(a: DotProductBackward) -> DotProductGradients:
    """Gradients of q, k, v and scale."""
    q, k, v = a.q, a.k, a.v
    (batch, queries, depth), (_, keys, width) = q.shape, v.shape
    busy = batch * queries * keys > 0

    def wanted(t: Tensor | None, needed: bool) -> Tensor | None:
        if not needed or t is None:
            return None
        return empty(q, *t.shape) if busy else torch.zeros_like(t)

    dq, dk, dv = wanted(q, a.needs.q), wanted(k, a.needs.k), wanted(v, a.needs.v)
    dscale = wanted(a.scale, a.needs.scale)
    if busy:
        params = _C.DotProductParams(
            batch=batch,
            queries=queries,
            keys=keys,
            depth=depth,
            width=width,
            q=q.contiguous(),
            k=k.contiguous(),
            v=v.contiguous(),
            scale=a.scale,
            factor=a.factor,
            out=a.out,
            stats=a.stats,
            dout=a.d_out.contiguous(),
            dq=dq,
            dk=dk,
            dv=dv,
            dscale=dscale,
            threads=num_threads(),
        )
        _C.dot_product_attention_bwd(q.dtype == torch.float64, params)
    return DotProductGradients(*(q.new_empty(0) if grad is None else grad for grad in (dq, dk, dv, dscale)))


def _additive(a: Additive, u: Tensor | None, weights: Tensor | None) -> Tensor:
    """The output; the hidden layer and the attention weights are written in training."""
    x, h, weight, bias, v, v_bias = a
    (batch, tokens, dim), hidden = x.shape, weight.shape[0]
    if not x.numel():
        if u is not None and weights is not None and u.numel():  # no features: the score depends on the biases alone
            u.copy_(bias.tanh().expand(u.shape))
            weights.fill_(1 / tokens)
        return x.new_zeros((batch, dim))
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
    return out


def additive_attention(a: Additive) -> Tensor:
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t."""
    return _additive(a, None, None)


def additive_attention_train(a: Additive) -> AdditiveTrained:
    """Output, the hidden layer u and the attention weights."""
    batch, tokens, _ = a.x.shape
    u, weights = empty(a.x, batch, tokens, a.weight.shape[0]), a.x.new_empty((batch, tokens))
    return AdditiveTrained(_additive(a, u, weights), u, weights)


def additive_attention_backward(a: AdditiveBackward) -> AdditiveGradients:
    """Gradients of x; h; weight, bias, v and v_bias."""
    x, h, weight, v, needed = a.x, a.h, a.weight, a.v, a.needs.params
    (batch, tokens, dim), hidden = x.shape, weight.shape[0]

    def wanted(needed: bool, *shape: int) -> Tensor | None:
        if not needed:
            return None
        return empty(x, *shape) if x.numel() else x.new_zeros(shape)

    dx, dh, d_weight = wanted(a.needs.x, *x.shape), wanted(a.needs.h, *x.shape), wanted(needed, *weight.shape)
    d_bias, d_v, d_v_bias = wanted(needed, hidden), wanted(needed, *v.shape), wanted(needed, 1)
    if x.numel():
        params = _C.AdditiveParams(
            batch=batch,
            tokens=tokens,
            dim=dim,
            hidden=hidden,
            x=x.contiguous(),
            h=h.contiguous(),
            weight=weight.contiguous(),
            v=v.contiguous(),
            u=a.u,
            weights=a.weights,
            dout=a.d_out.contiguous(),
            dx=dx,
            dh=dh,
            d_weight=d_weight,
            d_bias=d_bias,
            d_v=d_v,
            d_v_bias=d_v_bias,
            threads=num_threads(),
        )
        _C.additive_attention_bwd(x.dtype == torch.float64, params)
    grads = (dx, dh, d_weight, d_bias, d_v, d_v_bias)
    return AdditiveGradients(*(x.new_empty(0) if grad is None else grad for grad in grads))
