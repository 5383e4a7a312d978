# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block, forward and backward, in plain torch.

Backward of batch normalisation y -> z = w·(y - mean)·invstd + b over n values a channel (Ioffe and Szegedy 2015):
dy = w·invstd·(dz - sum(dz)/n - (y - mean)·invstd²·sum(dz·(y - mean))/n); with running statistics the sums drop out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.reference import elementwise

_CL = torch.channels_last
_DIMS = (0, 2, 3)


def _channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def _out(y: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=_CL).copy_(y)


def _pad(x: Tensor, padding: list[int]) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom))


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return _out(F.conv2d(_pad(x, padding), weight, bias, stride, groups=x.shape[1]))


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
        _out(dx[:, :, top : height - bottom, left : width - right]) if mask[0] else x.new_empty(0),
        dw.contiguous() if mask[1] else x.new_empty(0),
        dy.sum(_DIMS) if mask[2] else x.new_empty(0),
    )


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution."""
    return _out(F.conv2d(x, weight, bias))


def pointwise_conv2d_backward(dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias."""
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [mask[0], mask[1], False]
    )
    return (
        _out(dx) if mask[0] else x.new_empty(0),
        dw.contiguous() if mask[1] else x.new_empty(0),
        dy.sum(_DIMS) if mask[2] else x.new_empty(0),
    )


def _norm_act(y: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Tensor, act: int) -> Tensor:
    if weight is not None and bias is not None:
        y = (y - _channels(stats[0])) * _channels(stats[1] * weight) + _channels(bias)
    return elementwise.apply(y, act)


def _stats(y: Tensor, mean: Tensor | None, var: Tensor | None, eps: float, batch_stats: bool) -> Tensor:
    if mean is None or var is None:
        return y.new_empty(0)
    if not batch_stats:
        return torch.stack([mean, (var + eps).rsqrt(), var])
    if not y.numel():
        return y.new_zeros((3, y.shape[1]))
    wide = y.double()
    count = y.numel() // y.shape[1]
    batch_mean, biased = wide.mean(_DIMS), wide.var(_DIMS, correction=0)
    return torch.stack([batch_mean, (biased + eps).rsqrt(), biased * count / max(count - 1, 1)]).to(y.dtype)


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
    stats1 = _stats(y1, n1_mean, n1_var, eps1, batch_stats)
    y2 = pointwise_conv2d(_norm_act(y1, n1_weight, n1_bias, stats1, act1), pw, pw_bias)
    stats2 = _stats(y2, n2_mean, n2_var, eps2, batch_stats)
    if n2_weight is None and act2 == 0:
        return y2, y1, y2.new_empty(0), stats1, stats2
    return _out(_norm_act(y2, n2_weight, n2_bias, stats2, act2)), y1, y2, stats1, stats2


def separable_conv2d(*args: object) -> Tensor:
    """Output with running statistics; arguments as `separable_conv2d_train` without ``batch_stats``."""
    return separable_conv2d_train(*args, False)[0]  # type: ignore[arg-type, call-arg]


def _norm_act_backward(
    dz: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Tensor, act: int, batch_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, norm weight and norm bias (empty without norm)."""
    if weight is None or bias is None:
        return (elementwise.activation_backward(dz, y, act) if act else dz), dz.new_empty(0), dz.new_empty(0)
    mean, invstd = _channels(stats[0]), _channels(stats[1])
    xhat = (y - mean) * invstd
    g = elementwise.activation_backward(dz, xhat * _channels(weight) + _channels(bias), act)
    sum_g, sum_gx = g.sum(_DIMS), (g * xhat).sum(_DIMS)
    count = max(y.numel() // y.shape[1], 1)
    centred = g - (_channels(sum_g) + xhat * _channels(sum_gx)) / count if batch_stats else g
    return centred * invstd * _channels(weight), sum_gx, sum_g


def separable_conv2d_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor,
    dw: Tensor, n1_weight: Tensor | None, n1_bias: Tensor | None, stats1: Tensor, act1: int,
    pw: Tensor, n2_weight: Tensor | None, n2_bias: Tensor | None, stats2: Tensor, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; dw, its bias, norm1's two; pw, its bias, norm2's two. Those not asked for are empty."""
    need_dx, need_dw, need_pw = mask
    dy2, d_w2, d_b2 = _norm_act_backward(dout, y2, n2_weight, n2_bias, stats2, act2, batch_stats)
    a1 = _norm_act(y1, n1_weight, n1_bias, stats1, act1)
    da1, d_pw, d_pb = pointwise_conv2d_backward(dy2, a1, pw, [need_dx or need_dw, need_pw, need_pw])
    pw_side = (d_pw, d_pb, d_w2 if need_pw else x.new_empty(0), d_b2 if need_pw else x.new_empty(0))
    if not (need_dx or need_dw):
        return *(x.new_empty(0) for _ in range(5)), *pw_side
    dy1, d_w1, d_b1 = _norm_act_backward(da1, y1, n1_weight, n1_bias, stats1, act1, batch_stats)
    dx, d_dw, d_db = depthwise_conv2d_backward(dy1, x, dw, stride, padding, [need_dx, need_dw, need_dw])
    norm1 = (d_w1, d_b1) if need_dw else (x.new_empty(0), x.new_empty(0))
    return dx, d_dw, d_db, *norm1, *pw_side
