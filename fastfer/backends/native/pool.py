# SPDX-License-Identifier: Apache-2.0
"""Pooling on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import CPU, empty_nhwc, nhwc

_CL = torch.channels_last


def _shape(
    x: Tensor, size: list[int], out: tuple[int, int], kernel: list[int], stride: list[int], padding: list[int]
) -> list[int]:
    """n, h, w, c, oh, ow, kh, kw, sh, sw, top, left."""
    return [x.shape[0], *size, x.shape[1], *out, *kernel, *stride, padding[0], padding[1]]


def _max_pool(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], positions: bool
) -> tuple[Tensor, Tensor | None]:
    x = nhwc(x)
    _, channels, height, width = x.shape
    out = (
        (height + padding[0] + padding[2] - kernel[0]) // stride[0] + 1,
        (width + padding[1] + padding[3] - kernel[1]) // stride[1] + 1,
    )
    y = empty_nhwc(x, channels, *out)
    dtype = torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32
    at = torch.empty(y.shape, dtype=dtype, device=CPU, memory_format=_CL) if positions else None
    shape = _shape(x, [height, width], out, kernel, stride, padding)
    _C.max_pool2d_fwd(
        x.dtype == torch.float64, shape, x.data_ptr(), y.data_ptr(), 0 if at is None else at.data_ptr(), num_threads()
    )
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
    dy, positions = nhwc(dy), nhwc(positions)
    dx = empty_nhwc(dy, dy.shape[1], *size)
    shape = _shape(dy, size, (dy.shape[2], dy.shape[3]), kernel, stride, padding)
    _C.max_pool2d_bwd(
        dy.dtype == torch.float64, shape, dy.data_ptr(), positions.data_ptr(), dx.data_ptr(), num_threads()
    )
    return dx


def _pixels(x: Tensor) -> tuple[int, int, int]:
    """n, pixels, c."""
    n, c, height, width = x.shape
    return n, height * width, c


def global_avg_pool(x: Tensor) -> Tensor:
    """Mean over the image."""
    x = nhwc(x)
    avg = x.new_empty(x.shape[:2])
    _C.global_avg_pool_fwd(x.dtype == torch.float64, *_pixels(x), x.data_ptr(), avg.data_ptr(), 0, 0, num_threads())
    return avg


def global_avg_pool_backward(davg: Tensor, size: list[int]) -> Tensor:
    """Gradient of x (N, C, *size)."""
    davg = davg.contiguous()
    dx = empty_nhwc(davg, davg.shape[1], *size)
    _C.global_avg_pool_bwd(dx.dtype == torch.float64, *_pixels(dx), davg.data_ptr(), 0, 0, dx.data_ptr(), num_threads())
    return dx


def global_max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the image and its pixel."""
    x = nhwc(x)
    largest, positions = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2], dtype=torch.int32)
    _C.global_max_pool_fwd(
        x.dtype == torch.float64, *_pixels(x), x.data_ptr(), 0, largest.data_ptr(), positions.data_ptr(), num_threads()
    )
    return largest, positions


def global_max_pool_backward(dmax: Tensor, positions: Tensor, size: list[int]) -> Tensor:
    """Gradient of x (N, C, *size)."""
    dmax, positions = dmax.contiguous(), positions.contiguous()
    dx = empty_nhwc(dmax, dmax.shape[1], *size)
    _C.global_max_pool_bwd(
        dx.dtype == torch.float64, *_pixels(dx), 0, dmax.data_ptr(), positions.data_ptr(), dx.data_ptr(), num_threads()
    )
    return dx


def global_avg_max_pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and maximum over the image, and the maximum's pixel, in one read."""
    x = nhwc(x)
    avg, largest = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    positions = x.new_empty(x.shape[:2], dtype=torch.int32)
    _C.global_avg_max_pool_fwd(
        x.dtype == torch.float64, *_pixels(x), x.data_ptr(), avg.data_ptr(), largest.data_ptr(), positions.data_ptr(),
        num_threads(),
    )  # fmt: skip
    return avg, largest, positions


def global_avg_max_pool_backward(davg: Tensor, dmax: Tensor, positions: Tensor, size: list[int]) -> Tensor:
    """Gradient of x (N, C, *size)."""
    davg, dmax, positions = davg.contiguous(), dmax.contiguous(), positions.contiguous()
    dx = empty_nhwc(dmax, dmax.shape[1], *size)
    _C.global_avg_max_pool_bwd(
        dx.dtype == torch.float64, *_pixels(dx), davg.data_ptr(), dmax.data_ptr(), positions.data_ptr(), dx.data_ptr(),
        num_threads(),
    )  # fmt: skip
    return dx
