# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block, forward and backward, in plain torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.backends.reference import _linked
from fastfer.backends.reference.norm import nhwc, norm_act, norm_act_backward, statistics

_DIMS = (0, 2, 3)


def _pad(x: Tensor, padding: list[int]) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom))


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return nhwc(F.conv2d(_pad(x, padding), weight, bias, stride, groups=x.shape[1]))


def depthwise_conv2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias."""
    top, left, bottom, right = padding
    padded = _pad(x, padding)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, padded, weight, None, stride, [0, 0], [1, 1], False, [0, 0], x.shape[1], [mask[0], mask[1], False]
    )
    height, width = padded.shape[2], padded.shape[3]
    return (
        nhwc(dx[:, :, top : height - bottom, left : width - right]) if mask[0] else x.new_empty(0),
        dw.contiguous() if mask[1] else x.new_empty(0),
        dy.sum(_DIMS) if mask[2] else x.new_empty(0),
    )


def depthwise_norm_train(
    x: Tensor, weight: Tensor, bias: Tensor | None, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor,
    eps: float, act: int, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """act(norm(y)), the depthwise output y, and statistics (3, C): mean, 1/sqrt(var + eps), unbiased variance."""
    y = depthwise_conv2d(x, weight, bias, stride, padding)
    stats = statistics(y, n_mean, n_var, eps, batch_stats)
    return nhwc(norm_act(y, n_weight, n_bias, stats, act)), y, stats


def depthwise_norm(*args: object) -> Tensor:
    """act(norm(y)) with running statistics; arguments as `depthwise_norm_train` without ``batch_stats``."""
    return depthwise_norm_train(*args, False)[0]  # type: ignore[arg-type, call-arg]


def depthwise_norm_backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, stats: Tensor, act: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; weight, bias and norm's two; ``mask`` is [x, the others], those not asked for are empty."""
    dy, d_weight, d_bias = norm_act_backward(dout, y, n_weight, n_bias, stats, act, batch_stats)
    dx, dw, db = depthwise_conv2d_backward(dy, x, weight, stride, padding, [mask[0], mask[1], mask[1]])
    nothing = x.new_empty(0), x.new_empty(0)
    return dx, dw, db, *((d_weight, d_bias) if mask[1] else nothing)


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution."""
    return nhwc(F.conv2d(x, weight, bias))


def pointwise_conv2d_backward(dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias."""
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [mask[0], mask[1], False]
    )
    return (
        nhwc(dx) if mask[0] else x.new_empty(0),
        dw.contiguous() if mask[1] else x.new_empty(0),
        dy.sum(_DIMS) if mask[2] else x.new_empty(0),
    )


def recomputes(
    dw_bias: Tensor | None, n1_weight: Tensor | None, act1: int, channels: int, height: int, width: int
) -> bool:
    """Whether training keeps no y1: nothing follows the depthwise convolution, and backward computes it again.

    ``height`` and ``width`` are y1's. Above 256 channels a band of rows and the pointwise weights no longer share an
    L2, and images below 8×8 are too few rows for a product: there keeping y1 is faster.
    """
    return dw_bias is None and n1_weight is None and act1 == 0 and channels <= 256 and height * width >= 64


def separable_conv2d_train(
    x: Tensor, dw: Tensor, dw_bias: Tensor | None,
    n1_weight: Tensor | None, n1_bias: Tensor | None, n1_mean: Tensor | None, n1_var: Tensor | None,
    eps1: float, act1: int,
    pw: Tensor, pw_bias: Tensor | None,
    n2_weight: Tensor | None, n2_bias: Tensor | None, n2_mean: Tensor | None, n2_var: Tensor | None,
    eps2: float, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, y1, y2, statistics (3, C) and (3, O): mean, 1/sqrt(var + eps), unbiased variance."""
    y1 = depthwise_conv2d(x, dw, dw_bias, stride, padding)
    stats1 = statistics(y1, n1_mean, n1_var, eps1, batch_stats)
    y2 = pointwise_conv2d(norm_act(y1, n1_weight, n1_bias, stats1, act1), pw, pw_bias)
    stats2 = statistics(y2, n2_mean, n2_var, eps2, batch_stats)
    if recomputes(dw_bias, n1_weight, act1, *y1.shape[1:]):
        y1 = x.new_empty(0)
    if n2_weight is None and act2 == 0:
        return y2, y1, y2.new_empty(0), stats1, stats2
    return nhwc(norm_act(y2, n2_weight, n2_bias, stats2, act2)), y1, y2, stats1, stats2


def separable_conv2d(*args: object) -> Tensor:
    """Output with running statistics; arguments as `separable_conv2d_train` without ``batch_stats``."""
    return separable_conv2d_train(*args, False)[0]  # type: ignore[arg-type, call-arg]


def separable_conv2d_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor,
    dw: Tensor, n1_weight: Tensor | None, n1_bias: Tensor | None, stats1: Tensor, act1: int,
    pw: Tensor, n2_weight: Tensor | None, n2_bias: Tensor | None, stats2: Tensor, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; dw, its bias, norm1's two; pw, its bias, norm2's two. Those not asked for are empty."""
    need_dx, need_dw, need_pw = mask
    y1 = y1 if y1.dim() == 4 else depthwise_conv2d(x, dw, None, stride, padding)
    dy2, d_w2, d_b2 = norm_act_backward(dout, y2, n2_weight, n2_bias, stats2, act2, batch_stats)
    a1 = norm_act(y1, n1_weight, n1_bias, stats1, act1)
    da1, d_pw, d_pb = pointwise_conv2d_backward(dy2, a1, pw, [need_dx or need_dw, need_pw, need_pw])
    pw_side = (d_pw, d_pb, d_w2 if need_pw else x.new_empty(0), d_b2 if need_pw else x.new_empty(0))
    if not (need_dx or need_dw):
        return *(x.new_empty(0) for _ in range(5)), *pw_side
    dy1, d_w1, d_b1 = norm_act_backward(da1, y1, n1_weight, n1_bias, stats1, act1, batch_stats)
    dx, d_dw, d_db = depthwise_conv2d_backward(dy1, x, dw, stride, padding, [need_dx, need_dw, need_dw])
    norm1 = (d_w1, d_b1) if need_dw else (x.new_empty(0), x.new_empty(0))
    return dx, d_dw, d_db, *norm1, *pw_side


separable_conv2d_linked = partial(_linked.separable_conv2d_linked, separable_conv2d_train)
separable_conv2d_linked_backward = partial(_linked.separable_conv2d_linked_backward, separable_conv2d_backward)
depthwise_norm_linked = partial(_linked.depthwise_norm_linked, depthwise_norm_train)
depthwise_norm_linked_backward = partial(_linked.depthwise_norm_linked_backward, depthwise_norm_backward)
