# SPDX-License-Identifier: Apache-2.0
"""Dot-product attention (Luong et al. 2015; Vaswani et al. 2017, eq. 1) and additive attention (Bahdanau et al. 2015).

Backward of a = softmax(s): ds = a·(da - sum(a·da)), and sum_j a_ij·da_ij = dout_i · out_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


def _rate(scale: Tensor | None, factor: float) -> float | Tensor:
    return factor if scale is None else scale.reshape(()) * factor


def dot_product_attention_train(a: DotProduct) -> DotProductTrained:
    """Output and statistics."""
    q, k, v, scale, factor = a
    if not k.shape[1]:
        out = q.new_zeros((q.shape[0], q.shape[1], v.shape[2]))
        return DotProductTrained(out, q.new_zeros((2, q.shape[0], q.shape[1])))
    scores = (q @ k.transpose(1, 2)) * _rate(scale, factor)
    largest = scores.amax(2)
    total = (scores - largest[:, :, None]).exp().sum(2)
    return DotProductTrained(torch.softmax(scores, 2) @ v, torch.stack([largest, 1 / total]))


def dot_product_attention(a: DotProduct) -> Tensor:
    """softmax(factor·scale·q kᵀ) v."""
    return torch.softmax((a.q @ a.k.transpose(1, 2)) * _rate(a.scale, a.factor), 2) @ a.v


def dot_product_attention_backward(a: DotProductBackward) -> DotProductGradients:
    """Gradients of q, k, v and scale."""
    rate, none, largest, inverse = _rate(a.scale, a.factor), a.q.new_empty(0), a.stats[0], a.stats[1]
    raw = a.q @ a.k.transpose(1, 2)
    weights = (raw * rate - largest[:, :, None]).exp() * inverse[:, :, None]
    delta = (a.d_out * a.out).sum(2, keepdim=True)
    dscores = weights * (a.d_out @ a.v.transpose(1, 2) - delta)
    d_scale = none
    if a.needs.scale and a.scale is not None:
        d_scale = (dscores * raw).sum().mul(a.factor).reshape(a.scale.shape)
    return DotProductGradients(
        d_q=((dscores @ a.k) * rate).contiguous() if a.needs.q else none,
        d_k=((dscores.transpose(1, 2) @ a.q) * rate).contiguous() if a.needs.k else none,
        d_v=(weights.transpose(1, 2) @ a.d_out).contiguous() if a.needs.v else none,
        d_scale=d_scale,
    )


def additive_attention_train(a: Additive) -> AdditiveTrained:
    """Output, the hidden layer u and the attention weights."""
    u = torch.tanh(torch.nn.functional.linear(torch.cat([a.x, a.h], 2), a.weight, a.bias))
    weights = torch.softmax(u @ a.v.reshape(-1) + a.v_bias, 1)
    return AdditiveTrained((weights[:, :, None] * a.x).sum(1), u, weights)


def additive_attention(a: Additive) -> Tensor:
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t."""
    return additive_attention_train(a).out


def additive_attention_backward(a: AdditiveBackward) -> AdditiveGradients:
    """Gradients of x; h; weight, bias, v and v_bias."""
    x, weights, dim, none = a.x, a.weights, a.x.shape[2], a.x.new_empty(0)
    dweights = (x @ a.d_out[:, :, None]).squeeze(2)
    de = weights * (dweights - (weights * dweights).sum(1, keepdim=True))
    dz = de[:, :, None] * a.v.reshape(-1) * (1 - a.u * a.u)
    d_x = d_h = none
    if a.needs.x:
        d_x = (weights[:, :, None] * a.d_out[:, None, :] + dz @ a.weight[:, :dim]).contiguous()
    if a.needs.h:
        d_h = (dz @ a.weight[:, dim:]).contiguous()
    if not a.needs.params:
        return AdditiveGradients(d_x, d_h, none, none, none, none)
    flat = dz.reshape(-1, dz.shape[2])
    d_weight = flat.t() @ torch.cat([x, a.h], 2).reshape(flat.shape[0], 2 * dim)
    d_v = (de[:, :, None] * a.u).sum((0, 1)).reshape(a.v.shape)
    return AdditiveGradients(d_x, d_h, d_weight.contiguous(), flat.sum(0), d_v, de.sum().reshape(1))
