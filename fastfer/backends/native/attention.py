# SPDX-License-Identifier: Apache-2.0
"""Dot-product and additive attention on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import address, empty


def _dot(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float, train: bool
) -> tuple[Tensor, Tensor | None]:
    (batch, queries, depth), (_, keys, width) = q.shape, v.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if not batch * queries * keys:
        return q.new_zeros((batch, queries, width)), q.new_zeros((2, batch, queries)) if train else None
    out = empty(q, batch, queries, width)
    stats = q.new_empty((2, batch, queries)) if train else None
    _C.dot_product_attention_fwd(
        q.dtype == torch.float64, batch, queries, keys, depth, width, q.data_ptr(), k.data_ptr(), v.data_ptr(),
        address(scale), factor, out.data_ptr(), address(stats), num_threads(),
    )  # fmt: skip
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
        dout, q, k, v = dout.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
        _C.dot_product_attention_bwd(
            q.dtype == torch.float64, batch, queries, keys, depth, width, dout.data_ptr(), q.data_ptr(), k.data_ptr(),
            v.data_ptr(), address(scale), factor, out.data_ptr(), stats.data_ptr(), address(grads[0]),
            address(grads[1]), address(grads[2]), address(grads[3]), num_threads(),
        )  # fmt: skip
    return tuple(q.new_empty(0) if grad is None else grad for grad in grads)


def _additive(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor, train: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    (batch, tokens, dim), hidden = x.shape, weight.shape[0]
    x, h, weight, bias, v = x.contiguous(), h.contiguous(), weight.contiguous(), bias.contiguous(), v.contiguous()
    u = empty(x, batch, tokens, hidden) if train else None
    weights = x.new_empty((batch, tokens)) if train else None
    if not x.numel():
        if u is not None and weights is not None and u.numel():  # no features: the score depends on the biases alone
            u.copy_(bias.tanh().expand(u.shape))
            weights.fill_(1 / tokens)
        return x.new_zeros((batch, dim)), u, weights
    out = x.new_empty((batch, dim))
    _C.additive_attention_fwd(
        x.dtype == torch.float64, batch, tokens, dim, hidden, x.data_ptr(), h.data_ptr(), weight.data_ptr(),
        bias.data_ptr(), v.data_ptr(), v_bias.data_ptr(), out.data_ptr(), address(u), address(weights),
        num_threads(),
    )  # fmt: skip
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
        dout, x, h, weight, v = dout.contiguous(), x.contiguous(), h.contiguous(), weight.contiguous(), v.contiguous()
        _C.additive_attention_bwd(
            x.dtype == torch.float64, batch, tokens, dim, hidden, dout.data_ptr(), x.data_ptr(), h.data_ptr(),
            weight.data_ptr(), v.data_ptr(), u.data_ptr(), weights.data_ptr(), address(grads[0]), address(grads[1]),
            address(grads[2]), address(grads[3]), address(grads[4]), address(grads[5]), num_threads(),
        )  # fmt: skip
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)
