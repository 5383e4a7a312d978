# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck on CUDA tensors; the functions of `fastfer.backends.reference.bottleneck`.

The expansion is a pointwise product that gathers its statistics; its norm and activation are applied as the depthwise
convolution reads it. Backward computes it again from x.
"""

from __future__ import annotations

from torch import Tensor

from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, nhwc
from fastfer.backends.cuda.product import PLAIN, Operand, product, product_backward, product_norm
from fastfer.backends.cuda.separable_conv import (
    depthwise,
    depthwise_train,
    depthwise_train_backward,
    separable_backward,
    separable_inference,
    separable_train,
)
from fastfer.backends.reference.bottleneck import kept_covariance
from fastfer.signatures.bottleneck import (
    Bottleneck,
    BottleneckBackward,
    BottleneckGradients,
    BottleneckTrain,
    BottleneckTrained,
)
from fastfer.signatures.separable_conv import (
    ConvNeeds,
    DepthwiseNorm,
    DepthwiseNormBackward,
    DepthwiseNormGradients,
    DepthwiseNormNeeds,
    DepthwiseNormTrain,
    Separable,
    SeparableBackward,
    SeparableGradients,
    SeparableNeeds,
    SeparableTrain,
)


def inverted_bottleneck_train(launch: Launch, a: BottleneckTrain) -> BottleneckTrained:
    """Output, y1, y2, covariance and the three norms' statistics."""
    b, x = a.block, nhwc(a.block.x)
    z, stats1 = product_norm(launch, x, PLAIN, b.expand_weight, None, b.norm1, a.batch_stats)
    expanded, covariance = Operand(b.norm1, stats1, b.act), kept_covariance(x, b.expand_weight, a.batch_stats)
    if b.project_weight is None:
        depthwise = DepthwiseNorm(z, b.dw_weight, None, b.norm2, b.act, b.stride, b.padding)
        out, y1, stats2 = depthwise_train(launch, z, expanded, DepthwiseNormTrain(depthwise, a.batch_stats))
        return BottleneckTrained(out, y1, x.new_empty(0), covariance, stats1, stats2, stats2.new_empty(0))
    pair = Separable(z, b.dw_weight, None, b.norm2, b.act, b.project_weight, None, b.norm3, 0, b.stride, b.padding)
    out, y1, y2, stats2, stats3 = separable_train(launch, z, expanded, SeparableTrain(pair, a.batch_stats))
    return BottleneckTrained(out.add_(x) if b.residual else out, y1, y2, covariance, stats1, stats2, stats3)


def inverted_bottleneck(launch: Launch, a: Bottleneck) -> Tensor:
    """Output with running statistics: norms and activations where their input is made."""
    x = nhwc(a.x)
    z = product(launch, x, PLAIN, a.expand_weight, None, Operand(a.norm1, None, a.act))[0]
    if a.project_weight is None:
        after = Operand(a.norm2, None, a.act)
        return depthwise(launch, z, PLAIN, a.dw_weight, None, a.stride, a.padding, after)[0]
    pair = Separable(z, a.dw_weight, None, a.norm2, a.act, a.project_weight, None, a.norm3, 0, a.stride, a.padding)
    out = separable_inference(launch, z, PLAIN, pair)
    return out.add_(x) if a.residual else out


def inverted_bottleneck_backward(launch: Launch, a: BottleneckBackward) -> BottleneckGradients:
    """Gradients of x; the expansion's weight, norm1's two; the depthwise weight, norm2's two; the projection's, norm3's
    two."""
    dout, x, params = nhwc(a.d_out), nhwc(a.x), a.needs.params
    z = product(launch, x, PLAIN, a.expand_weight, None)[0]
    expanded = Operand(a.norm1, a.stats1, a.act)
    grads: DepthwiseNormGradients | SeparableGradients
    if a.project_weight is None:
        grads = depthwise_train_backward(launch, z, expanded, DepthwiseNormBackward(
            dout, z, a.y1, a.dw_weight, a.norm2, a.stats2, a.act, a.stride, a.padding, a.batch_stats,
            DepthwiseNormNeeds(True, params, False),
        ))  # fmt: skip
        d_a1, depthwise = grads.d_x, (grads.d_weight, grads.d_norm_weight, grads.d_norm_bias)
        projection = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    else:
        grads = separable_backward(launch, z, expanded, SeparableBackward(
            dout, z, a.y1, a.y2, a.dw_weight, a.norm2, a.stats2, a.act, a.project_weight, a.norm3, a.stats3, 0,
            a.stride, a.padding, a.batch_stats, SeparableNeeds(x=True, dw=params, pw=params, biases=False),
        ))  # fmt: skip
        d_a1, depthwise = grads.d_x, (grads.d_dw_weight, grads.d_norm1_weight, grads.d_norm1_bias)
        projection = grads.d_pw_weight, grads.d_norm2_weight, grads.d_norm2_bias
    dz, d_norm1_weight, d_norm1_bias = norm.norm_act_backward(launch, d_a1, z, a.norm1, a.stats1, a.act, a.batch_stats)
    d_x, d_expand, _ = product_backward(launch, dz, x, PLAIN, a.expand_weight, ConvNeeds(a.needs.x, params, False))
    if a.residual and a.needs.x:
        d_x = d_x.add_(dout)
    if not params:
        d_norm1_weight, d_norm1_bias = x.new_empty(0), x.new_empty(0)
    return BottleneckGradients(d_x, d_expand, d_norm1_weight, d_norm1_bias, *depthwise, *projection)
