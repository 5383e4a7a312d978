# SPDX-License-Identifier: Apache-2.0
"""Dense 2-D convolution (cross-correlation, as torch) with normalisation and activation, in plain torch.

y[n, o, i, j] = bias[o] + sum_c,p,q x[n, c, i·sh + p - top, j·sw + q - left] · weight[o, c, p, q], x zero outside;
out = act(norm(y)). x (N, C, H, W), weight (O, C, KH, KW), bias and the norm's tensors (O,) or None, stride (sh, sw),
padding (top, left, bottom, right).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference._linked import through_statistics
from fastfer.backends.reference.norm import norm_statistics, normalise, normalise_backward
from fastfer.backends.reference.pool import at_maxima, max_pool2d_backward, max_pool2d_train
from fastfer.signatures.conv2d import (
    Conv2d,
    Conv2dBackward,
    Conv2dGradients,
    Conv2dLinked,
    Conv2dLinkedBackward,
    Conv2dLinkedTrained,
    Conv2dNeeds,
    Conv2dPoolBackward,
    Conv2dPoolTrain,
    Conv2dPoolTrained,
    Conv2dTrain,
    Conv2dTrained,
)
from fastfer.signatures.pool import MaxPool, MaxPoolBackward
from fastfer.signatures.separable_conv import ConvGradients


def _pad(x: Tensor, padding: list[int]) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(nhwc(x), (left, right, top, bottom))  # torch's result depends on the layout, to the rounding


def conv2d_train(a: Conv2dTrain) -> Conv2dTrained:
    """Output, y where norm or activation follows, statistics with a norm."""
    b = a.block
    y = nhwc(F.conv2d(_pad(b.x, b.padding), b.weight, b.bias, b.stride))
    stats = norm_statistics(y, b.norm, a.batch_stats)
    if b.norm is None and b.act == 0:
        return Conv2dTrained(y, y.new_empty(0), stats)
    return Conv2dTrained(nhwc(normalise(y, b.norm, stats, b.act)), y, stats)


def conv2d(a: Conv2d) -> Tensor:
    """Output with running statistics."""
    return conv2d_train(Conv2dTrain(a, False)).out


def conv2d_backward(a: Conv2dBackward) -> Conv2dGradients:
    """Gradients of x, weight, bias, and the norm's weight and bias."""
    needs, x = a.needs, a.x
    dy, d_norm_weight, d_norm_bias = normalise_backward(a.d_out, a.y, a.norm, a.stats, a.act, a.batch_stats)
    padded = _pad(x, a.padding)
    dx, d_weight, _ = torch.ops.aten.convolution_backward(
        dy, padded, a.weight, None, a.stride, [0, 0], [1, 1], False, [0, 0], 1, [needs.x, needs.params, False]
    )
    top, left, bottom, right = a.padding
    height, width = padded.shape[2], padded.shape[3]
    params: tuple[Tensor, ...]
    if needs.params:
        d_bias = dy.sum((0, 2, 3)) if needs.bias else x.new_empty(0)
        params = d_weight.contiguous(), d_bias, d_norm_weight, d_norm_bias
    else:
        params = tuple(x.new_empty(0) for _ in range(4))
    d_x = nhwc(dx[:, :, top : height - bottom, left : width - right]) if needs.x else x.new_empty(0)
    return Conv2dGradients(d_x, *params)


def conv2d_pool_train(a: Conv2dPoolTrain) -> Conv2dPoolTrained:
    """Output of the pooling after `conv2d_train`, y, y at the maxima, their places in the windows, statistics."""
    full = conv2d_train(Conv2dTrain(a.block, a.batch_stats))
    pooled = max_pool2d_train(MaxPool(full.out, a.pool))
    return Conv2dPoolTrained(
        out=pooled.out,
        y=full.y,
        best=at_maxima(full.y, pooled.positions, a.pool),
        positions=pooled.positions,
        stats=full.stats,
    )


def conv2d_pool_backward(a: Conv2dPoolBackward) -> Conv2dGradients:
    """Gradients as `conv2d_backward`, ``d_out`` that of the pooled output."""
    d_full = max_pool2d_backward(MaxPoolBackward(a.d_out, a.positions, list(a.y.shape[2:]), a.pool))
    return conv2d_backward(
        Conv2dBackward(
            d_out=d_full,
            x=a.x,
            y=a.y,
            weight=a.weight,
            norm=a.norm,
            stats=a.stats,
            act=a.act,
            stride=a.stride,
            padding=a.padding,
            batch_stats=a.batch_stats,
            needs=a.needs,
        )
    )


def conv2d_linked(a: Conv2dLinked) -> Conv2dLinkedTrained:
    """The convolution and its statistics."""
    y = nhwc(F.conv2d(_pad(a.x, a.padding), a.weight, a.bias, a.stride))
    return Conv2dLinkedTrained(y, norm_statistics(y, a.left, True))


def conv2d_linked_backward(a: Conv2dLinkedBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    d_y, nothing = through_statistics(a.d_y, a.d_stats, a.y, a.stats), a.y.new_empty(0)
    grads = conv2d_backward(
        Conv2dBackward(
            d_out=d_y,
            x=a.x,
            y=nothing,
            weight=a.weight,
            norm=None,
            stats=nothing,
            act=0,
            stride=a.stride,
            padding=a.padding,
            batch_stats=True,
            needs=Conv2dNeeds(a.needs.x, a.needs.weight, a.needs.bias),
        )
    )
    return ConvGradients(grads.d_x, grads.d_weight, grads.d_bias)
