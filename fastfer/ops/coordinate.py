# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention (CA, MAXCA, CPSCA) as one op, and the pooling of rows and columns that it starts with.

Evaluation without gradients reads x twice, the second time from the cache, and writes the output. Training keeps x and,
for each of the N·(H + W) rows and columns, the C pooled values, C places of maxima ("ca": none), M values before the
norm and C gates: 3·C + M elements a position, for 14×14 images 3/7 of the bytes of x. Backward reads x once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.norm import Norm, check_norm, update_running

KINDS = ("ca", "maxca", "cpsca")
"""What rows and columns are pooled by: mean, maximum, or both crosswise; the index is the code kernels receive."""

_FAMILY = "coordinate"
_CL = torch.channels_last
_ARGS = (
    "Tensor x, Tensor weight, Tensor bias, "
    "Tensor n_weight, Tensor n_bias, Tensor n_mean, Tensor n_var, float eps, int act, "
    "Tensor h_weight, Tensor h_bias, Tensor w_weight, Tensor w_bias, int kind"
)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_CL)


def _last(x: Tensor, length: Any) -> Tensor:
    """(N, C, length), its channels adjoining."""
    return x.new_empty((x.shape[0], length, x.shape[1])).transpose(1, 2)


def _fake_pool(x: Tensor) -> tuple[Tensor, ...]:
    height, width = x.shape[2], x.shape[3]
    return _last(x, height), _last(x, height), _last(x, width), _last(x, width)


def _fake_pool_backward(
    d_row_mean: Tensor, d_row_max: Tensor, d_col_mean: Tensor, d_col_max: Tensor, x: Tensor
) -> Tensor:
    return _like(x)


def _fake_attention(x: Tensor, *rest: Any) -> Tensor:
    return _like(x)


def _fake_attention_train(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    positions, middle, kind = n * (h + w), weight.shape[0], rest[11]
    pooled = x.new_empty((positions, c))
    at = torch.empty_like(pooled) if kind else x.new_empty(0)
    y, stats = x.new_empty((positions, middle)), x.new_empty((3, middle))
    return _like(x), pooled, at, y, torch.empty_like(pooled), stats


def _fake_attention_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, at: Tensor, y: Tensor, gates: Tensor, stats: Tensor,
    weight: Tensor, n_weight: Tensor, n_bias: Tensor, act: int, h_weight: Tensor, w_weight: Tensor,
    kind: int, batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    middle, channels = weight.shape[:2]
    sizes = (middle, middle, middle, None, channels, None, channels)
    shaped = {3: h_weight, 5: w_weight}
    grads = [torch.empty_like(shaped[i]) if size is None else x.new_empty(size) for i, size in enumerate(sizes)]
    params = [torch.empty_like(weight), *grads]
    return (
        _like(x) if mask[0] else x.new_empty(0),
        *(grad if mask[1] else x.new_empty(0) for grad in params),
    )


_pool = _library.define_flat("cpsca_pool(Tensor x) -> (Tensor, Tensor, Tensor, Tensor)", _FAMILY, _fake_pool, stored=4)
_pool_backward = _library.define_flat(
    "cpsca_pool_backward(Tensor d_row_mean, Tensor d_row_max, Tensor d_col_mean, Tensor d_col_max, Tensor x) -> Tensor",
    _FAMILY, _fake_pool_backward,
)  # fmt: skip
_attention = _library.define_flat(f"coordinate_attention({_ARGS}) -> Tensor", _FAMILY, _fake_attention)
_attention_train = _library.define_flat(
    f"coordinate_attention_train({_ARGS}, bool batch_stats) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_attention_train,
)  # fmt: skip
_attention_backward = _library.define_flat(
    "coordinate_attention_backward(Tensor dout, Tensor x, Tensor pooled, Tensor at, Tensor y, Tensor gates, "
    "Tensor stats, Tensor weight, Tensor n_weight, Tensor n_bias, int act, Tensor h_weight, Tensor w_weight, int kind, "
    "bool batch_stats, bool[2] mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_attention_backward,
)  # fmt: skip


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0])


