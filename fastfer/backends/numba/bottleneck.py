# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck on Numba, with the functions of the reference backend.

Expansion, depthwise convolution and projection one after the other with the passes of the other convolutions. Backward
computes the expansion again from x.
"""

from __future__ import annotations

from torch import Tensor

from fastfer.backends.numba._numba import nhwc
from fastfer.backends.numba._steps import affine, distinct, norm_act
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

_POINTWISE = [1, 1], [0, 0, 0, 0]


def inverted_bottleneck_train(
    x: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, n1_mean: Tensor, n1_var: Tensor, eps1: float,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, n2_mean: Tensor, n2_var: Tensor, eps2: float,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, n3_mean: Tensor | None,
    n3_var: Tensor | None, eps3: float,
    act: int, residual: bool, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, y1, y2, covariance and the three norms' statistics as `backends.reference.bottleneck` has them."""
    norm1, norm2 = (n1_weight, n1_bias, n1_mean, n1_var, eps1), (n2_weight, n2_bias, n2_mean, n2_var, eps2)
    a1, _, stats1 = conv2d_train(x, expand, None, *norm1, act, *_POINTWISE, batch_stats)
    covariance = kept_covariance(x, expand, batch_stats)
    if project is None:
        out, y1, stats2 = depthwise_norm_train(a1, dw, None, *norm2, act, stride, padding, batch_stats)
        return out, y1, x.new_empty(0), covariance, stats1, stats2, x.new_empty(0)
    out, y1, y2, stats2, stats3 = separable_conv2d_train(
        a1, dw, None, *norm2, act, project, None, n3_weight, n3_bias, n3_mean, n3_var, eps3, 0, stride, padding,
        batch_stats,
    )  # fmt: skip
    return out.add_(x) if residual else out, y1, y2, covariance, stats1, stats2, stats3


def inverted_bottleneck(
    x: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, n1_mean: Tensor, n1_var: Tensor, eps1: float,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, n2_mean: Tensor, n2_var: Tensor, eps2: float,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, n3_mean: Tensor | None,
    n3_var: Tensor | None, eps3: float,
    act: int, residual: bool, stride: list[int], padding: list[int],
) -> Tensor:  # fmt: skip
    """Output with running statistics."""
    norm2 = n2_weight, n2_bias, n2_mean, n2_var, eps2
    a1 = conv2d(x, expand, None, n1_weight, n1_bias, n1_mean, n1_var, eps1, act, *_POINTWISE)
    if project is None:
        return depthwise_norm_train(a1, dw, None, *norm2, act, stride, padding, False)[0]
    out = separable_conv2d(
        a1, dw, None, *norm2, act, project, None, n3_weight, n3_bias, n3_mean, n3_var, eps3, 0, stride, padding
    )
    return out.add_(x) if residual else out


def inverted_bottleneck_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor, covariance: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, stats1: Tensor,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, stats2: Tensor,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, stats3: Tensor,
    act: int, residual: bool, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; expand, norm1's two; dw, norm2's two; project, norm3's two. Those not asked for are empty."""
    need_dx, need_params = mask
    nothing = x.new_empty(0)
    z = pointwise_conv2d(x, expand, None)
    a1 = norm_act(z, affine(n1_weight, n1_bias, stats1), act)
    if project is None:
        da1, d_dw, _, *d_norm2 = depthwise_norm_backward(
            dout, a1, y1, dw, n2_weight, n2_bias, stats2, act, stride, padding, batch_stats, [True, need_params]
        )
        third = [nothing] * 3
    else:
        da1, d_dw, _, d_w2, d_b2, d_project, _, *d_norm3 = separable_conv2d_backward(
            dout, a1, y1, y2, dw, n2_weight, n2_bias, stats2, act, project, n3_weight, n3_bias, stats3, 0, stride,
            padding, batch_stats, [True, need_params, need_params],
        )  # fmt: skip
        d_norm2, third = [d_w2, d_b2], [d_project, *d_norm3]
    dx, d_expand, _, *d_norm1 = conv2d_backward(
        da1, x, z, expand, n1_weight, n1_bias, stats1, act, *_POINTWISE, batch_stats, mask
    )
    if residual and need_dx:
        dx = dx.add_(nhwc(dout))
    return distinct(dx, d_expand, *d_norm1, d_dw, *d_norm2, *third)
