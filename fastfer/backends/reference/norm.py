# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation (Ioffe & Szegedy 2015) followed by an activation, forward and backward, in plain torch.

Backward of y -> z = w·(y - mean)·invstd + b over n values a channel:
dy = w·invstd·(dz - sum(dz)/n - (y - mean)·invstd²·sum(dz·(y - mean))/n); with running statistics the sums drop out.
The batch may be that of several processes together (`fastfer._processes`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastfer import _processes
from fastfer.backends.reference import elementwise
from fastfer.backends.reference._layout import nhwc
from fastfer.signatures.fields import Affine, LeftNorm, RunningNorm
from fastfer.signatures.norm import (
    BatchNorm,
    BatchNormBackward,
    BatchNormGradients,
    BatchNormTrain,
    BatchNormTrained,
)

_DIMS = (0, 2, 3)


def _channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def norm_act(y: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Tensor, act: int) -> Tensor:
    """act((y - mean)·invstd·weight + bias) with ``stats`` as `statistics` gives them; act(y) without a weight."""
    if weight is not None and bias is not None:
        y = (y - _channels(stats[0])) * _channels(stats[1] * weight) + _channels(bias)
    return elementwise.apply(y, act)


def statistics(y: Tensor, mean: Tensor | None, var: Tensor | None, eps: float, batch_stats: bool) -> Tensor:
    """(3, C): mean, 1/sqrt(var + eps), unbiased variance, of ``y`` or the running ones; empty without a norm."""
    if mean is None or var is None:
        return y.new_empty(0)
    if not batch_stats:
        return torch.stack([mean, (var + eps).rsqrt(), var])
    if not y.numel():
        return y.new_zeros((3, y.shape[1]))
    wide, count = y.double(), y.numel() // y.shape[1]
    if not _processes.share():
        batch_mean, biased = wide.mean(_DIMS), wide.var(_DIMS, correction=0)
        return torch.stack([batch_mean, (biased + eps).rsqrt(), biased * count / max(count - 1, 1)]).to(y.dtype)
    sums, values = _processes.over_batch(wide.sum(_DIMS), count)
    squares, _ = _processes.over_batch((wide - _channels(sums / values)).square().sum(_DIMS), count)
    biased = squares / values
    unbiased = squares / torch.as_tensor(values - 1, device=squares.device).clamp(min=1)
    return torch.stack([sums / values, (biased + eps).rsqrt(), unbiased]).to(y.dtype)


def norm_act_backward(
    dz: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Tensor, act: int, batch_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, norm weight and norm bias (empty without norm)."""
    if weight is None or bias is None:
        return (elementwise.backward(dz, y, act) if act else dz), dz.new_empty(0), dz.new_empty(0)
    mean, invstd = _channels(stats[0]), _channels(stats[1])
    xhat = (y - mean) * invstd
    g = elementwise.backward(dz, xhat * _channels(weight) + _channels(bias), act)
    sum_g, sum_gx = g.sum(_DIMS), (g * xhat).sum(_DIMS)
    centred = g
    if batch_stats:
        (all_g, all_gx), count = _processes.over_batch(torch.stack([sum_g, sum_gx]), y.numel() // y.shape[1])
        centred = g - (_channels(all_g) + xhat * _channels(all_gx)) / count
    return centred * invstd * _channels(weight), sum_gx, sum_g


def normalise(y: Tensor, norm: RunningNorm | Affine | None, stats: Tensor, act: int) -> Tensor:
    """act((y - mean)·invstd·weight + bias) with ``stats`` as `norm_statistics` gives them; act(y) without a norm."""
    if norm is not None:
        y = (y - _channels(stats[0])) * _channels(stats[1] * norm.weight) + _channels(norm.bias)
    return elementwise.apply(y, act)


def norm_statistics(y: Tensor, norm: RunningNorm | LeftNorm | None, batch_stats: bool) -> Tensor:
    """(3, C): mean, 1/sqrt(var + eps), unbiased variance, of ``y`` or the running ones; empty without a norm."""
    return y.new_empty(0) if norm is None else statistics(y, norm.mean, norm.var, norm.eps, batch_stats)


def normalise_backward(
    dz: Tensor, y: Tensor, norm: Affine | None, stats: Tensor, act: int, batch_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, norm weight and norm bias (empty without norm)."""
    weight, bias = (None, None) if norm is None else norm
    return norm_act_backward(dz, y, weight, bias, stats, act, batch_stats)


def wanted(flag: bool, *grads: Tensor) -> Iterator[Tensor]:
    """The gradients, empty where they are not asked for."""
    return (grad if flag else grad.new_empty(0) for grad in grads)


def batch_norm_train(a: BatchNormTrain) -> BatchNormTrained:
    """Output and statistics."""
    block = a.block
    stats = norm_statistics(block.x, block.norm, a.batch_stats)
    return BatchNormTrained(nhwc(normalise(block.x, block.norm, stats, block.act)), stats)


def batch_norm(a: BatchNorm) -> Tensor:
    """Output with running statistics."""
    return batch_norm_train(BatchNormTrain(a, False)).out


def batch_norm_backward(a: BatchNormBackward) -> BatchNormGradients:
    """Gradients of x, weight and bias."""
    d_x, d_weight, d_bias = normalise_backward(a.d_out, a.x, a.norm, a.stats, a.act, a.batch_stats)
    return BatchNormGradients(nhwc(d_x) if a.needs.x else a.x.new_empty(0), *wanted(a.needs.params, d_weight, d_bias))
