# SPDX-License-Identifier: Apache-2.0
"""Pooling on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import CPU, empty_nhwc, nhwc
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


def _max_pool(a: MaxPool, train: bool) -> tuple[Tensor, Tensor | None]:
    (n, c, h, w), ((kh, kw), (sh, sw), (top, left, bottom, right)) = a.x.shape, a.window
    oh, ow = (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1
    y = empty_nhwc(a.x, c, oh, ow)
    dtype = torch.uint8 if kh * kw <= 256 else torch.int32
    positions = torch.empty(y.shape, dtype=dtype, device=CPU, memory_format=_CL) if train else None
    params = _C.MaxPoolParams(
        n=n,
        h=h,
        w=w,
        c=c,
        oh=oh,
        ow=ow,
        kh=kh,
        kw=kw,
        sh=sh,
        sw=sw,
        top=top,
        left=left,
        x=nhwc(a.x),
        y=y,
        positions=positions,
        threads=num_threads(),
    )
    run = _C.max_pool2d_train if train else _C.max_pool2d_fwd
    run(a.x.dtype == torch.float64, params)
    return y, positions


def max_pool2d(a: MaxPool) -> Tensor:
    """Largest element of each window."""
    return _max_pool(a, False)[0]


def max_pool2d_train(a: MaxPool) -> MaxPoolTrained:
    """Output and the place of each maximum in its window."""
    y, positions = _max_pool(a, True)
    assert positions is not None
    return MaxPoolTrained(y, positions)


def max_pool2d_backward(a: MaxPoolBackward) -> Tensor:
    """Gradient of x."""
    (n, c, oh, ow), (h, w), ((kh, kw), (sh, sw), (top, left, _, _)) = a.d_out.shape, a.size, a.window
    dx = empty_nhwc(a.d_out, c, h, w)
    params = _C.MaxPoolParams(
        n=n,
        h=h,
        w=w,
        c=c,
        oh=oh,
        ow=ow,
        kh=kh,
        kw=kw,
        sh=sh,
        sw=sw,
        top=top,
        left=left,
        positions=nhwc(a.positions),
        dy=nhwc(a.d_out),
        dx=dx,
        threads=num_threads(),
    )
    _C.max_pool2d_bwd(dx.dtype == torch.float64, params)
    return dx


def global_avg_pool(a: GlobalPool) -> Tensor:
    """Mean over the image."""
    x, (n, c, h, w) = a.x, a.x.shape
    avg = x.new_empty((n, c))
    params = _C.GlobalPoolParams(n=n, pixels=h * w, c=c, x=nhwc(x), avg=avg, threads=num_threads())
    _C.global_avg_pool_fwd(x.dtype == torch.float64, params)
    return avg


def global_avg_pool_backward(a: GlobalAvgBackward) -> Tensor:
    """Gradient of x."""
    (n, c), (h, w) = a.d_out.shape, a.size
    dx = empty_nhwc(a.d_out, c, h, w)
    params = _C.GlobalPoolParams(n=n, pixels=h * w, c=c, d_avg=a.d_out.contiguous(), dx=dx, threads=num_threads())
    _C.global_avg_pool_bwd(dx.dtype == torch.float64, params)
    return dx


def global_max_pool(a: GlobalPool) -> GlobalMaxTrained:
    """Maximum over the image and its pixel."""
    x, (n, c, h, w) = a.x, a.x.shape
    largest, positions = x.new_empty((n, c)), x.new_empty((n, c), dtype=torch.int32)
    params = _C.GlobalPoolParams(
        n=n, pixels=h * w, c=c, x=nhwc(x), max=largest, positions=positions, threads=num_threads()
    )
    _C.global_max_pool_fwd(x.dtype == torch.float64, params)
    return GlobalMaxTrained(largest, positions)


def global_max_pool_backward(a: GlobalMaxBackward) -> Tensor:
    """Gradient of x."""
    (n, c), (h, w) = a.d_max.shape, a.size
    dx = empty_nhwc(a.d_max, c, h, w)
    params = _C.GlobalPoolParams(
        n=n,
        pixels=h * w,
        c=c,
        positions=a.positions.contiguous(),
        d_max=a.d_max.contiguous(),
        dx=dx,
        threads=num_threads(),
    )
    _C.global_max_pool_bwd(dx.dtype == torch.float64, params)
    return dx


def global_avg_max_pool(a: GlobalPool) -> GlobalAvgMaxTrained:
    """Mean and maximum over the image, and the maximum's pixel, in one read."""
    x, (n, c, h, w) = a.x, a.x.shape
    avg, largest, positions = x.new_empty((n, c)), x.new_empty((n, c)), x.new_empty((n, c), dtype=torch.int32)
    params = _C.GlobalPoolParams(
        n=n, pixels=h * w, c=c, x=nhwc(x), avg=avg, max=largest, positions=positions, threads=num_threads()
    )
    _C.global_avg_max_pool_fwd(x.dtype == torch.float64, params)
    return GlobalAvgMaxTrained(avg, largest, positions)


def global_avg_max_pool_backward(a: GlobalAvgMaxBackward) -> Tensor:
    """Gradient of x."""
    (n, c), (h, w) = a.d_max.shape, a.size
    dx = empty_nhwc(a.d_max, c, h, w)
    params = _C.GlobalPoolParams(
        n=n,
        pixels=h * w,
        c=c,
        positions=a.positions.contiguous(),
        d_avg=a.d_avg.contiguous(),
        d_max=a.d_max.contiguous(),
        dx=dx,
        threads=num_threads(),
    )
    _C.global_avg_max_pool_bwd(dx.dtype == torch.float64, params)
    return dx
