# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck on CUDA tensors; the functions of `fastfer.backends.reference.bottleneck`.

The expansion is a pointwise product that gathers its statistics; its norm and activation are applied as the depthwise
convolution reads it. Backward computes it again from x.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, nhwc
from fastfer.backends.cuda.separable_conv import (
    NO_NORM,
    depthwise_after,
    depthwise_after_backward,
    product,
    product_backward,
    product_norm,
    separable,
    separable_backward,
)
from fastfer.backends.reference.bottleneck import kept_covariance


def inverted_bottleneck_train(
    launch: Launch, x: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, n1_mean: Tensor, n1_var: Tensor, eps1: float,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, n2_mean: Tensor, n2_var: Tensor, eps2: float,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, n3_mean: Tensor | None,
    n3_var: Tensor | None, eps3: float,
    act: int, residual: bool, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, y1, y2, covariance and the three norms' statistics as `backends.reference.bottleneck` has them."""
    x = nhwc(x)
    z, stats1 = product_norm(launch, x, NO_NORM, expand, None, n1_mean, n1_var, eps1, batch_stats)
    before, norm2 = (n1_weight, n1_bias, stats1, act), (n2_weight, n2_bias, n2_mean, n2_var, eps2, act)
    window, covariance = (stride, padding, batch_stats), kept_covariance(x, expand, batch_stats)
    if project is None:
        out, y1, stats2 = depthwise_after(launch, z, before, dw, None, *norm2, *window)
        return out, y1, x.new_empty(0), covariance, stats1, stats2, stats2.new_empty(0)
    norm3 = (n3_weight, n3_bias, n3_mean, n3_var, eps3, 0)
    out, y1, y2, stats2, stats3 = separable(launch, z, before, dw, None, *norm2, project, None, *norm3, *window)
    return out.add_(x) if residual else out, y1, y2, covariance, stats1, stats2, stats3


def inverted_bottleneck(launch: Launch, *args: Any) -> Tensor:
    """Output with running statistics."""
    return inverted_bottleneck_train(launch, *args, False)[0]  # type: ignore[call-arg]


def inverted_bottleneck_backward(
    launch: Launch, dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor, covariance: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, stats1: Tensor,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, stats2: Tensor,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, stats3: Tensor,
    act: int, residual: bool, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; expand, norm1's two; dw, norm2's two; project, norm3's two. Those not asked for are empty."""
    need_dx, need_params = mask
    dout, x = nhwc(dout), nhwc(x)
    z = product(launch, x, NO_NORM, expand, None, False)[0]
    before, norm2 = (n1_weight, n1_bias, stats1, act), (n2_weight, n2_bias, stats2, act)
    if project is None:
        window = (stride, padding, batch_stats, [True, need_params])
        da1, d_dw, _, *d_norm2 = depthwise_after_backward(launch, dout, z, before, y1, dw, *norm2, *window)
        third = [x.new_empty(0) for _ in range(3)]
    else:
        norm3, window = (n3_weight, n3_bias, stats3, 0), (stride, padding, batch_stats, [True, *[need_params] * 2])
        da1, d_dw, _, *d_norm2, d_project, _, d_w3, d_b3 = separable_backward(
            launch, dout, z, before, y1, y2, dw, *norm2, project, *norm3, *window
        )
        third = [d_project, d_w3, d_b3]
    dz, *d_norm1 = norm.norm_act_backward(launch, da1, z, n1_weight, n1_bias, stats1, act, batch_stats)
    dx, d_expand, _ = product_backward(launch, dz, x, NO_NORM, expand, [need_dx, need_params, False])
    if residual and need_dx:
        dx = dx.add_(dout)
    if not need_params:
        d_norm1 = [x.new_empty(0) for _ in range(2)]
    return dx, d_expand, *d_norm1, d_dw, *d_norm2, *third
