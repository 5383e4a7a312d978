# SPDX-License-Identifier: Apache-2.0
"""Attention over tokens: dot-product with an optional learnt scale, and additive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastfer.nn._checks import positive
from fastfer.nn._lookup import child, weight_and_bias
from fastfer.nn._plain import fused, fuses
from fastfer.ops.attention import additive_attention, dot_product_attention


class DotProductAttention(nn.Module):
    """softmax(s·q kᵀ/√D) v: q (B, T, D), k (B, S, D), v (B, S, E) -> (B, T, E); k defaults to q, v to k.

    s is 1, or with ``learnt_scale`` the parameter ``scale`` of one element, which starts at 1.
    """

    scale: Tensor | None

    def __init__(self, learnt_scale: bool = False, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        scale = nn.Parameter(torch.ones((), device=device, dtype=dtype)) if learnt_scale else None
        self.register_parameter("scale", scale)

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        k = q if k is None else k
        v = k if v is None else v
        if self.scale is None:
            return dot_product_attention(q, k, v)
        return dot_product_attention(q, k, v, scale=self.scale, factor=max(q.shape[-1], 1) ** -0.5)

    def extra_repr(self) -> str:
        return f"learnt_scale={self.scale is not None}"


@fused(proj=nn.Linear, score=nn.Linear)
class AdditiveAttention(nn.Module):
    """sum_t a_t · x_t, a = softmax_t(score(tanh(proj([x_t; h_t])))): x and memory h (B, T, dim) -> (B, dim).

    ``proj`` is linear 2·dim -> hidden, ``score`` linear hidden -> 1, both with bias; h defaults to x. One op takes the
    layers' tensors; where a layer is not plain (see `fastfer.nn._plain`) they are called in turn.
    """

    def __init__(self, dim: int, hidden: int, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        op = "AdditiveAttention"
        positive(op, "dim", dim), positive(op, "hidden", hidden)
        self.proj = nn.Linear(2 * dim, hidden, device=device, dtype=dtype)
        self.score = nn.Linear(hidden, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        proj, score = child(self, "proj"), child(self, "score")
        h = x if h is None else h
        if not fuses(self, AdditiveAttention):
            weights = torch.softmax(score(torch.tanh(proj(torch.cat([x, h], -1)))), 1)
            return (weights * x).sum(1)
        return additive_attention(x, h, *weight_and_bias(proj), *weight_and_bias(score))
