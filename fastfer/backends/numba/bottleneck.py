# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck on Numba, with the functions of the reference backend.

Expansion, depthwise convolution and projection one after the other with the passes of the other convolutions. Backward
computes the expansion again from x.
"""

from __future__ import annotations

from torch import Tensor

from fastfer.backends.numba._numba import nhwc
from fastfer.backends.numba._steps import distinct, norm_act, scaled
from fastfer.backends.numba.conv2d import conv2d, conv2d_backward, conv2d_train
from fastfer.backends.numba.separable_conv import (
    depthwise_norm_backward,
    depthwise_norm_train,
    pointwise_conv2d,
    separable_conv2d,
    separable_conv2d_backward,
    separable_conv2d_train,
)
from fastfer.backends.reference.bottleneck import kept_covariance
from fastfer.signatures.bottleneck import (
    Bottleneck,
    BottleneckBackward,
    BottleneckGradients,
    BottleneckTrain,
    BottleneckTrained,
)
from fastfer.signatures.conv2d import Conv2d, Conv2dBackward, Conv2dNeeds, Conv2dTrain
from fastfer.signatures.separable_conv import (
    DepthwiseNorm,
    DepthwiseNormBackward,
    DepthwiseNormNeeds,
    DepthwiseNormTrain,
    Pointwise,
    Separable,
    SeparableBackward,
    SeparableNeeds,
    SeparableTrain,
)

_POINTWISE = [1, 1], [0, 0, 0, 0]


def _expansion(b: Bottleneck) -> Conv2d:
    return Conv2d(b.x, b.expand_weight, None, b.norm1, b.act, *_POINTWISE)


def _depthwise(b: Bottleneck, a1: Tensor) -> DepthwiseNorm:
    return DepthwiseNorm(a1, b.dw_weight, None, b.norm2, b.act, b.stride, b.padding)


def _pair(b: Bottleneck, a1: Tensor, project_weight: Tensor) -> Separable:
    return Separable(a1, b.dw_weight, None, b.norm2, b.act, project_weight, None, b.norm3, 0, b.stride, b.padding)


def inverted_bottleneck_train(a: BottleneckTrain) -> BottleneckTrained:
    """Output, y1, y2, covariance and the three norms' statistics."""
    b, x = a.block, a.block.x
    a1, _, stats1 = conv2d_train(Conv2dTrain(_expansion(b), a.batch_stats))
    covariance = kept_covariance(x, b.expand_weight, a.batch_stats)
    if b.project_weight is None:
        out, y1, stats2 = depthwise_norm_train(DepthwiseNormTrain(_depthwise(b, a1), a.batch_stats))
        return BottleneckTrained(out, y1, x.new_empty(0), covariance, stats1, stats2, x.new_empty(0))
    out, y1, y2, stats2, stats3 = separable_conv2d_train(SeparableTrain(_pair(b, a1, b.project_weight), a.batch_stats))
    return BottleneckTrained(out.add_(x) if b.residual else out, y1, y2, covariance, stats1, stats2, stats3)


def inverted_bottleneck(a: Bottleneck) -> Tensor:
    """Output with running statistics."""
    a1 = conv2d(_expansion(a))
    if a.project_weight is None:
        return depthwise_norm_train(DepthwiseNormTrain(_depthwise(a, a1), False)).out
    out = separable_conv2d(_pair(a, a1, a.project_weight))
    return out.add_(a.x) if a.residual else out


def inverted_bottleneck_backward(a: BottleneckBackward) -> BottleneckGradients:
    """Gradients of x; the expansion's weight, norm1's two; the depthwise weight, norm2's two; the projection's, norm3's
    two."""
    x, params, nothing = a.x, a.needs.params, a.x.new_empty(0)
    z = pointwise_conv2d(Pointwise(x, a.expand_weight, None))
    a1 = norm_act(z, scaled(a.norm1, a.stats1), a.act)
    if a.project_weight is None:
        first = depthwise_norm_backward(DepthwiseNormBackward(
            a.d_out, a1, a.y1, a.dw_weight, a.norm2, a.stats2, a.act, a.stride, a.padding, a.batch_stats,
            DepthwiseNormNeeds(True, params, False),
        ))  # fmt: skip
        d_a1, d_dw, d_norm2_weight, d_norm2_bias = first.d_x, first.d_weight, first.d_norm_weight, first.d_norm_bias
        d_project = d_norm3_weight = d_norm3_bias = nothing
    else:
        both = separable_conv2d_backward(SeparableBackward(
            a.d_out, a1, a.y1, a.y2, a.dw_weight, a.norm2, a.stats2, a.act, a.project_weight, a.norm3, a.stats3, 0,
            a.stride, a.padding, a.batch_stats, SeparableNeeds(x=True, dw=params, pw=params, biases=False),
        ))  # fmt: skip
        d_a1, d_dw, d_norm2_weight, d_norm2_bias = both.d_x, both.d_dw_weight, both.d_norm1_weight, both.d_norm1_bias
        d_project, d_norm3_weight, d_norm3_bias = both.d_pw_weight, both.d_norm2_weight, both.d_norm2_bias
    grads = conv2d_backward(Conv2dBackward(
        d_a1, x, z, a.expand_weight, a.norm1, a.stats1, a.act, *_POINTWISE, a.batch_stats,
        Conv2dNeeds(a.needs.x, params, False),
    ))  # fmt: skip
    d_x = grads.d_x
    if a.residual and a.needs.x:
        d_x = d_x.add_(nhwc(a.d_out))
    expansion = grads.d_weight, grads.d_norm_weight, grads.d_norm_bias
    depthwise, projection = (d_dw, d_norm2_weight, d_norm2_bias), (d_project, d_norm3_weight, d_norm3_bias)
    return BottleneckGradients(*distinct(d_x, *expansion, *depthwise, *projection))