def _pool_grad(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    return (_pool_backward(*grads, *ctx.saved_tensors),)


_PARAMS = (1, 2, 3, 4, 9, 10, 11, 12)
"""Places of the learnt tensors among the op's arguments, in the order of their gradients."""


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, n_weight, n_bias, _, _, _, ctx.act, h_weight, _, w_weight, _, ctx.kind, ctx.batch_stats = inputs
    ctx.save_for_backward(x, *output[1:], weight, n_weight, n_bias, h_weight, w_weight)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _attention_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return _library.placed(ctx.needs_input_grad)
    *saved, h_weight, w_weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [needs[0], any(needs[i] for i in _PARAMS)]
    grads = _attention_backward(dout, *saved, ctx.act, h_weight, w_weight, ctx.kind, ctx.batch_stats, mask)
    return _library.placed(needs, (0, *_PARAMS), grads)


_library.autograd_flat(_pool, _pool_setup, _pool_grad)
_library.autograd_flat(_attention_train, _attention_setup, _attention_grad)
for _op in (_pool, _attention, _attention_train):
    _library.autocast_flat(_op, "x")


def _check_input(op: str, x: Tensor) -> None:
    _checks.image(op, "x", x)
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x: expected C, H and W >= 1, got shape {tuple(x.shape)}")


def kind_code(op: str, kind: str) -> int:
    """Code of a pooling's name."""
    if kind not in KINDS:
        raise ValueError(f"{op}: kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS.index(kind)


def cpsca_pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and maximum of each row and of each column: x (N, C, H, W) -> (N, C, H) twice, then (N, C, W) twice.

    x is float32 or float64; the results' channels adjoin in memory. A maximum's gradient goes to its first place, as
    that of ``torch.max(x, dim)``. Raises TypeError or ValueError naming the argument.
    Source: improved MobileNetV3, section 3.2.
    """
    _check_input("cpsca_pool", x)
    pooled: tuple[Tensor, Tensor, Tensor, Tensor] = _pool(x)
    return pooled


def coordinate_attention(
    x: Tensor, weight: Tensor, bias: Tensor, norm: Norm, h_weight: Tensor, h_bias: Tensor, w_weight: Tensor,
    w_bias: Tensor, *, kind: str = "ca", act: str | None = "hardswish", training: bool = False,
) -> Tensor:  # fmt: skip
    """x · g_h · g_w, gates of rows and columns, as one op with one backward: (N, C, H, W) -> the same, channels_last.

    The H rows and W columns of an image are pooled and go through one 1×1 convolution, weight (M, C, 1, 1) and bias
    (M,), norm and act; then the rows through h_weight (C, M, 1, 1) and h_bias (C,), the columns through w_weight and
    w_bias, and sigmoid. ``kind`` "ca" pools by the mean, "maxca" by the maximum; "cpsca" sends [row mean; column max]
    and [row max; column mean] through the convolution and adds them before the norm, so that bias counts twice.
    With ``training`` the norm takes the statistics of the N·(H + W) positions and updates its running ones in place.
    Raises TypeError or ValueError naming the argument.
    Source: Hou et al. 2021, eq. 4-9; improved MobileNetV3, section 3.2.
    """
    op = "coordinate_attention"
    _check_input(op, x)
    channels = x.shape[1]
    if _checks.is_tensor(op, "weight", weight).dim() != 4 or weight.shape[0] == 0:
        raise ValueError(f"{op}: weight: expected shape (M, {channels}, 1, 1), got {tuple(weight.shape)}")
    middle = weight.shape[0]
    _checks.like(op, "weight", weight, x, (middle, channels, 1, 1))
    _checks.like(op, "bias", bias, x, (middle,))
    check_norm(op, "norm", norm, x, middle)
    for name, matrix, vector in (("h", h_weight, h_bias), ("w", w_weight, w_bias)):
        _checks.like(op, f"{name}_weight", matrix, x, (channels, middle, 1, 1))
        _checks.like(op, f"{name}_bias", vector, x, (channels,))
    args: Sequence[Any] = (
        x, weight, bias, *norm[:4], norm.eps, _checks.act_code(op, act), h_weight, h_bias, w_weight, w_bias,
        kind_code(op, kind),
    )  # fmt: skip
    differentiable = _library.gradients_on() and any(t.requires_grad for t in args if isinstance(t, Tensor))
    out: Tensor
    if not training and not differentiable:
        out = _attention(*args)
        return out
    out, *_, stats = _attention_train(*args, training)
    if training and x.shape[0]:
        update_running(norm, stats)
    return out
