# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with fused normalisation, activation and max pooling: pool(act(norm(convolution(x) + bias))).

Evaluation without gradients is one pass (two with a pool). Training keeps x, the convolution's output y where a norm or
an activation follows (4 bytes an element of each in float32) and 3 statistics a channel; normalised values are computed
again. With a norm and a pool it also keeps y at the maxima and their places, 4 bytes and 1 byte an element of the
pooled output; the unpooled output and its gradient are never in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.norm import Norm, check_batch, check_norm, update_running
from fastfer.ops.pool import Pool, check_pool, fake_max_pool, max_pool2d

_FAMILY = "conv2d"
_ARGS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? n_weight, Tensor? n_bias, Tensor? n_mean, Tensor? n_var, "
    "float eps, int act, int[2] stride, int[4] padding"
)


def _nhwc(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def fake_image(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """A convolution's output with no values."""
    height = (x.shape[2] + padding[0] + padding[2] - weight.shape[2]) // stride[0] + 1
    width = (x.shape[3] + padding[1] + padding[3] - weight.shape[3]) // stride[1] + 1
    return _nhwc(x.new_empty((x.shape[0], weight.shape[0], height, width)))


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return fake_image(x, weight, rest[7], rest[8])


def _fake_train(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    n_weight, act = rest[1], rest[6]
    out = _fake(x, weight, *rest)
    y = torch.empty_like(out) if n_weight is not None or act else x.new_empty(0)
    return out, y, x.new_empty((3, weight.shape[0]) if n_weight is not None else 0)


def _fake_backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor | None, n_bias: Tensor | None, stats: Tensor,
    act: int, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    norm = mask[1] and n_weight is not None
    outputs = (x.new_empty(weight.shape[0] if wanted else 0) for wanted in (mask[1], norm, norm))
    d_weight = x.new_empty(weight.shape if mask[1] else 0)
    return _nhwc(x.new_empty(x.shape)) if mask[0] else x.new_empty(0), d_weight, *outputs


_WINDOW = "int[2] pool_kernel, int[2] pool_stride, int[4] pool_padding"


def _fake_pool_train(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    y = _fake(x, weight, *rest)
    out = fake_max_pool(y, *rest[9:12])
    positions = torch.empty_like(out, dtype=torch.uint8)
    return out, y, torch.empty_like(out), positions, x.new_empty((3, weight.shape[0]))


def _fake_pool_backward(
    dout: Tensor, x: Tensor, y: Tensor, best: Tensor, positions: Tensor, *rest: Any
) -> tuple[Tensor, ...]:  # fmt: skip
    return _fake_backward(dout, x, y, *rest[:7], *rest[10:])


_conv2d = _library.define_flat(f"conv2d({_ARGS}) -> Tensor", _FAMILY, _fake)
_conv2d_train = _library.define_flat(
    f"conv2d_train({_ARGS}, bool batch_stats) -> (Tensor, Tensor, Tensor)", _FAMILY, _fake_train, stored=2
)
_conv2d_backward = _library.define_flat(
    "conv2d_backward(Tensor dout, Tensor x, Tensor y, Tensor weight, Tensor? n_weight, Tensor? n_bias, Tensor stats, "
    "int act, int[2] stride, int[4] padding, bool batch_stats, bool[2] mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_backward,
)  # fmt: skip


_conv2d_pool_train = _library.define_flat(
    f"conv2d_pool_train({_ARGS}, {_WINDOW}, bool batch_stats) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_pool_train, stored=3,
)  # fmt: skip
_conv2d_pool_backward = _library.define_flat(
    "conv2d_pool_backward(Tensor dout, Tensor x, Tensor y, Tensor best, Tensor positions, Tensor weight, "
    "Tensor n_weight, Tensor n_bias, Tensor stats, int act, int[2] stride, int[4] padding, "
    f"{_WINDOW}, bool batch_stats, bool[2] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _FAMILY, _fake_pool_backward,
)  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, n_weight, n_bias, _, _, _, ctx.act, ctx.stride, ctx.padding, ctx.batch_stats = inputs
    _, y, stats = output
    ctx.save_for_backward(x, y, weight, n_weight, n_bias, stats)
    ctx.mark_non_differentiable(y, stats)
    ctx.set_materialize_grads(False)


def _grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 12
    needs = ctx.needs_input_grad
    mask = [needs[0], any(needs[1:5])]
    grads = _conv2d_backward(
        dout, *ctx.saved_tensors, ctx.act, ctx.stride, ctx.padding, ctx.batch_stats, mask
    )  # x, weight, bias, n_weight, n_bias as the inputs
    return *(grad if need else None for need, grad in zip(needs, grads, strict=False)), *(None,) * 7


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, n_weight, n_bias, _, _, _, ctx.act, ctx.stride, ctx.padding, *ctx.window, ctx.batch_stats = inputs
    _, *kept, stats = output
    ctx.save_for_backward(x, *kept, weight, n_weight, n_bias, stats)
    ctx.mark_non_differentiable(*kept, stats)
    ctx.set_materialize_grads(False)


def _pool_grad(ctx: Any, dout: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 15
    needs = ctx.needs_input_grad
    mask = [needs[0], any(needs[1:5])]
    grads = _conv2d_pool_backward(
        dout, *ctx.saved_tensors, ctx.act, ctx.stride, ctx.padding, *ctx.window, ctx.batch_stats, mask
    )
    return *(grad if need else None for need, grad in zip(needs, grads, strict=False)), *(None,) * 10


_library.autograd_flat(_conv2d_train, _setup, _grad)
_library.autograd_flat(_conv2d_pool_train, _pool_setup, _pool_grad)
for _op in (_conv2d, _conv2d_train, _conv2d_pool_train):
    _library.autocast_flat(_op, "x", lower=True)


def _check_weight(op: str, x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """(O, KH, KW) of a weight that fits ``x``."""
    _checks.is_tensor(op, "weight", weight)
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"{op}: weight: expected shape (O, C, KH, KW), got {tuple(weight.shape)}")
    _checks.image(op, "x", x, weight.shape[1])
    _checks.like(op, "weight", weight, x, weight.shape)
    return weight.shape[0], weight.shape[2], weight.shape[3]


def conv_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None, act: str | None, stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> tuple[tuple[Any, ...], int, int]:  # fmt: skip
    """The registered op's arguments, checked, and the convolution's height and width."""
    op = "conv2d"
    _checks.image(op, "x", x)
    out, kh, kw = _check_weight(op, x, weight)
    if bias is not None:
        _checks.like(op, "bias", bias, x, (out,))
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    code = _checks.act_code(op, act)
    height = _checks.out_size(op, x.shape[2], pads[0], pads[2], kh, strides[0], "height")
    width = _checks.out_size(op, x.shape[3], pads[1], pads[3], kw, strides[1], "width")
    if norm is not None:
        check_norm(op, "norm", norm, x, out)
    tensors = norm[:4] if norm is not None else (None,) * 4
    return (x, weight, bias, *tensors, norm.eps if norm else 0.0, code, strides, pads), height, width


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    act: str | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    pool: Pool | None = None,
    training: bool = False,
) -> Tensor:
    """pool(act(norm(convolution(x) + bias))): x (N, C, H, W), weight (O, C, KH, KW) -> (N, O, OH, OW), channels_last.

    float32 or float64; bias (O,); stride an int or (vertical, horizontal); padding zeros as an int,
    (vertical, horizontal) or (top, left, bottom, right); norm a `Norm` or None, ``training`` as in `batch_norm`;
    pool the windows of a `max_pool2d` behind it, or None.
    Raises TypeError or ValueError naming the argument.
    """
    args, height, width = conv_arguments(x, weight, bias, norm, act, stride, padding)
    window = check_pool("conv2d", pool, height, width) if pool is not None else None
    batch_stats = training and norm is not None
    if batch_stats:
        check_batch("conv2d", (x.shape[0], weight.shape[0], height, width))
    y: Tensor
    if not batch_stats and not (_library.gradients_on() and any(t is not None and t.requires_grad for t in args[:7])):
        y = _conv2d(*args)
        return y if pool is None else max_pool2d(y, *pool)
    if window is not None and norm is not None and window[0][0] * window[0][1] <= 256:
        y, _, _, _, stats = _conv2d_pool_train(*args, *window, batch_stats)
        pool = None
    else:
        y, _, stats = _conv2d_train(*args, batch_stats)
    if batch_stats and y.numel():
        update_running(norm, stats)
    return y if pool is None else max_pool2d(y, *pool)
