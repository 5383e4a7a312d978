# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck, forward and backward, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.reference.norm import nhwc, norm_act, norm_act_backward, statistics
from fastfer.backends.reference.separable_conv import (
    depthwise_conv2d,
    depthwise_conv2d_backward,
    pointwise_conv2d,
    pointwise_conv2d_backward,
)


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


def inverted_bottleneck_train(
    x: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, n1_mean: Tensor, n1_var: Tensor, eps1: float,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, n2_mean: Tensor, n2_var: Tensor, eps2: float,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, n3_mean: Tensor | None,
    n3_var: Tensor | None, eps3: float,
    act: int, residual: bool, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, y1 (depthwise), y2 (projection), `kept_covariance`, and the norms' statistics (3, channels) each.

    Statistics are mean, 1/sqrt(var + eps), unbiased variance. y2 and its statistics are empty without a projection,
    the covariance without batch statistics and on a GPU.
    """
    z = pointwise_conv2d(x, expand, None)
    stats1 = statistics(z, n1_mean, n1_var, eps1, batch_stats)
    crossed = kept_covariance(x, expand, batch_stats)
    y1 = depthwise_conv2d(norm_act(z, n1_weight, n1_bias, stats1, act), dw, None, stride, padding)
    stats2 = statistics(y1, n2_mean, n2_var, eps2, batch_stats)
    a2 = norm_act(y1, n2_weight, n2_bias, stats2, act)
    if project is None:
        return nhwc(a2), y1, x.new_empty(0), crossed, stats1, stats2, x.new_empty(0)
    y2 = pointwise_conv2d(a2, project, None)
    stats3 = statistics(y2, n3_mean, n3_var, eps3, batch_stats)
    out = norm_act(y2, n3_weight, n3_bias, stats3, 0)
    return nhwc(out + x if residual else out), y1, y2, crossed, stats1, stats2, stats3


def inverted_bottleneck(*args: object) -> Tensor:
    """Output with running statistics; arguments as `inverted_bottleneck_train` without ``batch_stats``."""
    return inverted_bottleneck_train(*args, False)[0]  # type: ignore[arg-type, call-arg]


def inverted_bottleneck_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor, covariance: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, stats1: Tensor,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, stats2: Tensor,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, stats3: Tensor,
    act: int, residual: bool, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; expand, norm1's two; dw, norm2's two; project, norm3's two. Those not asked for are empty."""
    need_dx, need_params = mask
    da2, third = dout, tuple(x.new_empty(0) for _ in range(3))
    if project is not None:
        dy2, d_w3, d_b3 = norm_act_backward(dout, y2, n3_weight, n3_bias, stats3, 0, batch_stats)
        a2 = norm_act(y1, n2_weight, n2_bias, stats2, act)
        da2, d_project, _ = pointwise_conv2d_backward(dy2, a2, project, [True, need_params, False])
        third = (d_project, d_w3, d_b3)
    z = pointwise_conv2d(x, expand, None)
    a1 = norm_act(z, n1_weight, n1_bias, stats1, act)
    dy1, d_w2, d_b2 = norm_act_backward(da2, y1, n2_weight, n2_bias, stats2, act, batch_stats)
    da1, d_dw, _ = depthwise_conv2d_backward(dy1, a1, dw, stride, padding, [True, need_params, False])
    dz, d_w1, d_b1 = norm_act_backward(da1, z, n1_weight, n1_bias, stats1, act, batch_stats)
    dx, d_expand, _ = pointwise_conv2d_backward(dz, x, expand, [need_dx, need_params, False])
    if residual and need_dx:
        dx = nhwc(dx + dout)
    params = (d_expand, d_w1, d_b1, d_dw, d_w2, d_b2, *third)
    return dx, *(params if need_params else (x.new_empty(0) for _ in range(9)))
