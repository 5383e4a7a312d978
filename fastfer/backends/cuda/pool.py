# SPDX-License-Identifier: Apache-2.0
"""Max pooling and pooling over images on CUDA tensors, NHWC; the functions and places of `backends.reference.pool`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.cuda.loader import Launch, empty_nhwc, nhwc, type_name
from fastfer.backends.cuda.norm import norm_sums, words
from fastfer.signatures.fields import Affine, RunningNorm, Window
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

THREADS = 256
_COLUMN_LANES, _COLUMN_THREADS = 32, 256  # csrc/cuda/columns.cuh
_PLACES = {torch.uint8: "unsigned char", torch.int32: "int"}


def _max_pool(launch: Launch, a: MaxPool, train: bool) -> MaxPoolTrained:
    x, (kernel, stride, (top, left, bottom, right)) = nhwc(a.x), a.window
    height, width = x.shape[2:]
    out = (height + top + bottom - kernel[0]) // stride[0] + 1, (width + left + right - kernel[1]) // stride[1] + 1
    y = empty_nhwc(x, x.shape[1], *out)
    dtype = torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32
    places = torch.empty_like(y, dtype=dtype) if train else x.new_empty(0, dtype=dtype)
    name = f"max_pool2d_fwd<{type_name('max_pool2d', x)}, {_PLACES[dtype]}, {THREADS}>"
    target = places if train else 0
    shape = (y.numel(), height, width, x.shape[1], *out, *kernel, *stride, top, left)
    launch.strided(name, x, y.numel(), THREADS, x, y, target, *shape)
    return MaxPoolTrained(y, places)


def max_pool2d(launch: Launch, a: MaxPool) -> Tensor:
    """Largest element of each window."""
    return _max_pool(launch, a, False).out


def max_pool2d_train(launch: Launch, a: MaxPool) -> MaxPoolTrained:
    """Output and the place of each maximum in its window."""
    return _max_pool(launch, a, True)


def max_pool2d_backward(launch: Launch, a: MaxPoolBackward) -> Tensor:
    """Gradient of x."""
    dy, positions, (kernel, stride, padding) = nhwc(a.d_out), nhwc(a.positions), a.window
    dx = empty_nhwc(dy, dy.shape[1], *a.size)
    name = f"max_pool2d_bwd<{type_name('max_pool2d', dy)}, {_PLACES[positions.dtype]}, {THREADS}>"
    shape = (dx.numel(), *a.size, dx.shape[1], *dy.shape[2:], *kernel, *stride, *padding[:2])
    launch.strided(name, dx, dx.numel(), THREADS, dy, positions, dx, *shape)
    return dx


def norm_max_pool(
    launch: Launch, y: Tensor, norm: RunningNorm, stats: Tensor, act: int, window: Window
) -> tuple[Tensor, Tensor, Tensor]:
    """Max pooling of act(norm(y)), ``y`` NHWC, dense, in one pass: output, y at the maxima, and their places."""
    kernel, stride, (top, left, bottom, right) = window
    height, width = y.shape[2:]
    size = (height + top + bottom - kernel[0]) // stride[0] + 1, (width + left + right - kernel[1]) // stride[1] + 1
    out, best = (empty_nhwc(y, y.shape[1], *size) for _ in range(2))
    places = torch.empty_like(out, dtype=torch.uint8)
    shape = (out.numel(), height, width, y.shape[1], *size, *kernel, *stride, top, left)
    name = f"norm_pool_fwd<{type_name('max_pool2d', y)}, unsigned char, {THREADS}>"
    arguments = (y, *words(norm, stats), out, best, places, act, *shape)
    launch.strided(name, y, out.numel(), THREADS, *arguments)
    return out, best, places


def norm_max_pool_backward(
    launch: Launch,
    d_out: Tensor,
    y: Tensor,
    best: Tensor,
    places: Tensor,
    norm: Affine,
    stats: Tensor,
    act: int,
    window: Window,
    batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, norm weight and norm bias: their sums are over the maxima, where alone something arrives."""
    kernel, stride, padding = window
    d_weight, d_bias = norm_sums(launch, d_out, best, norm, stats, act)
    dy = torch.empty_like(y)
    shape = (dy.numel(), *y.shape[2:], y.shape[1], *d_out.shape[2:], *kernel, *stride, *padding[:2])
    sums = (d_bias, d_weight) if batch_stats else (0, 0)
    name = f"norm_pool_bwd<{type_name('max_pool2d', y)}, unsigned char, {THREADS}>"
    arguments = (d_out, places, y, norm.weight, norm.bias, stats, *sums, dy, act, *shape)
    launch.strided(name, y, dy.numel(), THREADS, *arguments)
    return dy, d_weight, d_bias


def _global(launch: Launch, x: Tensor, mean: Tensor | None, most: Tensor | None, places: Tensor | None) -> None:
    x = nhwc(x)
    grid = (x.shape[0], -(-x.shape[1] // _COLUMN_LANES), 1)
    outputs = (0 if t is None else t for t in (mean, most, places))
    name = f"global_pool_fwd<{type_name('global_pool', x)}>"
    launch(name, x, grid, _COLUMN_THREADS, x, *outputs, x.shape[2] * x.shape[3], x.shape[1])


def _global_backward(
    launch: Launch, d_mean: Tensor | None, d_most: Tensor | None, places: Tensor | None, size: list[int]
) -> Tensor:
    like = d_mean if d_mean is not None else d_most
    assert like is not None
    dx = torch.empty((*like.shape, *size), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    inputs = tuple(0 if t is None else t.contiguous() for t in (d_mean, d_most, places))
    name = f"global_pool_bwd<{type_name('global_pool', dx)}, {THREADS}>"
    launch.strided(name, dx, dx.numel(), THREADS, *inputs, dx, dx.numel(), size[0] * size[1], dx.shape[1])
    return dx


def global_avg_pool(launch: Launch, a: GlobalPool) -> Tensor:
    """Mean over (H, W): (N, C, H, W) -> (N, C)."""
    mean = a.x.new_empty(a.x.shape[:2])
    _global(launch, a.x, mean, None, None)
    return mean


def global_avg_pool_backward(launch: Launch, a: GlobalAvgBackward) -> Tensor:
    """dx (N, C, *size) = d_out / (H·W)."""
    return _global_backward(launch, a.d_out, None, None, a.size)


def global_max_pool(launch: Launch, a: GlobalPool) -> GlobalMaxTrained:
    """Maximum over (H, W) and its pixel: (N, C, H, W) -> two of (N, C)."""
    x = a.x
    most, places = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2], dtype=torch.int32)
    _global(launch, x, None, most, places)
    return GlobalMaxTrained(most, places)


def global_max_pool_backward(launch: Launch, a: GlobalMaxBackward) -> Tensor:
    """dx (N, C, *size): d_max at the maxima, else 0."""
    return _global_backward(launch, None, a.d_max, a.positions, a.size)


def global_avg_max_pool(launch: Launch, a: GlobalPool) -> GlobalAvgMaxTrained:
    """Mean, maximum, the maximum's pixel: (N, C, H, W) -> three of (N, C)."""
    x = a.x
    mean, most = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    places = x.new_empty(x.shape[:2], dtype=torch.int32)
    _global(launch, x, mean, most, places)
    return GlobalAvgMaxTrained(mean, most, places)


def global_avg_max_pool_backward(launch: Launch, a: GlobalAvgMaxBackward) -> Tensor:
    """dx (N, C, *size): the two gradients together."""
    return _global_backward(launch, a.d_avg, a.d_max, a.positions, a.size)
