# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck, forward and backward, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference.norm import norm_statistics, normalise, normalise_backward, wanted
from fastfer.backends.reference.separable_conv import (
    depthwise_conv2d,
    depthwise_conv2d_backward,
    pointwise_conv2d,
    pointwise_conv2d_backward,
)
from fastfer.signatures.bottleneck import (
    Bottleneck,
    BottleneckBackward,
    BottleneckGradients,
    BottleneckTrain,
    BottleneckTrained,
)
from fastfer.signatures.separable_conv import ConvNeeds, Depthwise, DepthwiseBackward, Pointwise, PointwiseBackward


def covariance(x: Tensor, weight: Tensor) -> Tensor:
    """(O + 1, C): covariance (biased) of each output of the 1×1 ``weight`` (O, C, 1, 1) with the channels of ``x``.

    The last row is the mean of x. Computed in float64.
    """
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()
    count = max(len(pixels), 1)
    mean = pixels.sum(0) / count
    centred = pixels - mean
    return torch.cat([weight.flatten(1).double() @ (centred.T @ centred) / count, mean[None]]).to(x.dtype)


def kept_covariance(x: Tensor, weight: Tensor, batch_stats: bool) -> Tensor:
    """`covariance` for what trains on a CPU with batch statistics, whose native backward reads it; else empty."""
    return covariance(x, weight) if batch_stats and x.device.type == "cpu" else x.new_empty(0)


def inverted_bottleneck_train(a: BottleneckTrain) -> BottleneckTrained:
    """Output, y1 (depthwise), y2 (projection), `kept_covariance`, and the norms' statistics."""
    b, x = a.block, a.block.x
    z = pointwise_conv2d(Pointwise(x, b.expand_weight, None))
    stats1 = norm_statistics(z, b.norm1, a.batch_stats)
    crossed = kept_covariance(x, b.expand_weight, a.batch_stats)
    y1 = depthwise_conv2d(Depthwise(normalise(z, b.norm1, stats1, b.act), b.dw_weight, None, b.stride, b.padding))
    stats2 = norm_statistics(y1, b.norm2, a.batch_stats)
    a2 = normalise(y1, b.norm2, stats2, b.act)
    if b.project_weight is None:
        return BottleneckTrained(nhwc(a2), y1, x.new_empty(0), crossed, stats1, stats2, x.new_empty(0))
    y2 = pointwise_conv2d(Pointwise(a2, b.project_weight, None))
    stats3 = norm_statistics(y2, b.norm3, a.batch_stats)
    out = normalise(y2, b.norm3, stats3, 0)
    return BottleneckTrained(nhwc(out + x if b.residual else out), y1, y2, crossed, stats1, stats2, stats3)


def inverted_bottleneck(a: Bottleneck) -> Tensor:
    """Output with running statistics."""
    return inverted_bottleneck_train(BottleneckTrain(a, False)).out


def inverted_bottleneck_backward(a: BottleneckBackward) -> BottleneckGradients:
    """Gradients of x; the expansion's weight, norm1's two; the depthwise weight, norm2's two; the projection's, norm3's
    two."""
    x, needs = a.x, ConvNeeds(True, a.needs.params, False)
    da2, third = a.d_out, tuple(x.new_empty(0) for _ in range(3))
    if a.project_weight is not None:
        dy2, d_weight3, d_bias3 = normalise_backward(a.d_out, a.y2, a.norm3, a.stats3, 0, a.batch_stats)
        a2 = normalise(a.y1, a.norm2, a.stats2, a.act)
        da2, d_project, _ = pointwise_conv2d_backward(PointwiseBackward(dy2, a2, a.project_weight, needs))
        third = (d_project, d_weight3, d_bias3)
    z = pointwise_conv2d(Pointwise(x, a.expand_weight, None))
    a1 = normalise(z, a.norm1, a.stats1, a.act)
    dy1, d_weight2, d_bias2 = normalise_backward(da2, a.y1, a.norm2, a.stats2, a.act, a.batch_stats)
    da1, d_dw, _ = depthwise_conv2d_backward(DepthwiseBackward(dy1, a1, a.dw_weight, a.stride, a.padding, needs))
    dz, d_weight1, d_bias1 = normalise_backward(da1, z, a.norm1, a.stats1, a.act, a.batch_stats)
    d_x, d_expand, _ = pointwise_conv2d_backward(PointwiseBackward(dz, x, a.expand_weight, needs._replace(x=a.needs.x)))
    if a.residual and a.needs.x:
        d_x = nhwc(d_x + a.d_out)
    params = (d_expand, d_weight1, d_bias1, d_dw, d_weight2, d_bias2, *third)
    return BottleneckGradients(d_x, *wanted(a.needs.params, *params))
