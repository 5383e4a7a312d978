# SPDX-License-Identifier: Apache-2.0
"""Dot-product attention softmax(scale·q kᵀ) v and additive attention, each one op with one backward.

Neither keeps anything of size (T, S). Dot-product attention saves its inputs, its output and two numbers a query (8
bytes in float32), from which backward recomputes the probabilities; additive attention saves its inputs, the hidden
layer and the attention weights: 4·(A + 1) bytes a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastfer import _checks, _library

_FAMILY = "attention"
_DOT = "Tensor q, Tensor k, Tensor v, Tensor? scale, float factor"
_ADDITIVE = "Tensor x, Tensor h, Tensor weight, Tensor bias, Tensor v, Tensor v_bias"


def _dense(t: Tensor) -> Tensor:
    return t.new_empty(t.shape)


def _grads(mask: Sequence[bool], *like: Tensor | None) -> tuple[Tensor, ...]:
    any_tensor = next(t for t in like if t is not None)
    return tuple(
        _dense(t) if wanted and t is not None else any_tensor.new_empty(0) for wanted, t in zip(mask, like, strict=True)
    )


def _fake_dot(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[1], v.shape[2]))


def _fake_dot_train(*args: Any) -> tuple[Tensor, Tensor]:
    q = args[0]
    return _fake_dot(*args), q.new_empty((2, q.shape[0], q.shape[1]))


def _fake_dot_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: Tensor | None, factor: float, out: Tensor, stats: Tensor,
    mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    return _grads(mask, q, k, v, scale)


def _fake_additive(x: Tensor, *rest: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2]))


def _fake_additive_train(x: Tensor, h: Tensor, weight: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    tokens = (x.shape[0], x.shape[1])
    return _fake_additive(x), x.new_empty((*tokens, weight.shape[0])), x.new_empty(tokens)


def _fake_additive_backward(
    dout: Tensor, x: Tensor, h: Tensor, weight: Tensor, v: Tensor, u: Tensor, weights: Tensor, mask: list[bool]
) -> tuple[Tensor, ...]:
    dx, dh, params = mask
    rows, one = weight.new_empty(weight.shape[0]), weight.new_empty(1)
    return _grads((dx, dh, params, params, params, params), x, h, weight, rows, v, one)


_dot = _library.define_flat(f"dot_product_attention({_DOT}) -> Tensor", _FAMILY, _fake_dot)
_dot_train = _library.define_flat(f"dot_product_attention_train({_DOT}) -> (Tensor, Tensor)", _FAMILY, _fake_dot_train)
_dot_backward = _library.define_flat(
    f"dot_product_attention_backward(Tensor dout, {_DOT}, Tensor out, Tensor stats, bool[4] mask)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_dot_backward, stored=3,
)  # fmt: skip
_additive = _library.define_flat(f"additive_attention({_ADDITIVE}) -> Tensor", _FAMILY, _fake_additive)
_additive_train = _library.define_flat(
    f"additive_attention_train({_ADDITIVE}) -> (Tensor, Tensor, Tensor)", _FAMILY, _fake_additive_train
)
_additive_backward = _library.define_flat(
    "additive_attention_backward(Tensor dout, Tensor x, Tensor h, Tensor weight, Tensor v, Tensor u, Tensor weights,"
    " bool[3] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_additive_backward, stored=2,
)  # fmt: skip


def _dot_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, scale, ctx.factor = inputs
    out, stats = output
    ctx.save_for_backward(q, k, v, scale, out, stats)
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _dot_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 5
    q, k, v, scale, out, stats = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:4])
    grads = _dot_backward(dout, q, k, v, scale, ctx.factor, out, stats, mask)
    return *(grad if wanted else None for wanted, grad in zip(mask, grads, strict=True)), None


def _additive_setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, h, weight, _, v, _ = inputs
    _, u, weights = output
    ctx.save_for_backward(x, h, weight, v, u, weights)
    ctx.mark_non_differentiable(u, weights)
    ctx.set_materialize_grads(False)


def _additive_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 6
    needs = ctx.needs_input_grad
    grads = _additive_backward(dout, *ctx.saved_tensors, [needs[0], needs[1], any(needs[2:])])
    return tuple(grad if wanted else None for wanted, grad in zip(needs, grads, strict=True))


_library.autograd_flat(_dot_train, _dot_setup, _dot_grad)
_library.autograd_flat(_additive_train, _additive_setup, _additive_grad)
for _op in (_dot, _dot_train):
    _library.autocast_flat(_op, "q", "k", "v", lower=True)
for _op in (_additive, _additive_train):
    _library.autocast_flat(_op, "x", "h", lower=True)


def _tokens(op: str, arg: str, x: object) -> Tensor:
    t = _checks.floating(op, arg, x)
    if t.dim() != 3:
        raise ValueError(f"{op}: {arg}: expected 3 dimensions (batch, tokens, features), got shape {tuple(t.shape)}")
    return t


def _differentiable(*args: Tensor | None) -> bool:
    return _library.gradients_on() and any(t is not None and t.requires_grad for t in args)


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
    out: Tensor
    if _library.is_jit_traced() or _differentiable(q, k, v, learnt):
        out, _ = _dot_train(q, k, v, learnt, factor)
    else:
        out = _dot(q, k, v, learnt, factor)
    return out


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
    out: Tensor
    if _differentiable(x, h, weight, bias, v, v_bias):
        out, _, _ = _additive_train(x, h, weight, bias, v, v_bias)
    else:
        out = _additive(x, h, weight, bias, v, v_bias)
    return out
