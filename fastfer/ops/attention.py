# SPDX-License-Identifier: Apache-2.0
"""Dot-product attention softmax(scale·q kᵀ) v and additive attention, each one op with one backward.

Neither keeps anything of size (T, S). Dot-product attention saves its inputs, its output and two numbers a query (8
bytes in float32), from which backward recomputes the probabilities; additive attention saves its inputs, the hidden
layer and the attention weights: 4·(A + 1) bytes a token.
"""

from __future__ import annotations

from torch import Tensor

from fastfer import _checks, _library
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


def _grad(t: Tensor, wanted: bool) -> Tensor:
    return t.new_empty(t.shape if wanted else 0)


def _fake_dot(a: DotProduct) -> Tensor:
    return a.q.new_empty((a.q.shape[0], a.q.shape[1], a.v.shape[2]))


def _fake_dot_train(a: DotProduct) -> DotProductTrained:
    return DotProductTrained(_fake_dot(a), a.q.new_empty((2, a.q.shape[0], a.q.shape[1])))


def _fake_dot_backward(a: DotProductBackward) -> DotProductGradients:
    d_scale = a.q.new_empty(0) if a.scale is None else _grad(a.scale, a.needs.scale)
    return DotProductGradients(_grad(a.q, a.needs.q), _grad(a.k, a.needs.k), _grad(a.v, a.needs.v), d_scale)


def _fake_additive(a: Additive) -> Tensor:
    return a.x.new_empty((a.x.shape[0], a.x.shape[2]))


def _fake_additive_train(a: Additive) -> AdditiveTrained:
    tokens = (a.x.shape[0], a.x.shape[1])
    return AdditiveTrained(_fake_additive(a), a.x.new_empty((*tokens, a.weight.shape[0])), a.x.new_empty(tokens))


def _fake_additive_backward(a: AdditiveBackward) -> AdditiveGradients:
    wanted, hidden = a.needs.params, a.weight.shape[0]
    return AdditiveGradients(
        d_x=_grad(a.x, a.needs.x),
        d_h=_grad(a.h, a.needs.h),
        d_weight=_grad(a.weight, wanted),
        d_bias=a.weight.new_empty(hidden if wanted else 0),
        d_v=_grad(a.v, wanted),
        d_v_bias=a.weight.new_empty(1 if wanted else 0),
    )


_dot = _library.define("dot_product_attention", "attention", DotProduct, Tensor, _fake_dot)
_dot_train = _library.define("dot_product_attention_train", "attention", DotProduct, DotProductTrained, _fake_dot_train)
_dot_backward = _library.define(
    "dot_product_attention_backward", "attention", DotProductBackward, DotProductGradients, _fake_dot_backward
)
_additive = _library.define("additive_attention", "attention", Additive, Tensor, _fake_additive)
_additive_train = _library.define(
    "additive_attention_train", "attention", Additive, AdditiveTrained, _fake_additive_train
)
_additive_backward = _library.define(
    "additive_attention_backward", "attention", AdditiveBackward, AdditiveGradients, _fake_additive_backward
)
_library.autograd(_dot_train, _dot_backward)
_library.autograd(_additive_train, _additive_backward)
for _op in (_dot, _dot_train, _additive, _additive_train):
    _library.autocast(_op, lower=True)


def _tokens(op: str, arg: str, x: object) -> Tensor:
    t = _checks.floating(op, arg, x)
    if t.dim() != 3:
        raise ValueError(f"{op}: {arg}: expected 3 dimensions (batch, tokens, features), got shape {tuple(t.shape)}")
    return t


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | Tensor | None = None, factor: float = 1.0
) -> Tensor:
    """softmax_s(factor · scale · q·k_s) v: q (B, T, D), k (B, S, D), v (B, S, E) -> (B, T, E), float32 or float64.

    scale is a number, None for 1/√D, or a tensor of one element, which gets a gradient; a learnt s in
    softmax(s·q kᵀ/√D) is ``scale=s, factor=D ** -0.5``. Views are accepted: the tokens of a channels_last (N, C, H, W)
    map are ``x.flatten(2).transpose(1, 2)``, without a copy. A query whose scores are all -inf gives NaN, as in torch;
    without keys (S = 0) the result is 0. Raises TypeError or ValueError naming the argument.
    Source: Vaswani et al. 2017, eq. 1; PAtt-Lite section III for the learnt scale.
    """
    op = "dot_product_attention"
    _tokens(op, "q", q), _tokens(op, "k", k), _tokens(op, "v", v)
    if k.dim() == v.dim() == 3:
        _checks.like(op, "k", k, q, (q.shape[0], k.shape[1], q.shape[2]), "q", stored=True)
        _checks.like(op, "v", v, q, (q.shape[0], k.shape[1], v.shape[2]), "q", stored=True)
    learnt = None
    if isinstance(scale, Tensor):
        if scale.dim() > 1 or scale.numel() != 1:
            raise ValueError(f"{op}: scale: expected a number or one element, got shape {tuple(scale.shape)}")
        learnt = _checks.like(op, "scale", scale, q, scale.shape, "q")
    elif scale is None:
        factor = factor * max(q.shape[2], 1) ** -0.5
    elif isinstance(scale, int | float):
        factor = factor * scale
    else:
        raise TypeError(f"{op}: scale: expected a number, a torch.Tensor or None, got {type(scale).__name__}")
    fields = DotProduct(q, k, v, learnt, factor)
    if _library.is_jit_traced() or _dot_train.needs_gradient(fields):
        return _dot_train(fields).out
    return _dot(fields)


def additive_attention(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor) -> Tensor:
    """sum_t a_t · x_t with a = softmax_t(v · tanh(weight·[x_t; h_t] + bias) + v_bias): one vector for each sequence.

    x and h (B, T, D), float32 or float64; weight (A, 2D), its first D columns for x; bias (A,); v (A,) or (1, A), as
    the weight of a linear layer with one output; v_bias (1,) -> (B, D). Views are accepted as in
    `dot_product_attention`. Raises TypeError or ValueError naming the argument. Source: Bahdanau et al. 2015, appendix
    A.1.2, as the separable-convolution network uses it.
    """
    op = "additive_attention"
    _tokens(op, "x", x)
    _checks.like(op, "h", h, x, x.shape, stored=True)
    if _checks.is_tensor(op, "weight", weight).dim() != 2 or not weight.shape[0]:
        raise ValueError(f"{op}: weight: expected shape (A, {2 * x.shape[2]}), got {tuple(weight.shape)}")
    hidden = weight.shape[0]
    _checks.like(op, "weight", weight, x, (hidden, 2 * x.shape[2]))
    _checks.like(op, "bias", bias, x, (hidden,))
    _checks.like(op, "v", v, x, (1, hidden) if isinstance(v, Tensor) and v.dim() == 2 else (hidden,))
    _checks.like(op, "v_bias", v_bias, x, (1,))
    fields = Additive(x, h, weight, bias, v, v_bias)
    return _additive_train(fields).out if _additive_train.needs_gradient(fields) else _additive(fields)
