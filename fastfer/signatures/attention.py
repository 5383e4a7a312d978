# SPDX-License-Identifier: Apache-2.0
"""Signatures of attention over tokens; formulas in ``csrc/attention/op.h``. Gradients not asked for are empty."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

from fastfer.signatures.fields import Stored
from fastfer.signatures.shapes import shapes


@shapes(q="b t d", k="b s d", v="b s e", scale="|1")
class DotProduct(NamedTuple):
    """softmax(factor · scale · q kᵀ) v: q (B, T, D), k (B, S, D), v (B, S, E) -> (B, T, E); scale has one element."""

    q: Stored
    k: Stored
    v: Stored
    scale: Tensor | None
    factor: float


class DotProductTrained(NamedTuple):
    """The output and statistics (2, B, T): the largest score of each query, 1 / sum_j exp(score_j - largest)."""

    out: Stored
    stats: Tensor


class DotProductNeeds(NamedTuple):
    """Which gradients are asked for."""

    q: bool
    k: bool
    v: bool
    scale: bool


@shapes(d_out="b t e", q="b t d", k="b s d", v="b s e", scale="|1", out="b t e", stats="2 b t")
class DotProductBackward(NamedTuple):
    """Backward of `DotProduct`."""

    d_out: Stored
    q: Stored
    k: Stored
    v: Stored
    scale: Tensor | None
    factor: float
    out: Stored
    stats: Tensor
    needs: DotProductNeeds


class DotProductGradients(NamedTuple):
    """Gradients of `DotProduct`."""

    d_q: Stored
    d_k: Stored
    d_v: Stored
    d_scale: Tensor


@shapes(x="b t d", h="b t d", weight="a 2*d", bias="a", v="a|1 a", v_bias="1")
class Additive(NamedTuple):
    """sum_t softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias) · x_t.

    x, h (B, T, D); weight (A, 2D); bias (A,); v (A,) or (1, A); v_bias (1,) -> (B, D).
    """

    x: Stored
    h: Stored
    weight: Tensor
    bias: Tensor
    v: Tensor
    v_bias: Tensor


class AdditiveTrained(NamedTuple):
    """The output, the hidden layer u (B, T, A) and the attention weights (B, T)."""

    out: Stored
    u: Tensor
    weights: Tensor


class AdditiveNeeds(NamedTuple):
    """Which gradients are asked for: x's, h's, the parameters'."""

    x: bool
    h: bool
    params: Annotated[bool, "weight", "bias", "v", "v_bias"]


@shapes(d_out="b d", x="b t d", h="b t d", weight="a 2*d", v="a|1 a", u="b t a", weights="b t")
class AdditiveBackward(NamedTuple):
    """Backward of `Additive`."""

    d_out: Stored
    x: Stored
    h: Stored
    weight: Tensor
    v: Tensor
    u: Tensor
    weights: Tensor
    needs: AdditiveNeeds


class AdditiveGradients(NamedTuple):
    """Gradients of `Additive`."""

    d_x: Stored
    d_h: Stored
    d_weight: Tensor
    d_bias: Tensor
    d_v: Tensor
    d_v_bias: Tensor
