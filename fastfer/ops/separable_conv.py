# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block act2(norm2(pointwise(act1(norm1(depthwise(x)))))).

Evaluation without gradients is one pass over the activations; training keeps x, y1 (depthwise output), y2 (pointwise
output) and 3 statistics a channel: 4 bytes an element of each in float32, nothing of normalised or activated copies,
which backward recomputes, as it does y1 where nothing follows it (see `recomputes`). Depthwise with norm and activation
keeps x and its output before the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.backends.reference.separable_conv import recomputes
from fastfer.ops.elementwise import activation
from fastfer.ops.norm import Norm, check_batch, check_norm, update_running

_FAMILY = "separable_conv"
_CL = torch.channels_last
_NORM = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor n_weight, Tensor n_bias, Tensor n_mean, Tensor n_var, float eps, "
    "int act, int[2] stride, int[4] padding"
)
_NORMS = (
    "Tensor dw, Tensor? dw_bias, "
    "Tensor? n1_weight, Tensor? n1_bias, Tensor? n1_mean, Tensor? n1_var, float eps1, int act1, "
    "Tensor pw, Tensor? pw_bias, "
    "Tensor? n2_weight, Tensor? n2_bias, Tensor? n2_mean, Tensor? n2_var, float eps2, int act2, "
    "int[2] stride, int[4] padding"
)


def _image(x: Tensor, channels: int, height: Any, width: Any) -> Tensor:
    return x.new_empty((x.shape[0], channels, height, width)).contiguous(memory_format=_CL)


def _depthwise_out(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    height = (x.shape[2] + padding[0] + padding[2] - weight.shape[2]) // stride[0] + 1
    width = (x.shape[3] + padding[1] + padding[3] - weight.shape[3]) // stride[1] + 1
    return _image(x, x.shape[1], height, width)


def _grads(mask: Sequence[bool], *like: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) if wanted else t.new_empty(0) for wanted, t in zip(mask, like, strict=True))


def _fake_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    return _depthwise_out(x, weight, stride, padding)


def _fake_depthwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], mask: list[bool]
) -> tuple[Tensor, ...]:
    return _grads(mask, _image(x, x.shape[1], x.shape[2], x.shape[3]), weight, weight[:, 0, 0, 0].contiguous())


