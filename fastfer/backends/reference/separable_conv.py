# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block, forward and backward, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference._linked import link_gradients, normalised, through_statistics
from fastfer.backends.reference.norm import norm_statistics, normalise, normalise_backward, wanted
from fastfer.signatures.separable_conv import (
    ConvGradients,
    ConvNeeds,
    Depthwise,
    DepthwiseBackward,
    DepthwiseNorm,
    DepthwiseNormBackward,
    DepthwiseNormGradients,
    DepthwiseNormLinked,
    DepthwiseNormLinkedBackward,
    DepthwiseNormLinkedGradients,
    DepthwiseNormTrain,
    DepthwiseNormTrained,
    Pointwise,
    PointwiseBackward,
    Separable,
    SeparableBackward,
    SeparableGradients,
    SeparableLinked,
    SeparableLinkedBackward,
    SeparableLinkedGradients,
    SeparableTrain,
    SeparableTrained,
    keeps_y1,
)

_DIMS = (0, 2, 3)


def _pad(x: Tensor, padding: list[int]) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom))


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    return nhwc(F.conv2d(_pad(x, padding), weight, bias, stride, groups=x.shape[1]))


def depthwise_conv2d(a: Depthwise) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return _depthwise(*a)


def depthwise_conv2d_backward(a: DepthwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    top, left, bottom, right = a.padding
    padded, needs = _pad(a.x, a.padding), a.needs
    dx, dw, _ = torch.ops.aten.convolution_backward(
        a.d_out, padded, a.weight, None, a.stride, [0, 0], [1, 1], False, [0, 0], a.x.shape[1],
        [needs.x, needs.weight, False],
    )  # fmt: skip
    height, width = padded.shape[2], padded.shape[3]
    return ConvGradients(
        nhwc(dx[:, :, top : height - bottom, left : width - right]) if needs.x else a.x.new_empty(0),
        dw.contiguous() if needs.weight else a.x.new_empty(0),
        a.d_out.sum(_DIMS) if needs.bias else a.x.new_empty(0),
    )


def depthwise_norm_train(a: DepthwiseNormTrain) -> DepthwiseNormTrained:
    """act(norm(y)), the depthwise output y, and statistics."""
    block = a.block
    y = _depthwise(block.x, block.weight, block.bias, block.stride, block.padding)
    stats = norm_statistics(y, block.norm, a.batch_stats)
    return DepthwiseNormTrained(nhwc(normalise(y, block.norm, stats, block.act)), y, stats)


def depthwise_norm(a: DepthwiseNorm) -> Tensor:
    """act(norm(y)) with running statistics."""
    return depthwise_norm_train(DepthwiseNormTrain(a, False)).out


def depthwise_norm_backward(a: DepthwiseNormBackward) -> DepthwiseNormGradients:
    """Gradients of x; weight, bias and norm's two."""
    params = a.needs.params
    dy, d_weight, d_bias = normalise_backward(a.d_out, a.y, a.norm, a.stats, a.act, a.batch_stats)
    grads = depthwise_conv2d_backward(
        DepthwiseBackward(dy, a.x, a.weight, a.stride, a.padding, ConvNeeds(a.needs.x, params, params and a.needs.bias))
    )
    return DepthwiseNormGradients(*grads, *wanted(params, d_weight, d_bias))


def pointwise_conv2d(a: Pointwise) -> Tensor:
    """1×1 convolution."""
    return nhwc(F.conv2d(a.x, a.weight, a.bias))


def pointwise_conv2d_backward(a: PointwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    needs = a.needs
    dx, dw, _ = torch.ops.aten.convolution_backward(
        a.d_out, a.x, a.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [needs.x, needs.weight, False]
    )
    return ConvGradients(
        nhwc(dx) if needs.x else a.x.new_empty(0),
        dw.contiguous() if needs.weight else a.x.new_empty(0),
        a.d_out.sum(_DIMS) if needs.bias else a.x.new_empty(0),
    )


def separable_conv2d_train(a: SeparableTrain) -> SeparableTrained:
    """Output, y1, y2 and statistics."""
    b = a.block
    y1 = _depthwise(b.x, b.dw_weight, b.dw_bias, b.stride, b.padding)
    stats1 = norm_statistics(y1, b.norm1, a.batch_stats)
    y2 = pointwise_conv2d(Pointwise(normalise(y1, b.norm1, stats1, b.act1), b.pw_weight, b.pw_bias))
    stats2 = norm_statistics(y2, b.norm2, a.batch_stats)
    if not keeps_y1(b, y1.shape[2], y1.shape[3]):
        y1 = b.x.new_empty(0)
    if b.norm2 is None and b.act2 == 0:
        return SeparableTrained(y2, y1, y2.new_empty(0), stats1, stats2)
    return SeparableTrained(nhwc(normalise(y2, b.norm2, stats2, b.act2)), y1, y2, stats1, stats2)


def separable_conv2d(a: Separable) -> Tensor:
    """Output with running statistics."""
    return separable_conv2d_train(SeparableTrain(a, False)).out


def separable_conv2d_backward(a: SeparableBackward) -> SeparableGradients:
    """Gradients of x; the depthwise weight, its bias, norm1's two; the pointwise weight, its bias, norm2's two."""
    needs, before = a.needs, a.needs.x or a.needs.dw
    y1 = a.y1 if a.y1.dim() == 4 else _depthwise(a.x, a.dw_weight, None, a.stride, a.padding)
    dy2, d_weight2, d_bias2 = normalise_backward(a.d_out, a.y2, a.norm2, a.stats2, a.act2, a.batch_stats)
    a1 = normalise(y1, a.norm1, a.stats1, a.act1)
    da1, d_pw, d_pw_bias = pointwise_conv2d_backward(
        PointwiseBackward(dy2, a1, a.pw_weight, ConvNeeds(before, needs.pw, needs.pw and needs.biases))
    )
    pw_side = (d_pw, d_pw_bias, *wanted(needs.pw, d_weight2, d_bias2))
    if not before:
        return SeparableGradients(*(a.x.new_empty(0) for _ in range(5)), *pw_side)
    dy1, d_weight1, d_bias1 = normalise_backward(da1, y1, a.norm1, a.stats1, a.act1, a.batch_stats)
    dw_needs = ConvNeeds(needs.x, needs.dw, needs.dw and needs.biases)
    dw_side = depthwise_conv2d_backward(DepthwiseBackward(dy1, a.x, a.dw_weight, a.stride, a.padding, dw_needs))
    return SeparableGradients(*dw_side, *wanted(needs.dw, d_weight1, d_bias1), *pw_side)


def separable_conv2d_linked(a: SeparableLinked) -> SeparableTrained:
    """As `separable_conv2d_train` of the normalised x; the last norm may be left to the next op."""
    block = a.block._replace(x=normalised(a.block.x, a.link))
    trained = separable_conv2d_train(SeparableTrain(block, True))
    return trained if a.left is None else trained._replace(stats2=norm_statistics(trained.out, a.left, True))


def separable_conv2d_linked_backward(a: SeparableLinkedBackward) -> SeparableLinkedGradients:
    """Gradients as `separable_conv2d_backward`, then the link's."""
    block, y = a.block, a.block.x
    if a.leaves:
        d_out = through_statistics(block.d_out, a.d_stats2, block.y2, block.stats2)
        block = block._replace(d_out=d_out, y2=y.new_empty(0))
    if a.link is None:
        return SeparableLinkedGradients(*separable_conv2d_backward(block), *(y.new_empty(0) for _ in range(3)))
    of_z = block._replace(x=normalised(y, a.link), needs=block.needs._replace(x=True))
    grads = separable_conv2d_backward(of_z)
    linked = link_gradients(grads.d_x, y, a.link)
    return SeparableLinkedGradients(*grads._replace(d_x=linked.x), linked.stats, linked.weight, linked.bias)


def depthwise_norm_linked(a: DepthwiseNormLinked) -> DepthwiseNormTrained:
    """As `depthwise_norm_train` of the normalised x."""
    return depthwise_norm_train(DepthwiseNormTrain(a.block._replace(x=normalised(a.block.x, a.link)), True))


def depthwise_norm_linked_backward(a: DepthwiseNormLinkedBackward) -> DepthwiseNormLinkedGradients:
    """Gradients as `depthwise_norm_backward`, then the link's."""
    y = a.block.x
    of_z = a.block._replace(x=normalised(y, a.link), needs=a.block.needs._replace(x=True))
    grads = depthwise_norm_backward(of_z)
    linked = link_gradients(grads.d_x, y, a.link)
    return DepthwiseNormLinkedGradients(*grads._replace(d_x=linked.x), linked.stats, linked.weight, linked.bias)
