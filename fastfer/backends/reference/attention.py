# SPDX-License-Identifier: Apache-2.0
"""Dot-product attention (Luong et al. 2015; Vaswani et al. 2017, eq. 1) and additive attention (Bahdanau et al. 2015).

Backward of a = softmax(s): ds = a·(da - sum(a·da)), and sum_j a_ij·da_ij = dout_i · out_i.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _rate(scale: Tensor | None, factor: float) -> float | Tensor:
    return factor if scale is None else scale.reshape(()) * factor


def dot_product_attention_train(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float
) -> tuple[Tensor, Tensor]:
    """Output (B, T, E) and statistics (2, B, T): the largest score of each query, 1 / sum_j exp(score_j - largest)."""
    if not k.shape[1]:
        return q.new_zeros((q.shape[0], q.shape[1], v.shape[2])), q.new_zeros((2, q.shape[0], q.shape[1]))
    scores = (q @ k.transpose(1, 2)) * _rate(scale, factor)
    largest = scores.amax(2)
    total = (scores - largest[:, :, None]).exp().sum(2)
    return torch.softmax(scores, 2) @ v, torch.stack([largest, 1 / total])


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float) -> Tensor:
    """softmax(factor·scale·q kᵀ) v: q (B, T, D), k (B, S, D), v (B, S, E) -> (B, T, E); scale one element or None."""
    return torch.softmax((q @ k.transpose(1, 2)) * _rate(scale, factor), 2) @ v


def dot_product_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float, out: Tensor, stats: Tensor,
    mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v and scale; those not in ``mask`` are empty."""
    rate, none = _rate(scale, factor), q.new_empty(0)
    raw = q @ k.transpose(1, 2)
    weights = (raw * rate - stats[0, :, :, None]).exp() * stats[1, :, :, None]
    delta = (dout * out).sum(2, keepdim=True)
    dscores = weights * (dout @ v.transpose(1, 2) - delta)
    return (
        ((dscores @ k) * rate).contiguous() if mask[0] else none,
        ((dscores.transpose(1, 2) @ q) * rate).contiguous() if mask[1] else none,
        (weights.transpose(1, 2) @ dout).contiguous() if mask[2] else none,
        (dscores * raw).sum().mul(factor).reshape(scale.shape) if mask[3] and scale is not None else none,
    )


def additive_attention_train(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, D), the hidden layer u (B, T, A) and the attention weights (B, T)."""
    u = torch.tanh(torch.nn.functional.linear(torch.cat([x, h], 2), weight, bias))
    weights = torch.softmax(u @ v.reshape(-1) + v_bias, 1)
    return (weights[:, :, None] * x).sum(1), u, weights


def additive_attention(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor) -> Tensor:
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t.

    x, h (B, T, D); weight (A, 2D); bias (A,); v (A,) or (1, A); v_bias (1,) -> (B, D).
    """
    return additive_attention_train(x, h, weight, bias, v, v_bias)[0]


def additive_attention_backward(
    dout: Tensor, x: Tensor, h: Tensor, weight: Tensor, v: Tensor, u: Tensor, weights: Tensor, mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x; h; weight, bias, v and v_bias (the last mask); those not in ``mask`` are empty."""
    dim, none = x.shape[2], x.new_empty(0)
    dweights = (x @ dout[:, :, None]).squeeze(2)
    de = weights * (dweights - (weights * dweights).sum(1, keepdim=True))
    dz = de[:, :, None] * v.reshape(-1) * (1 - u * u)
    dx = (weights[:, :, None] * dout[:, None, :] + dz @ weight[:, :dim]).contiguous() if mask[0] else none
    dh = (dz @ weight[:, dim:]).contiguous() if mask[1] else none
    if not mask[2]:
        return dx, dh, none, none, none, none
    flat = dz.reshape(-1, dz.shape[2])
    dweight = flat.t() @ torch.cat([x, h], 2).reshape(flat.shape[0], 2 * dim)
    dv = (de[:, :, None] * u).sum((0, 1)).reshape(v.shape)
    return dx, dh, dweight.contiguous(), flat.sum(0), dv, de.sum().reshape(1)