def _fake_depthwise_norm(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return _depthwise_out(x, weight, rest[7], rest[8])


def _fake_depthwise_norm_train(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    y = _depthwise_out(x, weight, rest[7], rest[8])
    return y, torch.empty_like(y), x.new_empty((3, x.shape[1]))


def _fake_depthwise_norm_backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:  # fmt: skip
    need_dx, need_dw = rest[-1]
    channels = weight.new_empty(weight.shape[0])
    image = _image(x, x.shape[1], x.shape[2], x.shape[3])
    return _grads((need_dx, *(need_dw,) * 4), image, weight, channels, channels, channels)


def _fake_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _image(x, weight.shape[0], x.shape[2], x.shape[3])


def _fake_pointwise_backward(dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    return _grads(mask, _image(x, x.shape[1], x.shape[2], x.shape[3]), weight, weight[:, 0, 0, 0].contiguous())


def _fake_separable(x: Tensor, dw: Tensor, *rest: Any) -> Tensor:
    pw, stride, padding = rest[7], rest[15], rest[16]
    y1 = _depthwise_out(x, dw, stride, padding)
    return _image(x, pw.shape[0], y1.shape[2], y1.shape[3])


def _fake_separable_train(x: Tensor, dw: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dw_bias, n1_weight, act1, pw, n2_weight, act2, stride, padding = (rest[i] for i in (0, 1, 6, 7, 9, 14, 15, 16))
    y1 = _depthwise_out(x, dw, stride, padding)
    out = _image(x, pw.shape[0], y1.shape[2], y1.shape[3])
    if recomputes(dw_bias, n1_weight, act1, *y1.shape[1:]):
        y1 = x.new_empty(0)
    y2 = torch.empty_like(out) if n2_weight is not None or act2 else x.new_empty(0)
    stats1 = x.new_empty((3, x.shape[1]) if n1_weight is not None else 0)
    stats2 = x.new_empty((3, pw.shape[0]) if n2_weight is not None else 0)
    return out, y1, y2, stats1, stats2


def _fake_separable_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor,
    dw: Tensor, n1_weight: Tensor | None, n1_bias: Tensor | None, stats1: Tensor, act1: int,
    pw: Tensor, n2_weight: Tensor | None, n2_bias: Tensor | None, stats2: Tensor, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    need_dx, need_dw, need_pw = mask
    channels, outputs = dw.new_empty(dw.shape[0]), pw.new_empty(pw.shape[0])
    norm1, norm2 = n1_weight is not None, n2_weight is not None
    return _grads(
        (need_dx, *(need_dw, need_dw, need_dw and norm1, need_dw and norm1),
         *(need_pw, need_pw, need_pw and norm2, need_pw and norm2)),
        _image(x, x.shape[1], x.shape[2], x.shape[3]), dw, channels, channels, channels, pw, outputs, outputs, outputs,
    )  # fmt: skip


_depthwise = _library.define(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[4] padding) -> Tensor",
    _FAMILY,
    _fake_depthwise,
)
_depthwise_backward = _library.define(
    "depthwise_conv2d_backward(Tensor dy, Tensor x, Tensor weight, int[2] stride, int[4] padding, bool[3] mask)"
    " -> (Tensor, Tensor, Tensor)",
    _FAMILY, _fake_depthwise_backward,
)  # fmt: skip
_depthwise_norm = _library.define(f"depthwise_norm({_NORM}) -> Tensor", _FAMILY, _fake_depthwise_norm)
_depthwise_norm_train = _library.define(
    f"depthwise_norm_train({_NORM}, bool batch_stats) -> (Tensor, Tensor, Tensor)",
    _FAMILY, _fake_depthwise_norm_train, stored=2,
)  # fmt: skip
_depthwise_norm_backward = _library.define(
    "depthwise_norm_backward(Tensor dout, Tensor x, Tensor y, Tensor weight, Tensor n_weight, Tensor n_bias, "
    "Tensor stats, int act, int[2] stride, int[4] padding, bool batch_stats, bool[2] mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_depthwise_norm_backward,
)  # fmt: skip
_pointwise = _library.define(
    "pointwise_conv2d(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _FAMILY, _fake_pointwise
)
_pointwise_backward = _library.define(
    "pointwise_conv2d_backward(Tensor dy, Tensor x, Tensor weight, bool[3] mask) -> (Tensor, Tensor, Tensor)",
    _FAMILY, _fake_pointwise_backward,
)  # fmt: skip
_separable = _library.define(f"separable_conv2d(Tensor x, {_NORMS}) -> Tensor", _FAMILY, _fake_separable)
_separable_train = _library.define(
    f"separable_conv2d_train(Tensor x, {_NORMS}, bool batch_stats) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_separable_train, stored=3,
)  # fmt: skip
_separable_backward = _library.define(
    "separable_conv2d_backward(Tensor dout, Tensor x, Tensor y1, Tensor y2, "
    "Tensor dw, Tensor? n1_weight, Tensor? n1_bias, Tensor stats1, int act1, "
    "Tensor pw, Tensor? n2_weight, Tensor? n2_bias, Tensor stats2, int act2, "
    "int[2] stride, int[4] padding, bool batch_stats, bool[3] mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_separable_backward,
)  # fmt: skip


def _wanted(mask: Sequence[bool], grads: Sequence[Tensor]) -> list[Tensor | None]:
    return [grad if wanted else None for wanted, grad in zip(mask, grads, strict=True)]


def _depthwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _depthwise_grad(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:3])
    grads = _depthwise_backward(dy, *ctx.saved_tensors, ctx.stride, ctx.padding, mask)
    return *_wanted(mask, grads), None, None


def _depthwise_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, n_weight, n_bias, _, _, _, ctx.act, ctx.stride, ctx.padding, ctx.batch_stats = inputs
    _, y, stats = output
    ctx.save_for_backward(x, y, weight, n_weight, n_bias, stats)
    ctx.mark_non_differentiable(y, stats)
    ctx.set_materialize_grads(False)


def _depthwise_norm_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 12
    needs = ctx.needs_input_grad
    mask = [needs[0], any(needs[1:5])]
    grads = _depthwise_norm_backward(
        dout, *ctx.saved_tensors, ctx.act, ctx.stride, ctx.padding, ctx.batch_stats, mask
    )  # fmt: skip
    return *_wanted(needs[:5], grads), *(None,) * 7


def _pointwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _pointwise_grad(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    mask = list(ctx.needs_input_grad[:3])
    return tuple(_wanted(mask, _pointwise_backward(dy, *ctx.saved_tensors, mask)))


def _separable_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, dw, _, w1, b1, _, _, _, ctx.act1, pw, _, w2, b2, _, _, _, ctx.act2, ctx.stride, ctx.padding, ctx.batch_stats = (
        inputs
    )
    _, y1, y2, stats1, stats2 = output
    ctx.save_for_backward(x, y1, y2, dw, w1, b1, stats1, pw, w2, b2, stats2)
    ctx.mark_non_differentiable(y1, y2, stats1, stats2)
    ctx.set_materialize_grads(False)


def _separable_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return _library.placed(ctx.needs_input_grad)
    x, y1, y2, dw, w1, b1, stats1, pw, w2, b2, stats2 = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [needs[0], any(needs[i] for i in (1, 2, 3, 4)), any(needs[i] for i in (9, 10, 11, 12))]
    grads = _separable_backward(
        dout, x, y1, y2, dw, w1, b1, stats1, ctx.act1, pw, w2, b2, stats2, ctx.act2, ctx.stride, ctx.padding,
        ctx.batch_stats, mask,
    )  # fmt: skip
    return _library.placed(needs, (0, 1, 2, 3, 4, 9, 10, 11, 12), grads)


_library.autograd(_depthwise, _depthwise_setup, _depthwise_grad)
_library.autograd(_depthwise_norm_train, _depthwise_norm_setup, _depthwise_norm_grad)
_library.autograd(_pointwise, _pointwise_setup, _pointwise_grad)
_library.autograd(_separable_train, _separable_setup, _separable_grad)
for _op in (_depthwise, _depthwise_norm, _depthwise_norm_train, _pointwise, _separable, _separable_train):
    _library.autocast(_op, "x", lower=True)


def _check_depthwise(
    op: str, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], name: str
) -> tuple[int, int]:
    """Output height and width, or an error."""
    _checks.is_tensor(op, name, weight)
    if weight.dim() != 4 or weight.shape[0] != x.shape[1] or weight.shape[1] != 1 or 0 in weight.shape:
        raise ValueError(f"{op}: {name}: expected shape ({x.shape[1]}, 1, KH, KW), got {tuple(weight.shape)}")
    _checks.like(op, name, weight, x, weight.shape)
    return (
        _checks.out_size(op, x.shape[2], padding[0], padding[2], weight.shape[2], stride[0], "height"),
        _checks.out_size(op, x.shape[3], padding[1], padding[3], weight.shape[3], stride[1], "width"),
    )


def _check_pointwise(op: str, x: Tensor, weight: Tensor, name: str) -> None:
    _checks.is_tensor(op, name, weight)
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (x.shape[1], 1, 1) or weight.shape[0] == 0:
        raise ValueError(f"{op}: {name}: expected shape (O, {x.shape[1]}, 1, 1), got {tuple(weight.shape)}")
    _checks.like(op, name, weight, x, weight.shape)


def _differentiable(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in args if isinstance(t, Tensor))


def depthwise_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None, act: str | None, stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> tuple[tuple[Any, ...], int, int]:  # fmt: skip
    """The registered op's arguments, checked, and the output's height and width."""
    op = "depthwise_conv2d"
    _checks.image(op, "x", x)
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    height, width = _check_depthwise(op, x, weight, strides, pads, "weight")
    if bias is not None:
        _checks.like(op, "bias", bias, x, (x.shape[1],))
    code = _checks.act_code(op, act)
    if norm is not None:
        check_norm(op, "norm", norm, x, x.shape[1])
    tensors = norm[:4] if norm is not None else (None,) * 4
    return (x, weight, bias, *tensors, norm.eps if norm else 0.0, code, strides, pads), height, width


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0, *, norm: Norm | None = None, act: str | None = None, training: bool = False,
) -> Tensor:  # fmt: skip
    """act(norm(y)), y depthwise: y[n,c,i,j] = bias[c] + sum_kl x[n,c,i·s+k-top,j·s+l-left] · weight[c,0,k,l].

    x (N, C, H, W) float32 or float64; weight (C, 1, KH, KW); bias (C,); stride int or (vertical, horizontal); padding
    int, (vertical, horizontal) or (top, left, bottom, right); norm, act and training as `separable_conv2d`.
    Returns channels_last (N, C, OH, OW).
    Raises TypeError or ValueError naming the argument. Source: Howard et al. 2017, eq. 3.
    """
    args, height, width = depthwise_arguments(x, weight, bias, norm, act, stride, padding)
    if norm is None:
        y: Tensor = _depthwise(*args[:3], *args[-2:])
        return activation(y, act)
    if not training and not _differentiable(args):
        y = _depthwise_norm(*args)
        return y
    if training:
        check_batch("depthwise_conv2d", (x.shape[0], x.shape[1], height, width))
    y, _, stats = _depthwise_norm_train(*args, training)
    if training and y.numel():
        update_running(norm, stats)
    return y


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1×1 convolution: y[n,o,i,j] = bias[o] + sum_c weight[o,c] · x[n,c,i,j].

    x (N, C, H, W) float32 or float64; weight (O, C, 1, 1); bias (O,). Returns channels_last (N, O, H, W).
    Raises TypeError or ValueError naming the argument. Source: Howard et al. 2017, section 3.1.
    """
    op = "pointwise_conv2d"
    _checks.image(op, "x", x)
    _check_pointwise(op, x, weight, "weight")
    if bias is not None:
        _checks.like(op, "bias", bias, x, (weight.shape[0],))
    y: Tensor = _pointwise(x, weight, bias)
    return y


def block_arguments(
    op: str, x: Tensor, dw_weight: Tensor, pw_weight: Tensor, dw_bias: Tensor | None, norm1: Norm | None,
    act1: str | None, pw_bias: Tensor | None, norm2: Norm | None, act2: str | None, stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> tuple[tuple[Any, ...], int, int]:  # fmt: skip
    """The registered op's arguments, checked, and the output's height and width."""
    _checks.image(op, "x", x)
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    height, width = _check_depthwise(op, x, dw_weight, strides, pads, "dw_weight")
    _check_pointwise(op, x, pw_weight, "pw_weight")
    for name, bias, size in (("dw_bias", dw_bias, x.shape[1]), ("pw_bias", pw_bias, pw_weight.shape[0])):
        if bias is not None:
            _checks.like(op, name, bias, x, (size,))
    for name, norm, size in (("norm1", norm1, x.shape[1]), ("norm2", norm2, pw_weight.shape[0])):
        if norm is not None:
            check_norm(op, name, norm, x, size)
    codes = _checks.act_code(op, act1, "act1"), _checks.act_code(op, act2, "act2")
    args = (
        x, dw_weight, dw_bias, *(norm1[:4] if norm1 else (None,) * 4), norm1.eps if norm1 else 0.0, codes[0],
        pw_weight, pw_bias, *(norm2[:4] if norm2 else (None,) * 4), norm2.eps if norm2 else 0.0, codes[1],
        strides, pads,
    )  # fmt: skip
    return args, height, width


def separable_conv2d(
    x: Tensor, dw_weight: Tensor, pw_weight: Tensor, *, dw_bias: Tensor | None = None, norm1: Norm | None = None,
    act1: str | None = None, pw_bias: Tensor | None = None, norm2: Norm | None = None, act2: str | None = None,
    stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0, training: bool = False,
) -> Tensor:  # fmt: skip
    """act2(norm2(pointwise(act1(norm1(depthwise(x)))))) as one op with one backward.

    x (N, C, H, W) float32 or float64; dw_weight (C, 1, KH, KW); pw_weight (O, C, 1, 1); biases (C,) and (O,); each norm
    a `Norm` or None; stride and padding as `depthwise_conv2d`. With ``training`` the norms use the statistics of this
    batch and update their running ones in place (unbiased variance, momentum), else the running ones are constants.
    Returns channels_last (N, O, OH, OW). Raises TypeError or ValueError naming the argument, and ValueError for one
    value per channel in training. Source: Howard et al. 2017, section 3.1; Ioffe and Szegedy 2015.
    """
    args, height, width = block_arguments(
        "separable_conv2d", x, dw_weight, pw_weight, dw_bias, norm1, act1, pw_bias, norm2, act2, stride, padding
    )
    batch_stats = training and (norm1 is not None or norm2 is not None)
    out: Tensor
    if not batch_stats and not _differentiable(args):
        out = _separable(*args)
        return out
    if batch_stats:
        check_batch("separable_conv2d", (x.shape[0], x.shape[1], height, width))
    out, _, _, stats1, stats2 = _separable_train(*args, batch_stats)
    if batch_stats and out.numel():
        update_running(norm1, stats1)
        update_running(norm2, stats2)
    return out
