# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with activation on Numba, with the functions of the reference backend.

Inference is one pass over the activations, training two (moments; normalise and activate), backward two (sums; the
gradient). Few channels are taken several pixels at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.numba._numba import nhwc
from fastfer.backends.numba._steps import (
    affine,
    batch_of,
    distinct,
    norm_act,
    norm_backward,
    norm_gradients,
    norm_sums,
    running,
)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, act: int) -> Tensor:
    """act((x - mean) / sqrt(var + eps) · weight + bias) with running statistics."""
    return norm_act(nhwc(x), affine(weight, bias, running(mean, var, eps, x)), act)


def batch_norm_train(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, act: int, batch_stats: bool
) -> tuple[Tensor, Tensor]:
    """Output and statistics (3, C): mean, 1/sqrt(var + eps), unbiased variance."""
    x = nhwc(x)
    stats = batch_of(x, eps) if batch_stats else running(mean, var, eps, x)
    return norm_act(x, affine(weight, bias, stats), act), stats


def batch_norm_backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, act: int, batch_stats: bool, mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias; ``mask`` is [x, parameters], those not asked for are empty."""
    need_dx, need_params = mask
    x, dout, norm = nhwc(x), nhwc(dout), affine(weight, bias, stats)
    dx, d_weight, d_bias, coef = x.new_empty(0), x.new_empty(0), x.new_empty(0), None
    if need_params or batch_stats:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        d_weight, d_bias, coef = norm_gradients(norm_sums(dout, x, norm, act), stats, weight, pixels, batch_stats)
    if need_dx:
        dx = torch.empty_like(x)
        norm_backward(dx, dout, x, norm, coef, act)
    nothing = x.new_empty(0)
    return distinct(dx, d_weight if need_params else nothing, d_bias if need_params else nothing)
