# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with norm, activation and pooling on CUDA tensors; the functions of `backends.reference.conv2d`.

Training gathers the statistics of y where y is made, then normalises it in one more pass. The weight gradient sums over
parts of the pixels that follow from the shape alone, so that results repeat bit by bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastfer.backends.cuda import norm, pool
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, nhwc, product_types
from fastfer.backends.reference import _linked
from fastfer.backends.reference.conv2d import with_pool

TILE, THREADS = 64, 256  # csrc/cuda/gemm.cuh
_PART = 4096
"""Least output pixels of one part of the weight gradient."""
_PARTS = 64


def tiles(size: int) -> int:
    """Tiles that cover ``size`` rows or columns of a product."""
    return -(-size // TILE)


def _convolution(
    launch: Launch, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], moments: bool
) -> tuple[Tensor, Tensor | None]:
    """y, and where asked for the moments (tiles, 2, O) of its rows; ``x`` NHWC, dense."""
    outputs, channels, *kernel = weight.shape
    height, width = x.shape[2:]
    out = [(size + padding[i] + padding[i + 2] - kernel[i]) // stride[i] + 1 for i, size in enumerate((height, width))]
    y = empty_nhwc(x, outputs, *out)
    rows = x.shape[0] * out[0] * out[1]
    packed = weight.permute(2, 3, 1, 0).to(x.dtype).contiguous()
    parts = None
    if moments:
        parts = torch.empty((tiles(rows), 2, outputs), dtype=compute_dtype(x), device=x.device)
    shape = (rows, outputs, height, width, channels, *out, *kernel, *stride, *padding[:2])
    optional = [0 if t is None else t for t in (bias, parts)]
    kernel_name = f"conv2d_fwd<{product_types('conv2d', x)}>"
    launch(kernel_name, x, (tiles(rows), tiles(outputs), 1), THREADS, x, packed, optional[0], y, optional[1], *shape)
    return y, parts


def convolution_backward(
    launch: Launch, dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias by ``mask``; ``dy`` and ``x`` NHWC, dense."""
    types = product_types("conv2d", x)
    outputs, channels, *kernel = weight.shape
    height, width = x.shape[2:]
    out = dy.shape[2:]
    dx, dw, db = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if mask[0]:
        dx, rows = torch.empty_like(x), x.shape[0] * height * width
        packed = weight.permute(2, 3, 0, 1).to(x.dtype).contiguous()
        shape = (rows, channels, height, width, outputs, *out, *kernel, *stride, *padding[:2])
        grid = (tiles(rows), tiles(channels), 1)
        launch(f"conv2d_bwd_input<{types}>", x, grid, THREADS, dy, packed, dx, *shape)
    pixels = dy.shape[0] * out[0] * out[1]
    if mask[1]:
        taps = kernel[0] * kernel[1] * channels
        part = max(_PART, -(-pixels // _PARTS))
        sums = torch.empty((-(-pixels // part), taps, outputs), dtype=compute_dtype(x), device=x.device)
        shape = (pixels, part, outputs, height, width, channels, *out, *kernel, *stride, *padding[:2])
        grid = (tiles(taps), tiles(outputs), len(sums))
        launch(f"conv2d_bwd_weight<{types}>", x, grid, THREADS, x, dy, sums, *shape)
        dw = norm.total(launch, sums).view(*kernel, channels, outputs)
        dw = dw.permute(3, 2, 0, 1).to(weight.dtype).contiguous()
    if mask[2]:
        db = norm.column_sums(launch, dy)
    return dx, dw, db


def conv2d_train(
    launch: Launch, x: Tensor, weight: Tensor, bias: Tensor | None,
    n_weight: Tensor | None, n_bias: Tensor | None, n_mean: Tensor | None, n_var: Tensor | None,
    eps: float, act: int, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, y where norm or activation follows, statistics (3, O) with a norm."""
    gathered = batch_stats and n_mean is not None
    y, parts = _convolution(launch, nhwc(x), weight, bias, stride, padding, gathered)
    if parts is not None:
        stats = norm.finish_moments(launch, y, parts, TILE, eps)
    else:
        stats = norm.statistics(launch, y, n_mean, n_var, eps, False)
    if n_weight is None and act == 0:
        return y, y.new_empty(0), stats
    return norm.norm_act(launch, y, n_weight, n_bias, stats, act), y, stats


def conv2d(launch: Launch, *args: Any) -> Tensor:
    """Output with running statistics."""
    return conv2d_train(launch, *args, False)[0]  # type: ignore[call-arg]


def conv2d_backward(
    launch: Launch, dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor | None,
    n_bias: Tensor | None, stats: Tensor, act: int, stride: list[int], padding: list[int], batch_stats: bool,
    mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weight, bias, and the norm's weight and bias; those not asked for are empty."""
    dy, d_norm = nhwc(dout), (x.new_empty(0), x.new_empty(0))
    if n_weight is not None or act:
        dy, *gradients = norm.norm_act_backward(launch, dy, y, n_weight, n_bias, stats, act, batch_stats)
        d_norm = (gradients[0], gradients[1]) if mask[1] else d_norm
    dx, dw, db = convolution_backward(launch, dy, nhwc(x), weight, stride, padding, [mask[0], mask[1], mask[1]])
    return dx, dw, db, *d_norm


def conv2d_pool_train(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """Output of the pooling behind `conv2d_train`, y, y at the maxima, their places in the windows, statistics."""
    result: tuple[Tensor, ...] = _with_pool(launch)[0](*args)
    return result


def conv2d_pool_backward(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """Gradients as `conv2d_backward`, ``dout`` that of the pooled output."""
    result: tuple[Tensor, ...] = _with_pool(launch)[1](*args)
    return result


def _with_pool(launch: Launch) -> Any:
    functions: Any = (conv2d_train, conv2d_backward, pool.max_pool2d_train, pool.max_pool2d_backward)
    return with_pool(*(partial(function, launch) for function in functions))


def conv2d_linked(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """As `fastfer.backends.reference._linked` composes it of these kernels."""
    return _linked.conv2d_linked(partial(conv2d_train, launch), *args)


def conv2d_linked_backward(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """As `fastfer.backends.reference._linked` composes it of these kernels."""
    return _linked.conv2d_linked_backward(partial(conv2d_backward, launch), *args)
