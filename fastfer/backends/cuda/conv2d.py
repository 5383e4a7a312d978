# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with norm, activation and pooling on CUDA tensors; the functions of `backends.reference.conv2d`.

Training gathers the statistics of y where y is made, then normalises it in one more pass; inference normalises y as it
is made. The weight gradient sums over parts of the pixels that follow from the shape alone, so that results repeat bit
by bit. A 1×1 convolution is the product of `backends.cuda.product`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastfer.backends import composed
from fastfer.backends.cuda import norm, pool
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, nhwc, product_types
from fastfer.backends.cuda.product import (
    PLAIN,
    THREADS,
    Operand,
    gathered,
    product,
    product_backward,
    row_blocks,
    row_parts,
    tiles,
)
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


def _is_pointwise(weight: Tensor, stride: list[int], padding: list[int]) -> bool:
    return weight.shape[2:] == (1, 1) and stride == [1, 1] and not any(padding)


def _packed(weight: Tensor, like: Tensor) -> Tensor:
    """(O, C, KH, KW) -> (O, KH, KW, C) in the compute dtype: a view of a weight in channels_last."""
    return weight.permute(0, 2, 3, 1).to(compute_dtype(like)).contiguous()


def convolution(
    launch: Launch,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    after: Operand = PLAIN,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """y with what is ``after`` it applied, and for an eps the statistics (3, O) of y; ``x`` NHWC, dense."""
    if _is_pointwise(weight, stride, padding):
        return product(launch, x, PLAIN, weight, bias, after, eps)
    outputs, channels, *kernel = weight.shape
    height, width = x.shape[2:]
    out = [(size + padding[i] + padding[i + 2] - kernel[i]) // stride[i] + 1 for i, size in enumerate((height, width))]
    y, nothing = empty_nhwc(x, outputs, *out), x.new_empty(0)
    rows = x.shape[0] * out[0] * out[1]
    if not rows:
        return y, nothing if eps is None else x.new_zeros((3, outputs), dtype=compute_dtype(x))
    target = gathered(launch, x, rows, outputs, eps)
    shape = (rows, outputs, height, width, channels, *out, *kernel, *stride, *padding[:2])
    inputs = (x, _packed(weight, x), 0 if bias is None else bias, *after.words())
    grid = (row_blocks(rows), tiles(outputs), 1)
    launch(f"conv2d_fwd<{product_types('conv2d', x)}>", x, grid, THREADS, *inputs, y, *target, after.act, *shape)
    return y, target.stats if isinstance(target.stats, Tensor) else nothing


def convolution_backward(
    launch: Launch, dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], needs: ConvNeeds
) -> ConvGradients:
    """Gradients of x, weight and bias; ``dy`` and ``x`` NHWC, dense."""
    if _is_pointwise(weight, stride, padding):
        return product_backward(launch, dy, x, PLAIN, weight, needs)
    types = product_types("conv2d", x)
    outputs, channels, *kernel = weight.shape
    height, width = x.shape[2:]
    out = dy.shape[2:]
    dx, dw, db = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if needs.x:
        dx, rows = torch.empty_like(x), x.shape[0] * height * width
        shape = (rows, channels, height, width, outputs, *out, *kernel, *stride, *padding[:2])
        grid = (tiles(rows), tiles(channels), 1)
        launch(f"conv2d_bwd_input<{types}>", x, grid, THREADS, dy, _packed(weight, x), dx, *shape)
    pixels = dy.shape[0] * out[0] * out[1]
    if needs.weight and pixels:
        taps = kernel[0] * kernel[1]
        grid = (tiles(outputs), tiles(taps * channels), 1)
        parts, part = row_parts(pixels, grid[0] * grid[1])
        partial = torch.empty((parts, outputs, taps, channels), dtype=compute_dtype(x), device=x.device)
        shape = (pixels, part, outputs, height, width, channels, *out, *kernel, *stride, *padding[:2])
        launch(f"conv2d_bwd_weight<{types}>", x, (*grid[:2], parts), THREADS, x, dy, partial, *shape)
        dw = norm.total(launch, partial, taps, channels).to(weight.dtype).view(weight.shape)
    elif needs.weight:
        dw = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    if needs.bias:
        db = norm.column_sums(launch, dy)
    return ConvGradients(dx, dw, db)


def conv2d_train(launch: Launch, a: Conv2dTrain) -> Conv2dTrained:
    """Output, y where norm or activation follows, statistics with a norm."""
    b = a.block
    eps = b.norm.eps if a.batch_stats and b.norm is not None else None
    y, stats = convolution(launch, nhwc(b.x), b.weight, b.bias, b.stride, b.padding, eps=eps)
    if eps is None:
        stats = norm.norm_statistics(launch, y, b.norm, False)
    if b.norm is None and b.act == 0:
        return Conv2dTrained(y, y.new_empty(0), stats)
    return Conv2dTrained(norm.norm_act(launch, y, b.norm, stats, b.act), y, stats)


def conv2d(launch: Launch, a: Conv2d) -> Tensor:
    """Output with running statistics, in one pass."""
    return convolution(launch, nhwc(a.x), a.weight, a.bias, a.stride, a.padding, Operand(a.norm, None, a.act))[0]


def conv2d_backward(launch: Launch, a: Conv2dBackward) -> Conv2dGradients:
    """Gradients of x, weight, bias, and the norm's weight and bias."""
    params = a.needs.params
    dy, d_norm = nhwc(a.d_out), (a.x.new_empty(0), a.x.new_empty(0))
    if a.norm is not None or a.act:
        dy, *d_layer = norm.norm_act_backward(launch, dy, a.y, a.norm, a.stats, a.act, a.batch_stats)
        d_norm = (d_layer[0], d_layer[1]) if params else d_norm
    needs = ConvNeeds(a.needs.x, params, a.needs.bias)
    grads = convolution_backward(launch, dy, nhwc(a.x), a.weight, a.stride, a.padding, needs)
    return Conv2dGradients(*grads, *d_norm)


def conv2d_pool_train(launch: Launch, a: Conv2dPoolTrain) -> Conv2dPoolTrained:
    """Output of the pooling after `conv2d_train`, y, y at the maxima, their places in the windows, statistics."""
    b = a.block
    assert b.norm is not None
    eps = b.norm.eps if a.batch_stats else None
    y, stats = convolution(launch, nhwc(b.x), b.weight, b.bias, b.stride, b.padding, eps=eps)
    if eps is None:
        stats = norm.norm_statistics(launch, y, b.norm, False)
    out, best, places = pool.norm_max_pool(launch, y, b.norm, stats, b.act, a.pool)
    return Conv2dPoolTrained(out, y, best, places, stats)


def conv2d_pool_backward(launch: Launch, a: Conv2dPoolBackward) -> Conv2dGradients:
    """Gradients as `conv2d_backward`, ``d_out`` that of the pooled output."""
    params = a.needs.params
    dy, *d_layer = pool.norm_max_pool_backward(
        launch, nhwc(a.d_out), a.y, a.best, nhwc(a.positions), a.norm, a.stats, a.act, a.pool, a.batch_stats
    )
    needs = ConvNeeds(a.needs.x, params, a.needs.bias)
    grads = convolution_backward(launch, dy, nhwc(a.x), a.weight, a.stride, a.padding, needs)
    d_norm = (d_layer[0], d_layer[1]) if params else (a.x.new_empty(0), a.x.new_empty(0))
    return Conv2dGradients(*grads, *d_norm)


def conv2d_linked(launch: Launch, a: Conv2dLinked) -> Conv2dLinkedTrained:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.conv2d_linked(partial(conv2d_train, launch), a)


def conv2d_linked_backward(launch: Launch, a: Conv2dLinkedBackward) -> ConvGradients:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.conv2d_linked_backward(partial(conv2d_backward, launch), a)
