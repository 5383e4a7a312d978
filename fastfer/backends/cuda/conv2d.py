# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with norm, activation and pooling on CUDA tensors; the functions of `backends.reference.conv2d`.

Training gathers the statistics of y where y is made, then normalises it in one more pass. The weight gradient sums over
parts of the pixels that follow from the shape alone, so that results repeat bit by bit.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastfer.backends import composed
from fastfer.backends.cuda import norm, pool
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, nhwc, product_types
from fastfer.signatures.conv2d import (
    Conv2d,
    Conv2dBackward,
    Conv2dGradients,
    Conv2dLinked,
    Conv2dLinkedBackward,
    Conv2dLinkedTrained,
    Conv2dPoolBackward,
    Conv2dPoolTrain,
    Conv2dPoolTrained,
    Conv2dTrain,
    Conv2dTrained,
)
from fastfer.signatures.separable_conv import ConvGradients, ConvNeeds

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
    launch: Launch, dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], needs: ConvNeeds
) -> ConvGradients:
    """Gradients of x, weight and bias; ``dy`` and ``x`` NHWC, dense."""
    types = product_types("conv2d", x)
    outputs, channels, *kernel = weight.shape
    height, width = x.shape[2:]
    out = dy.shape[2:]
    dx, dw, db = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if needs.x:
        dx, rows = torch.empty_like(x), x.shape[0] * height * width
        packed = weight.permute(2, 3, 0, 1).to(x.dtype).contiguous()
        shape = (rows, channels, height, width, outputs, *out, *kernel, *stride, *padding[:2])
        grid = (tiles(rows), tiles(channels), 1)
        launch(f"conv2d_bwd_input<{types}>", x, grid, THREADS, dy, packed, dx, *shape)
    pixels = dy.shape[0] * out[0] * out[1]
    if needs.weight:
        taps = kernel[0] * kernel[1] * channels
        part = max(_PART, -(-pixels // _PARTS))
        sums = torch.empty((-(-pixels // part), taps, outputs), dtype=compute_dtype(x), device=x.device)
        shape = (pixels, part, outputs, height, width, channels, *out, *kernel, *stride, *padding[:2])
        grid = (tiles(taps), tiles(outputs), len(sums))
        launch(f"conv2d_bwd_weight<{types}>", x, grid, THREADS, x, dy, sums, *shape)
        dw = norm.total(launch, sums).view(*kernel, channels, outputs)
        dw = dw.permute(3, 2, 0, 1).to(weight.dtype).contiguous()
    if needs.bias:
        db = norm.column_sums(launch, dy)
    return ConvGradients(dx, dw, db)


def conv2d_train(launch: Launch, a: Conv2dTrain) -> Conv2dTrained:
    """Output, y where norm or activation follows, statistics with a norm."""
    b = a.block
    gathered = a.batch_stats and b.norm is not None
    y, parts = _convolution(launch, nhwc(b.x), b.weight, b.bias, b.stride, b.padding, gathered)
    if parts is not None and b.norm is not None:
        stats = norm.finish_moments(launch, y, parts, TILE, b.norm.eps)
    else:
        stats = norm.norm_statistics(launch, y, b.norm, False)
    if b.norm is None and b.act == 0:
        return Conv2dTrained(y, y.new_empty(0), stats)
    return Conv2dTrained(norm.normalise(launch, y, b.norm, stats, b.act), y, stats)


def conv2d(launch: Launch, a: Conv2d) -> Tensor:
    """Output with running statistics."""
    return conv2d_train(launch, Conv2dTrain(a, False)).out


def conv2d_backward(launch: Launch, a: Conv2dBackward) -> Conv2dGradients:
    """Gradients of x, weight, bias, and the norm's weight and bias."""
    params = a.needs.params
    dy, d_norm = nhwc(a.d_out), (a.x.new_empty(0), a.x.new_empty(0))
    if a.norm is not None or a.act:
        dy, d_norm_weight, d_norm_bias = norm.normalise_backward(launch, dy, a.y, a.norm, a.stats, a.act, a.batch_stats)
        d_norm = (d_norm_weight, d_norm_bias) if params else d_norm
    needs = ConvNeeds(a.needs.x, params, params)
    grads = convolution_backward(launch, dy, nhwc(a.x), a.weight, a.stride, a.padding, needs)
    return Conv2dGradients(*grads, *d_norm)


def conv2d_pool_train(launch: Launch, a: Conv2dPoolTrain) -> Conv2dPoolTrained:
    """Output of the pooling after `conv2d_train`, y, y at the maxima, their places in the windows, statistics."""
    return composed.conv2d_pool_train(partial(conv2d_train, launch), partial(pool.max_pool2d_train, launch), a)


def conv2d_pool_backward(launch: Launch, a: Conv2dPoolBackward) -> Conv2dGradients:
    """Gradients as `conv2d_backward`, ``d_out`` that of the pooled output."""
    return composed.conv2d_pool_backward(partial(conv2d_backward, launch), partial(pool.max_pool2d_backward, launch), a)


def conv2d_linked(launch: Launch, a: Conv2dLinked) -> Conv2dLinkedTrained:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.conv2d_linked(partial(conv2d_train, launch), a)


def conv2d_linked_backward(launch: Launch, a: Conv2dLinkedBackward) -> ConvGradients:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.conv2d_linked_backward(partial(conv2d_backward, launch), a)
