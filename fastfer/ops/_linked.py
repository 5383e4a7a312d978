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
from fastfer.ops.separable_conv import depthwise_fields, depthwise_norm_linked, separable_fields, separable_linked
from fastfer.signatures.fields import LeftNorm, Link
from fastfer.signatures.separable_conv import DepthwiseNormLinked, SeparableLinked


class Deferred(NamedTuple):
    """act((y - mean)·invstd·weight + bias), not computed yet: y (N, C, H, W), stats (3, C), weight and bias (C,)."""

    y: Tensor
    stats: Tensor
    weight: Tensor
    bias: Tensor
    act: int


def _link(x: Deferred) -> Link:
    return Link(x.stats, x.weight, x.bias, x.act)


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


_conv = _library.define_flat(
    "conv2d_linked(Tensor x, Tensor weight, Tensor? bias, Tensor n_mean, Tensor n_var, float eps, int[2] stride, "
    "int[4] padding) -> (Tensor, Tensor)",
    "conv2d", _fake_conv,
)  # fmt: skip
_conv_backward = _library.define_flat(
    "conv2d_linked_backward(Tensor dy, Tensor? d_stats, Tensor x, Tensor y, Tensor weight, Tensor stats, "
    "int[2] stride, int[4] padding, bool[3] mask) -> (Tensor, Tensor, Tensor)",
    "conv2d", _fake_conv_backward,
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


_LINK = "Tensor l_stats, Tensor l_weight, Tensor l_bias, int l_act"
_gate = _library.define_flat(f"gate_linked(Tensor x, {_LINK}, {_ARGS}) -> (Tensor, Tensor, Tensor)", "gate", _fake_gate)
_gate_backward = _library.define_flat(
    f"gate_linked_backward(Tensor dout, Tensor x, {_LINK}, Tensor means, Tensor pixels, {_ARGS}, bool[3] mask) -> ("
    + ", ".join(["Tensor"] * 10) + ")",
    "gate", _fake_gate_grad,
)  # fmt: skip


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


_library.autograd_flat(_conv, _conv_setup, _conv_grad)
_library.autograd_flat(_gate, _gate_setup, _gate_grad)
for _op in (_conv, _gate):
    _library.autocast_flat(_op, "x", lower=_op is not _gate)


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
    y = x.y if isinstance(x, Deferred) else x
    block, height, width = separable_fields(
        y, dw_weight, pw_weight, dw_bias, norm1, act1, pw_bias, norm2, act2, stride, padding
    )
    if norm1 is not None or norm2 is not None:
        check_batch("separable_conv2d", (y.shape[0], y.shape[1], height, width))
    left, code = None, block.act2
    if defer and norm2 is not None:
        left = LeftNorm(norm2.running_mean, norm2.running_var, norm2.eps)
        block = block._replace(norm2=None, act2=0)
    trained = separable_linked(SeparableLinked(block, _link(x) if isinstance(x, Deferred) else None, left))
    if trained.out.numel():
        update_running(norm1, trained.stats1)
        update_running(norm2, trained.stats2.detach())
    if left is None or norm2 is None:
        return trained.out
    return Deferred(trained.out, trained.stats2, norm2.weight, norm2.bias, code)


def linked_depthwise_conv2d(
    x: Deferred, weight: Tensor, bias: Tensor | None, norm: Norm, act: str | None, stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> Tensor:  # fmt: skip
    """`depthwise_conv2d` with a norm in training behind a deferred one; arguments and errors as there."""
    block, height, width = depthwise_fields(x.y, weight, bias, norm, act, stride, padding)
    check_batch("depthwise_conv2d", (x.y.shape[0], x.y.shape[1], height, width))
    trained = depthwise_norm_linked(DepthwiseNormLinked(block, _link(x)))
    if trained.out.numel():
        update_running(norm, trained.stats)
    return trained.out


def linked_csa(
    x: Deferred, channel_weight: Tensor, spatial_weight: Tensor, spatial_bias: Tensor, *, pool: bool
) -> Tensor:
    """`csa` in training behind a deferred normalisation; arguments and errors as there."""
    check_csa(x.y, channel_weight, spatial_weight, spatial_bias, pool)
    args = channel_weight, None, None, None, 0, _SIGMOID, spatial_weight, spatial_bias, False, pool
    out: Tensor = _gate(*x, *args)[0]
    return out
