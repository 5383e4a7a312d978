# SPDX-License-Identifier: Apache-2.0
"""Max pooling over windows, and the global poolings.

Saved for backward: max_pool2d the place of each maximum in its window, 1 byte an element of the output (4 where a
window has more than 256 elements), and not x, 4 bytes an element, which recomputing would read; the global maximum its
pixel, 4 bytes a channel of an image; the mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastfer import _checks, _library

_FAMILY = "pool"
_CL = torch.channels_last


def _image(like: Tensor, height: Any, width: Any) -> Tensor:
    return like.new_empty((*like.shape[:2], height, width)).contiguous(memory_format=_CL)


def fake_max_pool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """An empty tensor like the output of `max_pool2d`."""
    height = (x.shape[2] + padding[0] + padding[2] - kernel[0]) // stride[0] + 1
    width = (x.shape[3] + padding[1] + padding[3] - kernel[1]) // stride[1] + 1
    return _image(x, height, width)


def _fake_max_pool_train(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> tuple[Tensor, Tensor]:
    y = fake_max_pool(x, kernel, stride, padding)
    return y, torch.empty_like(y, dtype=torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32)


def _fake_max_pool_backward(dy: Tensor, positions: Tensor, size: list[Any], *window: Any) -> Tensor:
    return _image(dy, *size)


def _fake_avg(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2])


def _fake_max(x: Tensor) -> tuple[Tensor, Tensor]:
    return _fake_avg(x), x.new_empty(x.shape[:2], dtype=torch.int32)


def _fake_avg_max(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_avg(x), *_fake_max(x)


_WINDOW = "int[2] kernel, int[2] stride, int[4] padding"
_max_pool = _library.define_flat(f"max_pool2d(Tensor x, {_WINDOW}) -> Tensor", _FAMILY, fake_max_pool)
_max_pool_train = _library.define_flat(
    f"max_pool2d_train(Tensor x, {_WINDOW}) -> (Tensor, Tensor)", _FAMILY, _fake_max_pool_train
)
_max_pool_backward = _library.define_flat(
    f"max_pool2d_backward(Tensor dy, Tensor positions, SymInt[2] size, {_WINDOW}) -> Tensor",
    _FAMILY,
    _fake_max_pool_backward,
)
_avg_pool = _library.define_flat("global_avg_pool(Tensor x) -> Tensor", _FAMILY, _fake_avg)
_avg_pool_backward = _library.define_flat(
    "global_avg_pool_backward(Tensor davg, SymInt[2] size) -> Tensor", _FAMILY, lambda davg, size: _image(davg, *size)
)
_global_max = _library.define_flat("global_max_pool(Tensor x) -> (Tensor, Tensor)", _FAMILY, _fake_max)
_global_max_backward = _library.define_flat(
    "global_max_pool_backward(Tensor dmax, Tensor positions, SymInt[2] size) -> Tensor",
    _FAMILY,
    lambda dmax, positions, size: _image(dmax, *size),
)
_avg_max = _library.define_flat(
    "global_avg_max_pool(Tensor x) -> (Tensor, Tensor, Tensor)", _FAMILY, _fake_avg_max, stored=2
)
_avg_max_backward = _library.define_flat(
    "global_avg_max_pool_backward(Tensor davg, Tensor dmax, Tensor positions, SymInt[2] size) -> Tensor",
    _FAMILY,
    lambda davg, dmax, positions, size: _image(dmax, *size),
)


def _max_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.window = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _max_pool_grad(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
    return _max_pool_backward(dy, ctx.saved_tensors[0], ctx.size, *ctx.window), None, None, None


def _avg_setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


def _avg_grad(ctx: Any, davg: Tensor) -> tuple[Tensor]:
    return (_avg_pool_backward(davg, ctx.size),)


def _max_setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.size = inputs[0].shape[2:]
    ctx.save_for_backward(output[-1])
    ctx.mark_non_differentiable(output[-1])


def _global_max_grad(ctx: Any, dmax: Tensor, _: Any) -> tuple[Tensor]:
    return (_global_max_backward(dmax, ctx.saved_tensors[0], ctx.size),)


def _avg_max_grad(ctx: Any, davg: Tensor, dmax: Tensor, _: Any) -> tuple[Tensor]:
    return (_avg_max_backward(davg, dmax, ctx.saved_tensors[0], ctx.size),)


_library.autograd_flat(_max_pool_train, _max_pool_setup, _max_pool_grad)
_library.autograd_flat(_avg_pool, _avg_setup, _avg_grad)
_library.autograd_flat(_global_max, _max_setup, _global_max_grad)
_library.autograd_flat(_avg_max, _max_setup, _avg_max_grad)
for _op in (_max_pool, _max_pool_train, _avg_pool, _global_max, _avg_max):
    _library.autocast_flat(_op, "x")


class Pool(NamedTuple):
    """The windows of a `max_pool2d`."""

    kernel: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    padding: int | Sequence[int] = 0


def check_pool(op: str, pool: object, height: int, width: int) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and four-sided padding of windows that fit an image."""
    if not isinstance(pool, Pool):
        raise TypeError(f"{op}: pool: expected fastfer.ops.Pool, got {type(pool).__name__}")
    kernels = _checks.pair(op, "kernel", pool.kernel)
    strides = kernels if pool.stride is None else _checks.pair(op, "stride", pool.stride)
    pads = _checks.padding4(op, pool.padding)
    if max(pads[0], pads[2]) > kernels[0] // 2 or max(pads[1], pads[3]) > kernels[1] // 2:
        raise ValueError(f"{op}: padding: expected at most half the kernel {tuple(kernels)}, got {pool.padding!r}")
    _checks.out_size(op, height, pads[0], pads[2], kernels[0], strides[0], "height")
    _checks.out_size(op, width, pads[1], pads[3], kernels[1], strides[1], "width")
    return kernels, strides, pads


