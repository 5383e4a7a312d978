# SPDX-License-Identifier: Apache-2.0
"""Max pooling and pooling over images on CUDA tensors, NHWC; the functions and places of `backends.reference.pool`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.cuda.loader import Launch, empty_nhwc, nhwc, type_name

THREADS = 256
_COLUMN_LANES, _COLUMN_THREADS = 32, 256  # csrc/cuda/columns.cuh
_PLACES = {torch.uint8: "unsigned char", torch.int32: "int"}


def _max_pool(
    launch: Launch, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], with_places: bool
) -> tuple[Tensor, Tensor]:
    x = nhwc(x)
    top, left, bottom, right = padding
    height, width = x.shape[2:]
    out = (height + top + bottom - kernel[0]) // stride[0] + 1, (width + left + right - kernel[1]) // stride[1] + 1
    y = empty_nhwc(x, x.shape[1], *out)
    dtype = torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32
    places = torch.empty_like(y, dtype=dtype) if with_places else x.new_empty(0, dtype=dtype)
    name = f"max_pool2d_fwd<{type_name('max_pool2d', x)}, {_PLACES[dtype]}, {THREADS}>"
    target = places if with_places else 0
    shape = (y.numel(), height, width, x.shape[1], *out, *kernel, *stride, top, left)
    launch.strided(name, x, y.numel(), THREADS, x, y, target, *shape)
    return y, places


def max_pool2d(launch: Launch, x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Largest element of each window."""
    return _max_pool(launch, x, kernel, stride, padding, False)[0]


def max_pool2d_train(
    launch: Launch, x: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> tuple[Tensor, Tensor]:
    """Output and the place of each maximum in its window."""
    return _max_pool(launch, x, kernel, stride, padding, True)


def max_pool2d_backward(
    launch: Launch, dy: Tensor, positions: Tensor, size: list[int], kernel: list[int], stride: list[int],
    padding: list[int],
) -> Tensor:  # fmt: skip
    """Gradient of x (N, C, *size)."""
    dy, positions = nhwc(dy), nhwc(positions)
    dx = empty_nhwc(dy, dy.shape[1], *size)
    name = f"max_pool2d_bwd<{type_name('max_pool2d', dy)}, {_PLACES[positions.dtype]}, {THREADS}>"
    shape = (dx.numel(), *size, dx.shape[1], *dy.shape[2:], *kernel, *stride, *padding[:2])
    launch.strided(name, dx, dx.numel(), THREADS, dy, positions, dx, *shape)
    return dx


def _global(launch: Launch, x: Tensor, mean: Tensor | None, most: Tensor | None, places: Tensor | None) -> None:
    x = nhwc(x)
    grid = (x.shape[0], -(-x.shape[1] // _COLUMN_LANES), 1)
    outputs = (0 if t is None else t for t in (mean, most, places))
    name = f"global_pool_fwd<{type_name('global_pool', x)}>"
    launch(name, x, grid, _COLUMN_THREADS, x, *outputs, x.shape[2] * x.shape[3], x.shape[1])


def _global_backward(
    launch: Launch, dmean: Tensor | None, dmost: Tensor | None, places: Tensor | None, size: list[int]
) -> Tensor:
    like = dmean if dmean is not None else dmost
    assert like is not None
    dx = torch.empty((*like.shape, *size), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    inputs = tuple(0 if t is None else t.contiguous() for t in (dmean, dmost, places))
    name = f"global_pool_bwd<{type_name('global_pool', dx)}, {THREADS}>"
    launch.strided(name, dx, dx.numel(), THREADS, *inputs, dx, dx.numel(), size[0] * size[1], dx.shape[1])
    return dx


def global_avg_pool(launch: Launch, x: Tensor) -> Tensor:
    """Mean over (H, W): (N, C, H, W) -> (N, C)."""
    mean = x.new_empty(x.shape[:2])
    _global(launch, x, mean, None, None)
    return mean


def global_avg_pool_backward(launch: Launch, davg: Tensor, size: list[int]) -> Tensor:
    """dx (N, C, *size) = davg / (H·W)."""
    return _global_backward(launch, davg, None, None, size)


def global_max_pool(launch: Launch, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over (H, W) and its pixel: (N, C, H, W) -> two of (N, C)."""
    most, places = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2], dtype=torch.int32)
    _global(launch, x, None, most, places)
    return most, places


def global_max_pool_backward(launch: Launch, dmax: Tensor, positions: Tensor, size: list[int]) -> Tensor:
    """dx (N, C, *size): dmax at the maxima, else 0."""
    return _global_backward(launch, None, dmax, positions, size)


def global_avg_max_pool(launch: Launch, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, maximum, the maximum's pixel: (N, C, H, W) -> three of (N, C)."""
    mean, most = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    places = x.new_empty(x.shape[:2], dtype=torch.int32)
    _global(launch, x, mean, most, places)
    return mean, most, places


def global_avg_max_pool_backward(
    launch: Launch, davg: Tensor, dmax: Tensor, positions: Tensor, size: list[int]
) -> Tensor:
    """dx (N, C, *size): the two gradients together."""
    return _global_backward(launch, davg, dmax, positions, size)
