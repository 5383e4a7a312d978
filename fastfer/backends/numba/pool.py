# SPDX-License-Identifier: Apache-2.0
"""Pooling on Numba; NHWC, dense. Every result is computed by one chunk, so none depends on the number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.numba._numba import Pointer, arguments, chunks, image, kernel, nhwc
from fastfer.backends.numba._pool import max_row, max_row_backward, pool_image
from fastfer.backends.numba._simd import div, fill, lanes, load, store
from fastfer.backends.numba._span import get, put
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


@kernel
def _windows(pointer: Pointer, chunk: int) -> None:
    (
        y, places, wide_places, x, rows, count, height, width, channels, out_height, out_width,
        kh, kw, sh, sw, top, left,
    ) = arguments(pointer, "FBIFiiiiiiiiiiiii")  # fmt: skip
    for r in range(rows * chunk // count, rows * (chunk + 1) // count):
        at, i, first = r * out_width * channels, r % out_height, r // out_height * height * width * channels
        sizes = height, width, channels, out_width, kh, kw, sh, sw, top, left
        if wide_places.size:
            max_row(y, at, wide_places, x, first, i, *sizes)
        else:
            max_row(y, at, places, x, first, i, *sizes)


@kernel
def _windows_backward(pointer: Pointer, chunk: int) -> None:
    (
        dx, dy, places, wide_places, rows, count, height, width, channels, out_height, out_width,
        kh, kw, sh, sw, top, left,
    ) = arguments(pointer, "FFBIiiiiiiiiiiiii")  # fmt: skip
    for r in range(rows * chunk // count, rows * (chunk + 1) // count):
        at, i, first = r * width * channels, r % height, r // height * out_height * out_width * channels
        sizes = width, channels, out_height, out_width, kh, kw, sh, sw, top, left
        if wide_places.size:
            max_row_backward(dx, at, dy, wide_places, first, i, *sizes)
        else:
            max_row_backward(dx, at, dy, places, first, i, *sizes)


def _either(positions: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Positions as bytes, and as 32-bit numbers; one of them, or both, None."""
    if positions is None:
        return None, None
    return (positions, None) if positions.dtype == torch.uint8 else (None, positions)


def _max_pool(a: MaxPool, train: bool) -> tuple[Tensor, Tensor | None]:
    x, (n, channels, height, width) = a.x, a.x.shape
    (kh, kw), (sh, sw), (top, left, bottom, right) = a.window
    y = image(x, channels, (height + top + bottom - kh) // sh + 1, (width + left + right - kw) // sw + 1)
    dtype = torch.uint8 if kh * kw <= 256 else torch.int32
    positions = torch.empty_like(y, dtype=dtype) if train else None
    if y.numel():
        rows, work = n * y.shape[2], y.numel() * kh * kw
        count = chunks(rows, work)
        sizes = (rows, count, height, width, channels, *y.shape[2:], kh, kw, sh, sw, top, left)
        _windows(x.dtype, count, work, y, *_either(positions), nhwc(x), *sizes)
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
    dy, (n, channels, *out), ((kh, kw), (sh, sw), (top, left, _, _)) = a.d_out, a.d_out.shape, a.window
    dx = image(dy, channels, *a.size)
    if dx.numel():
        rows, work = n * a.size[0], dy.numel() * kh * kw
        count = chunks(rows, work)
        sizes = (rows, count, *a.size, channels, *out, kh, kw, sh, sw, top, left)
        _windows_backward(dy.dtype, count, work, dx, nhwc(dy), *_either(nhwc(a.positions)), *sizes)
    return dx


@kernel
def _global(pointer: Pointer, chunk: int) -> None:
    avg, most, positions, x, images, count, pixels, channels = arguments(pointer, "FFIFiiii")
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        pool_image(avg, i * channels, most, positions, x, i * pixels * channels, pixels, channels)


@kernel
def _global_backward(pointer: Pointer, chunk: int) -> None:
    dx, davg, dmax, positions, images, count, pixels, channels = arguments(pointer, "FFFIiiii")
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        at, first = i * channels, i * pixels * channels
        for c in range(0, channels, lanes(dx)):
            n = min(lanes(dx), channels - c)
            share = div(load(davg, at + c, n), fill(dx, pixels)) if davg.size else fill(dx, 0.0)
            for p in range(pixels):
                store(dx, first + p * channels + c, share, n)
        if dmax.size:
            for c in range(channels):
                to = first + get(positions, at + c) * channels + c
                put(dx, to, get(dx, to) + get(dmax, at + c))


def _pooled(x: Tensor, mean: bool, largest: bool) -> GlobalAvgMaxTrained:
    """Mean, maximum and its pixel; empty where not wanted."""
    n, channels, height, width = x.shape
    shape, pixels = (n, channels), height * width
    avg = x.new_empty(shape if mean else 0)
    most = x.new_empty(shape if largest else 0)
    positions = x.new_empty(shape if largest else 0, dtype=torch.int32)
    if x.numel():
        count = chunks(n, x.numel())
        _global(x.dtype, count, x.numel(), avg, most, positions, nhwc(x), n, count, pixels, channels)
    elif mean:
        avg.fill_(float("nan"))
    return GlobalAvgMaxTrained(avg, most, positions)


def _pooled_backward(d_avg: Tensor | None, d_max: Tensor | None, positions: Tensor | None, size: list[int]) -> Tensor:
    like = d_avg if d_avg is not None else d_max
    assert like is not None
    dx = torch.empty((*like.shape, *size), dtype=like.dtype, device="cpu", memory_format=torch.channels_last)
    if dx.numel():
        n, channels = like.shape
        count = chunks(n, dx.numel())
        arrays = (None if t is None else t.contiguous() for t in (d_avg, d_max, positions))
        _global_backward(dx.dtype, count, dx.numel(), dx, *arrays, n, count, size[0] * size[1], channels)
    return dx


def global_avg_pool(a: GlobalPool) -> Tensor:
    """Mean over the image."""
    return _pooled(a.x, True, False).avg


def global_avg_pool_backward(a: GlobalAvgBackward) -> Tensor:
    """Gradient of x."""
    return _pooled_backward(a.d_out, None, None, a.size)


def global_max_pool(a: GlobalPool) -> GlobalMaxTrained:
    """Maximum over the image and its pixel."""
    pooled = _pooled(a.x, False, True)
    return GlobalMaxTrained(pooled.max, pooled.positions)


def global_max_pool_backward(a: GlobalMaxBackward) -> Tensor:
    """Gradient of x."""
    return _pooled_backward(None, a.d_max, a.positions, a.size)


def global_avg_max_pool(a: GlobalPool) -> GlobalAvgMaxTrained:
    """Mean and maximum over the image, and the maximum's pixel, in one read."""
    return _pooled(a.x, True, True)


def global_avg_max_pool_backward(a: GlobalAvgMaxBackward) -> Tensor:
    """Gradient of x."""
    return _pooled_backward(a.d_avg, a.d_max, a.positions, a.size)
