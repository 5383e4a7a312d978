# SPDX-License-Identifier: Apache-2.0
"""Pooling on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import CPU, empty_nhwc, nhwc

_CL = torch.channels_last


def _max_pool(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], positions: bool
) -> tuple[Tensor, Tensor | None]:
    (n, c, h, w), (kh, kw), (sh, sw), (top, left, bottom, right) = x.shape, kernel, stride, padding
    oh, ow = (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1
    y = empty_nhwc(x, c, oh, ow)
    dtype = torch.uint8 if kh * kw <= 256 else torch.int32
    at = torch.empty(y.shape, dtype=dtype, device=CPU, memory_format=_CL) if positions else None
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
        x=nhwc(x),
        y=y,
        positions=at,
        threads=num_threads(),
    )
    run = _C.max_pool2d_train if positions else _C.max_pool2d_fwd
    run(x.dtype == torch.float64, params)
    return y, at


def max_pool2d(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Largest element of each window."""
    return _max_pool(x, kernel, stride, padding, False)[0]


def max_pool2d_train(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> tuple[Tensor, Tensor | None]:
    """Output and the place of each maximum in its window."""
    return _max_pool(x, kernel, stride, padding, True)


def max_pool2d_backward(
    dy: Tensor, positions: Tensor, size: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Gradient of x (N, C, *size)."""
    (n, c, oh, ow), (h, w), (kh, kw), (sh, sw), (top, left, _, _) = dy.shape, size, kernel, stride, padding
    dx = empty_nhwc(dy, c, h, w)
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
        positions=nhwc(positions),
        dy=nhwc(dy),
        dx=dx,
        threads=num_threads(),
    )
    _C.max_pool2d_bwd(dy.dtype == torch.float64, params)
    return dx


def global_avg_pool(x: Tensor) -> Tensor:
    """Mean over the image."""
    n, c, h, w = x.shape
    avg = x.new_empty((n, c))
    params = _C.GlobalPoolParams(n=n, pixels=h * w, c=c, x=nhwc(x), avg=avg, threads=num_threads())
    _C.global_avg_pool_fwd(x.dtype == torch.float64, params)
    return avg


def global_avg_pool_backward(davg: Tensor, size: list[int]) -> Tensor:
    """Gradient of x (N, C, *size)."""
    (n, c), (h, w) = davg.shape, size
    dx = empty_nhwc(davg, c, h, w)
    params = _C.GlobalPoolParams(n=n, pixels=h * w, c=c, d_avg=davg.contiguous(), dx=dx, threads=num_threads())
    _C.global_avg_pool_bwd(dx.dtype == torch.float64, params)
    return dx


def global_max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the image and its pixel."""
    n, c, h, w = x.shape
    largest, positions = x.new_empty((n, c)), x.new_empty((n, c), dtype=torch.int32)
    params = _C.GlobalPoolParams(
        n=n, pixels=h * w, c=c, x=nhwc(x), max=largest, positions=positions, threads=num_threads()
    )
    _C.global_max_pool_fwd(x.dtype == torch.float64, params)
    return largest, positions


def global_max_pool_backward(dmax: Tensor, positions: Tensor, size: list[int]) -> Tensor:
    """Gradient of x (N, C, *size)."""
    (n, c), (h, w) = dmax.shape, size
    dx = empty_nhwc(dmax, c, h, w)
    params = _C.GlobalPoolParams(
        n=n,
        pixels=h * w,
        c=c,
        positions=positions.contiguous(),
        d_max=dmax.contiguous(),
        dx=dx,
        threads=num_threads(),
    )
    _C.global_max_pool_bwd(dx.dtype == torch.float64, params)
    return dx


def global_avg_max_pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and maximum over the image, and the maximum's pixel, in one read."""
    n, c, h, w = x.shape
    avg, largest, positions = x.new_empty((n, c)), x.new_empty((n, c)), x.new_empty((n, c), dtype=torch.int32)
    params = _C.GlobalPoolParams(
        n=n, pixels=h * w, c=c, x=nhwc(x), avg=avg, max=largest, positions=positions, threads=num_threads()
    )
    _C.global_avg_max_pool_fwd(x.dtype == torch.float64, params)
    return avg, largest, positions


def global_avg_max_pool_backward(davg: Tensor, dmax: Tensor, positions: Tensor, size: list[int]) -> Tensor:
    """Gradient of x (N, C, *size)."""
    (n, c), (h, w) = dmax.shape, size
    dx = empty_nhwc(dmax, c, h, w)
    params = _C.GlobalPoolParams(
        n=n,
        pixels=h * w,
        c=c,
        positions=positions.contiguous(),
        d_avg=davg.contiguous(),
        d_max=dmax.contiguous(),
        dx=dx,
        threads=num_threads(),
    )
    _C.global_avg_max_pool_bwd(dx.dtype == torch.float64, params)
    return dx
