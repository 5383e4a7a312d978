# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention and its pooling on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, nhwc
from fastfer.backends.native.norms import NormGradients, backward_norm, forward_norm
from fastfer.signatures.coordinate import (
    Coordinate,
    CoordinateBackward,
    CoordinateGradients,
    CoordinateTrain,
    CoordinateTrained,
    LinePool,
    LinePoolBackward,
    LinePooled,
)


def _like(x: Tensor) -> Tensor:
    return empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3])


def cpsca_pool(a: LinePool) -> LinePooled:
    """Mean and maximum of each row, mean and maximum of each column, channels adjoining."""
    x, (n, c, h, w) = a.x, a.x.shape
    row_mean, row_max, col_mean, col_max = (x.new_empty((n, length, c)) for length in (h, h, w, w))
    params = _C.LinePoolParams(
        n=n,
        h=h,
        w=w,
        c=c,
        x=nhwc(x),
        row_mean=row_mean,
        row_max=row_max,
        col_mean=col_mean,
        col_max=col_max,
        threads=num_threads(),
    )
    _C.cpsca_pool_fwd(x.dtype == torch.float64, params)
    return LinePooled(*(t.transpose(1, 2) for t in (row_mean, row_max, col_mean, col_max)))


def cpsca_pool_backward(a: LinePoolBackward) -> Tensor:
    """Gradient of x."""
    x, (n, c, h, w) = a.x, a.x.shape
    dx = _like(x)
    params = _C.LinePoolParams(
        n=n,
        h=h,
        w=w,
        c=c,
        x=nhwc(x),
        d_row_mean=a.d_row_mean.transpose(1, 2).contiguous(),
        d_row_max=a.d_row_max.transpose(1, 2).contiguous(),
        d_col_mean=a.d_col_mean.transpose(1, 2).contiguous(),
        d_col_max=a.d_col_max.transpose(1, 2).contiguous(),
        dx=dx,
        threads=num_threads(),
    )
    _C.cpsca_pool_bwd(x.dtype == torch.float64, params)
    return dx


def _forward(a: Coordinate, train: bool, batch_stats: bool) -> CoordinateTrained:
    x, (n, c, h, w), middle = a.x, a.x.shape, a.weight.shape[0]
    out, positions = _like(x), n * (h + w)
    pooled = at = y = gates = stats = out  # not written in inference
    if train:
        pooled, gates = x.new_empty((positions, c)), x.new_empty((positions, c))
        y, stats = x.new_empty((positions, middle)), x.new_empty((3, middle))
        at = torch.empty_like(pooled) if a.kind else x.new_empty(0)
    params = _C.CoordinateParams(
        n=n,
        h=h,
        w=w,
        c=c,
        middle=middle,
        kind=a.kind,
        act=a.act,
        batch_stats=batch_stats,
        x=nhwc(x),
        weight=a.weight.contiguous(),
        bias=a.bias.contiguous(),
        norm=forward_norm(a.norm, stats),
        h_weight=a.h_weight.contiguous(),
        h_bias=a.h_bias.contiguous(),
        w_weight=a.w_weight.contiguous(),
        w_bias=a.w_bias.contiguous(),
        out=out,
        pooled=pooled,
        at=at,
        y=y,
        gates=gates,
        threads=num_threads(),
    )
    run = _C.coordinate_attention_train if train else _C.coordinate_attention_fwd
    run(x.dtype == torch.float64, params)
    return CoordinateTrained(out, pooled, at, y, gates, stats)


def coordinate_attention(a: Coordinate) -> Tensor:
    """Output with running statistics."""
    return _forward(a, False, False).out


def coordinate_attention_train(a: CoordinateTrain) -> CoordinateTrained:
    """Output and what backward needs."""
    return _forward(a.block, True, a.batch_stats)


def coordinate_attention_backward(a: CoordinateBackward) -> CoordinateGradients:
    """Gradients of x; weight, bias, the norm's two, h_weight, h_bias, w_weight, w_bias."""
    x, (n, c, h, w), middle = a.x, a.x.shape, a.weight.shape[0]
    weight, h_weight, w_weight = a.weight.contiguous(), a.h_weight.contiguous(), a.w_weight.contiguous()
    dx = _like(x) if a.needs.x else None

    def wanted(*shape: int) -> Tensor | None:
        return x.new_empty(shape) if a.needs.params else None

    d_weight, d_h_weight, d_w_weight = (
        torch.empty_like(t) if a.needs.params else None for t in (weight, h_weight, w_weight)
    )
    d_bias, d_norm = wanted(middle), NormGradients(wanted(middle), wanted(middle))
    d_h_bias, d_w_bias = wanted(c), wanted(c)
    params = _C.CoordinateParams(
        n=n,
        h=h,
        w=w,
        c=c,
        middle=middle,
        kind=a.kind,
        act=a.act,
        batch_stats=a.batch_stats,
        x=nhwc(x),
        weight=weight,
        norm=backward_norm(a.norm, a.stats, d_norm),
        h_weight=h_weight,
        w_weight=w_weight,
        pooled=a.pooled,
        at=a.at if a.kind else None,
        y=a.y,
        gates=a.gates,
        dout=nhwc(a.d_out),
        dx=dx,
        d_weight=d_weight,
        d_bias=d_bias,
        d_h_weight=d_h_weight,
        d_h_bias=d_h_bias,
        d_w_weight=d_w_weight,
        d_w_bias=d_w_bias,
        threads=num_threads(),
    )
    _C.coordinate_attention_bwd(x.dtype == torch.float64, params)
    grads = (dx, d_weight, d_bias, *d_norm, d_h_weight, d_h_bias, d_w_weight, d_w_bias)
    return CoordinateGradients(*(x.new_empty(0) if grad is None else grad for grad in grads))
