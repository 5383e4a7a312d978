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
from fastfer.signatures.fields import Window
from fastfer.signatures.pool import (
    GlobalAvgBackward,
    GlobalAvgMaxBackward,
    GlobalAvgMaxTrained,
    GlobalMaxBackward,
    GlobalMaxTrained,
    GlobalPool,
    MaxPool,
    MaxPoolBackward,
    MaxPoolTrained,
)

_CL = torch.channels_last


def _image(like: Tensor, height: Any, width: Any) -> Tensor:
    return like.new_empty((*like.shape[:2], height, width)).contiguous(memory_format=_CL)


def fake_max_pool(a: MaxPool) -> Tensor:
    """An empty tensor like the output of `max_pool2d`."""
    (kh, kw), (sh, sw), (top, left, bottom, right) = a.window
    return _image(a.x, (a.x.shape[2] + top + bottom - kh) // sh + 1, (a.x.shape[3] + left + right - kw) // sw + 1)


def _fake_max_pool_train(a: MaxPool) -> MaxPoolTrained:
    y, (kh, kw) = fake_max_pool(a), a.window.kernel
    return MaxPoolTrained(y, torch.empty_like(y, dtype=torch.uint8 if kh * kw <= 256 else torch.int32))


def _fake_avg(a: GlobalPool) -> Tensor:
    return a.x.new_empty(a.x.shape[:2])


def _fake_max(a: GlobalPool) -> GlobalMaxTrained:
    return GlobalMaxTrained(_fake_avg(a), a.x.new_empty(a.x.shape[:2], dtype=torch.int32))


def _fake_avg_max(a: GlobalPool) -> GlobalAvgMaxTrained:
    return GlobalAvgMaxTrained(_fake_avg(a), *_fake_max(a))


def _fake_backward(a: MaxPoolBackward | GlobalAvgBackward) -> Tensor:
    return _image(a.d_out, *a.size)


def _fake_max_backward(a: GlobalMaxBackward | GlobalAvgMaxBackward) -> Tensor:
    return _image(a.d_max, *a.size)


_max_pool = _library.define("max_pool2d", "pool", MaxPool, Tensor, fake_max_pool)
_max_pool_train = _library.define("max_pool2d_train", "pool", MaxPool, MaxPoolTrained, _fake_max_pool_train)
_max_pool_backward = _library.define("max_pool2d_backward", "pool", MaxPoolBackward, Tensor, _fake_backward)
_avg_pool = _library.define("global_avg_pool", "pool", GlobalPool, Tensor, _fake_avg)
_avg_backward = _library.define("global_avg_pool_backward", "pool", GlobalAvgBackward, Tensor, _fake_backward)
_global_max = _library.define("global_max_pool", "pool", GlobalPool, GlobalMaxTrained, _fake_max)
_max_backward = _library.define("global_max_pool_backward", "pool", GlobalMaxBackward, Tensor, _fake_max_backward)
_avg_max = _library.define("global_avg_max_pool", "pool", GlobalPool, GlobalAvgMaxTrained, _fake_avg_max)
_avg_max_backward = _library.define(
    "global_avg_max_pool_backward", "pool", GlobalAvgMaxBackward, Tensor, _fake_max_backward
)
_library.autograd(_max_pool_train, _max_pool_backward)
_library.autograd(_avg_pool, _avg_backward)
_library.autograd(_global_max, _max_backward)
_library.autograd(_avg_max, _avg_max_backward)
for _op in (_max_pool, _max_pool_train, _avg_pool, _global_max, _avg_max):
    _library.autocast(_op)


class Pool(NamedTuple):
    """The windows of a `max_pool2d`."""

    kernel: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    padding: int | Sequence[int] = 0


def check_pool(op: str, pool: object, height: int, width: int) -> Window:
    """Windows that fit an image."""
    if not isinstance(pool, Pool):
        raise TypeError(f"{op}: pool: expected fastfer.ops.Pool, got {type(pool).__name__}")
    kernels = _checks.pair(op, "kernel", pool.kernel)
    strides = kernels if pool.stride is None else _checks.pair(op, "stride", pool.stride)
    pads = _checks.padding4(op, pool.padding)
    if max(pads[0], pads[2]) > kernels[0] // 2 or max(pads[1], pads[3]) > kernels[1] // 2:
        raise ValueError(f"{op}: padding: expected at most half the kernel {tuple(kernels)}, got {pool.padding!r}")
    _checks.out_size(op, height, pads[0], pads[2], kernels[0], strides[0], "height")
    _checks.out_size(op, width, pads[1], pads[3], kernels[1], strides[1], "width")
    return Window(kernels, strides, pads)


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
    fields = MaxPool(x, check_pool(op, Pool(kernel, stride, padding), x.shape[2], x.shape[3]))
    _check_pixels(op, x)
    if _library.is_jit_traced() or _max_pool_train.needs_gradient(fields):
        return _max_pool_train(fields).out
    return _max_pool(fields)


def global_avg_pool(x: Tensor) -> Tensor:
    """Mean over the image: x (N, C, H, W) -> (N, C); NaN where H or W is 0."""
    _checks.image("global_avg_pool", "x", x)
    return _avg_pool(GlobalPool(x))


def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over the image: x (N, C, H, W), H and W at least 1 -> (N, C); NaN and equals as in `max_pool2d`."""
    _checks.image("global_max_pool", "x", x)
    _check_pixels("global_max_pool", x)
    return _global_max(GlobalPool(x)).max


def global_avg_max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """`global_avg_pool` and `global_max_pool` in one pass: x (N, C, H, W), H and W at least 1 -> two of (N, C)."""
    _checks.image("global_avg_max_pool", "x", x)
    _check_pixels("global_avg_max_pool", x)
    pooled = _avg_max(GlobalPool(x))
    return pooled.avg, pooled.max


def _check_pixels(op: str, x: Tensor) -> None:
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{op}: x: expected H and W >= 1, got shape {tuple(x.shape)}")
