# SPDX-License-Identifier: Apache-2.0
"""Training ops that leave a normalisation to the op behind them: y is written once, act(norm(y)) never.

Between two fused blocks the usual ops write act(norm(y)) in a pass of its own and read dout and y in another for the
sums of norm's backward: four passes over the activation that go here, with the memory of act(norm(y)). A `Deferred`
stands for it on the way: y with its statistics, and what is still to be done. Both ops have true gradients, those of y
and of the statistics as tensors of their own (`backends.reference._linked` has the formulas). Saved for backward:
inputs, y1 as `separable_conv2d_train`, and y, 4 bytes an element each in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastfer import _library
from fastfer.ops.conv2d import conv_arguments, fake_image
from fastfer.ops.gate import _ARGS, _SIGMOID, _fake_gate_backward, _fake_gate_train, check_csa
from fastfer.ops.norm import Norm, check_batch, update_running
from fastfer.ops.separable_conv import (
    _NORM,
    _NORMS,
    _fake_depthwise_norm_backward,
    _fake_depthwise_norm_train,
    _fake_separable_backward,
    _fake_separable_train,
    block_arguments,
    depthwise_arguments,
)

_BEFORE = "Tensor? l_stats, Tensor? l_weight, Tensor? l_bias, int l_act"


class Deferred(NamedTuple):
    """act((y - mean)·invstd·weight + bias), not computed yet: y (N, C, H, W), stats (3, C), weight and bias (C,)."""

    y: Tensor
    stats: Tensor
    weight: Tensor
    bias: Tensor
    act: int


def _empty(like: Tensor, *sizes: Any) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(size) for size in sizes)


def _fake_conv(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return fake_image(x, weight, rest[4], rest[5]), x.new_empty((3, weight.shape[0]))


def _fake_conv_backward(
    dy: Tensor, d_stats: Tensor | None, x: Tensor, y: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    mask = rest[-1]  # x, weight, bias
    dx = x.new_empty(x.shape).contiguous(memory_format=torch.channels_last) if mask[0] else x.new_empty(0)
    return dx, *_empty(x, weight.shape if mask[1] else 0, weight.shape[0] if mask[2] else 0)


def _fake_block(x: Tensor, l_stats: Any, l_weight: Any, l_bias: Any, l_act: int, *block: Any) -> tuple[Tensor, ...]:
    *args, deferred = block
    out, y1, y2, stats1, stats2 = _fake_separable_train(x, *args)
    if deferred:
        y2, stats2 = x.new_empty(0), x.new_empty((3, out.shape[1]))
    return out, y1, y2, stats1, stats2


def _fake_block_backward(
    dout: Tensor, d_stats: Any, x: Tensor, l_stats: Tensor | None, l_weight: Any, l_bias: Any, l_act: int,
    y1: Tensor, y2: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *block, _deferred, mask = rest
    c = x.shape[1]
    before = _empty(x, *(((3, c), c, c) if l_stats is not None else (0, 0, 0)))
    grads = list(_fake_separable_backward(dout, x, y1, y2, *block, True, mask[:3]))  # type: ignore[call-arg]
    if not mask[3]:
        grads[2], grads[6] = _empty(x, 0, 0)
    return *grads, *before


_conv = _library.define(
    "conv2d_linked(Tensor x, Tensor weight, Tensor? bias, Tensor n_mean, Tensor n_var, float eps, int[2] stride, "
    "int[4] padding) -> (Tensor, Tensor)",
    "conv2d", _fake_conv,
)  # fmt: skip
_conv_backward = _library.define(
    "conv2d_linked_backward(Tensor dy, Tensor? d_stats, Tensor x, Tensor y, Tensor weight, Tensor stats, "
    "int[2] stride, int[4] padding, bool[3] mask) -> (Tensor, Tensor, Tensor)",
    "conv2d", _fake_conv_backward,
)  # fmt: skip
_block = _library.define(
    f"separable_conv2d_linked(Tensor x, {_BEFORE}, {_NORMS}, bool deferred)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "separable_conv", _fake_block, stored=3,
)  # fmt: skip
_block_backward = _library.define(
    f"separable_conv2d_linked_backward(Tensor dout, Tensor? d_stats, Tensor x, {_BEFORE}, Tensor y1, Tensor y2, "
    "Tensor dw, Tensor? n1_weight, Tensor? n1_bias, Tensor stats1, int act1, "
    "Tensor pw, Tensor? n2_weight, Tensor? n2_bias, Tensor stats2, int act2, "
    "int[2] stride, int[4] padding, bool deferred, bool[4] mask) -> (" + ", ".join(["Tensor"] * 12) + ")",
    "separable_conv", _fake_block_backward,
)  # fmt: skip


def _fake_gate(
    x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *args: Any
) -> tuple[Tensor, ...]:
    return _fake_gate_train(x, *args)


def _fake_gate_grad(
    dout: Tensor, x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *rest: Any
) -> tuple[Tensor, ...]:
    *args, mask = rest
    before = (torch.empty_like(t) for t in (l_stats, l_weight, l_bias))
    return *_fake_gate_backward(dout, x, *args, [True, *mask[1:]]), *before  # type: ignore[call-arg]


def _fake_depthwise(
    x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return _fake_depthwise_norm_train(x, weight, *rest)


def _fake_depthwise_grad(
    dout: Tensor, x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *rest: Any
) -> tuple[Tensor, ...]:
    *block, mask = rest
    before = (torch.empty_like(t) for t in (l_stats, l_weight, l_bias))
    return *_fake_depthwise_norm_backward(dout, x, *block, [True, mask[1]]), *before


_LINK = "Tensor l_stats, Tensor l_weight, Tensor l_bias, int l_act"
_depthwise = _library.define(
    f"depthwise_norm_linked({_NORM.replace('Tensor x', f'Tensor x, {_LINK}')}) -> (Tensor, Tensor, Tensor)",
    "separable_conv", _fake_depthwise, stored=2,
)  # fmt: skip
_depthwise_backward = _library.define(
    f"depthwise_norm_linked_backward(Tensor dout, Tensor x, {_LINK}, Tensor y, Tensor weight, Tensor n_weight, "
    "Tensor n_bias, Tensor stats, int act, int[2] stride, int[4] padding, bool[2] mask) -> ("
    + ", ".join(["Tensor"] * 8) + ")",
    "separable_conv", _fake_depthwise_grad,
)  # fmt: skip
_gate = _library.define(f"gate_linked(Tensor x, {_LINK}, {_ARGS}) -> (Tensor, Tensor, Tensor)", "gate", _fake_gate)
_gate_backward = _library.define(
    f"gate_linked_backward(Tensor dout, Tensor x, {_LINK}, Tensor means, Tensor pixels, {_ARGS}, bool[3] mask) -> ("
    + ", ".join(["Tensor"] * 10) + ")",
    "gate", _fake_gate_grad,
)  # fmt: skip


def _depthwise_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *before, ctx.l_act, weight, _, n_weight, n_bias, _, _, _, ctx.act, ctx.stride, ctx.padding = inputs
    _, y, stats = output
    ctx.save_for_backward(x, *before, y, weight, n_weight, n_bias, stats)
    ctx.mark_non_differentiable(y, stats)
    ctx.set_materialize_grads(False)


def _depthwise_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return _library.placed(ctx.needs_input_grad)
    x, l_stats, l_weight, l_bias, *saved = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [True, any(needs[5:9])]
    grads = _depthwise_backward(
        dout, x, l_stats, l_weight, l_bias, ctx.l_act, *saved, ctx.act, ctx.stride, ctx.padding, mask
    )
    return _library.placed(needs, (0, 5, 6, 7, 8, 1, 2, 3), grads)


def _gate_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *before, ctx.l_act, w1, b1, w2, b2, ctx.act, ctx.gate_act, sw, sb, ctx.linear, ctx.pool = inputs
    ctx.save_for_backward(x, *before, *output[1:], w1, b1, w2, b2, sw, sb)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gate_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return _library.placed(ctx.needs_input_grad)
    x, l_stats, l_weight, l_bias, *saved, sw, sb = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [True, any(needs[5:9]), any(needs[11:13])]
    grads = _gate_backward(
        dout, x, l_stats, l_weight, l_bias, ctx.l_act, *saved, ctx.act, ctx.gate_act, sw, sb, ctx.linear, ctx.pool, mask
    )
    return _library.placed(needs, (0, 5, 6, 7, 8, 11, 12, 1, 2, 3), grads)


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, _, _, _, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, output[0], weight, output[1])
    ctx.set_materialize_grads(False)


def _conv_grad(ctx: Any, dy: Tensor | None, d_stats: Tensor | None) -> tuple[Any, ...]:
    if dy is None and d_stats is None:
        return (None,) * 8
    x, y, weight, stats = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dy, mask = torch.zeros_like(y) if dy is None else dy, [needs[0], needs[1] or needs[2], needs[2]]
    grads = _conv_backward(dy, d_stats, x, y, weight, stats, ctx.stride, ctx.padding, mask)
    return *(grad if need else None for need, grad in zip(needs, grads, strict=False)), *(None,) * 5


def _block_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *before, ctx.l_act, dw, _, w1, b1, _, _, _, ctx.act1 = inputs[:13]
    pw, _, w2, b2, _, _, _, ctx.act2, ctx.stride, ctx.padding, ctx.deferred = inputs[13:]
    out, y1, y2, stats1, stats2 = output
    last = out if ctx.deferred else y2
    ctx.save_for_backward(x, *before, y1, last, dw, w1, b1, stats1, pw, w2, b2, stats2)
    ctx.mark_non_differentiable(y1, y2, stats1, *(() if ctx.deferred else (stats2,)))
    ctx.set_materialize_grads(False)


def _block_grad(ctx: Any, dout: Tensor | None, _1: Any, _2: Any, _3: Any, d_stats: Tensor | None) -> tuple[Any, ...]:
    if dout is None and d_stats is None:
        return _library.placed(ctx.needs_input_grad)
    x, l_stats, l_weight, l_bias, y1, last, dw, w1, b1, stats1, pw, w2, b2, stats2 = ctx.saved_tensors
    dout = torch.zeros_like(last) if dout is None else dout
    needs = ctx.needs_input_grad
    mask = [needs[0] or l_stats is not None, any(needs[5:9]), any(needs[13:17]), needs[6] or needs[14]]
    grads = _block_backward(
        dout, d_stats, x, l_stats, l_weight, l_bias, ctx.l_act, y1, last, dw, w1, b1, stats1, ctx.act1,
        pw, w2, b2, stats2, ctx.act2, ctx.stride, ctx.padding, ctx.deferred, mask,
    )  # fmt: skip
    return _library.placed(needs, (0, 5, 6, 7, 8, 13, 14, 15, 16, 1, 2, 3), grads)


_library.autograd(_conv, _conv_setup, _conv_grad)
_library.autograd(_block, _block_setup, _block_grad)
_library.autograd(_depthwise, _depthwise_setup, _depthwise_grad)
_library.autograd(_gate, _gate_setup, _gate_grad)
for _op in (_conv, _block, _depthwise, _gate):
    _library.autocast(_op, "x", lower=_op is not _gate)


def deferred_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, act: str | None, stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> Deferred:  # fmt: skip
    """`conv2d` in training, its normalisation and activation left to the next op; arguments and errors as there."""
    args, height, width = conv_arguments(x, weight, bias, norm, act, stride, padding)
    check_batch("conv2d", (x.shape[0], weight.shape[0], height, width))
    *_, code, strides, pads = args
    y, stats = _conv(x, weight, bias, norm.running_mean, norm.running_var, norm.eps, strides, pads)
    if y.numel():
        update_running(norm, stats.detach())
    return Deferred(y, stats, norm.weight, norm.bias, code)


def linked_separable_conv2d(
    x: Tensor | Deferred, dw_weight: Tensor, pw_weight: Tensor, *, norm1: Norm | None, act1: str | None,
    norm2: Norm | None, act2: str | None, stride: int | Sequence[int], padding: int | Sequence[int],
    dw_bias: Tensor | None, pw_bias: Tensor | None, defer: bool,
) -> Tensor | Deferred:  # fmt: skip
    """`separable_conv2d` in training behind a deferred normalisation, or with its last one left to the next op.

    Arguments and errors as there; with ``defer`` the result is a `Deferred`.
    """
    before = x if isinstance(x, Deferred) else Deferred(x, *(None,) * 3, 0)  # type: ignore[arg-type]
    args, height, width = block_arguments(
        "separable_conv2d", before.y, dw_weight, pw_weight, dw_bias, norm1, act1, pw_bias, norm2, act2, stride, padding
    )
    if norm1 is not None or norm2 is not None:
        check_batch("separable_conv2d", (before.y.shape[0], before.y.shape[1], height, width))
    block, code = args[1:], args[16]
    if defer:
        block = (*block[:10], None, None, *block[12:15], 0, *block[16:])
    out, _, _, stats1, stats2 = _block(*before, *block, defer)
    if out.numel():
        update_running(norm1, stats1)
        update_running(norm2, stats2.detach())
    return Deferred(out, stats2, norm2.weight, norm2.bias, code) if defer and norm2 is not None else out


def linked_depthwise_conv2d(
    x: Deferred, weight: Tensor, bias: Tensor | None, norm: Norm, act: str | None, stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> Tensor:  # fmt: skip
    """`depthwise_conv2d` with a norm in training behind a deferred one; arguments and errors as there."""
    args, height, width = depthwise_arguments(x.y, weight, bias, norm, act, stride, padding)
    check_batch("depthwise_conv2d", (x.y.shape[0], x.y.shape[1], height, width))
    out, _, stats = _depthwise(*x, *args[1:])
    if out.numel():
        update_running(norm, stats)
    y: Tensor = out
    return y


def linked_csa(
    x: Deferred, channel_weight: Tensor, spatial_weight: Tensor, spatial_bias: Tensor, *, pool: bool
) -> Tensor:
    """`csa` in training behind a deferred normalisation; arguments and errors as there."""
    check_csa(x.y, channel_weight, spatial_weight, spatial_bias, pool)
    args = channel_weight, None, None, None, 0, _SIGMOID, spatial_weight, spatial_bias, False, pool
    out: Tensor = _gate(*x, *args)[0]
    return out