def max_pool2d(
    x: Tensor,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
) -> Tensor:
    """Largest element of each window: x (N, C, H, W) -> (N, C, H', W'), channels_last; the padding is minus infinity.

    stride defaults to the kernel; padding is an int, (vertical, horizontal) or (top, left, bottom, right), at most half
    the kernel, so that every window holds an element. NaN wins; among equals the first, row by row, gets the gradient.
    Raises TypeError or ValueError naming the argument.
    """
    op = "max_pool2d"
    _checks.image(op, "x", x)
    kernels, strides, pads = check_pool(op, Pool(kernel, stride, padding), x.shape[2], x.shape[3])
    _check_pixels(op, x)
    y: Tensor
    if _library.is_jit_traced() or (x.requires_grad and _library.gradients_on()):
        y, _ = _max_pool_train(x, kernels, strides, pads)
    else:
        y = _max_pool(x, kernels, strides, pads)
    return y


def global_avg_pool(x: Tensor) -> Tensor:
    """Mean over the image: x (N, C, H, W) -> (N, C); NaN where H or W is 0."""
    _checks.image("global_avg_pool", "x", x)
    y: Tensor = _avg_pool(x)
    return y


def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over the image: x (N, C, H, W), H and W at least 1 -> (N, C); NaN and equals as in `max_pool2d`."""
    _checks.image("global_max_pool", "x", x)
    _check_pixels("global_max_pool", x)
    y: Tensor = _global_max(x)[0]
    return y


def global_avg_max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """`global_avg_pool` and `global_max_pool` in one pass: x (N, C, H, W), H and W at least 1 -> two of (N, C)."""
    _checks.image("global_avg_max_pool", "x", x)
    _check_pixels("global_avg_max_pool", x)
    avg, largest, _ = _avg_max(x)
    return avg, largest


def _check_pixels(op: str, x: Tensor) -> None:
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{op}: x: expected H and W >= 1, got shape {tuple(x.shape)}")
