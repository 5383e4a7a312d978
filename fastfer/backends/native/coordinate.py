# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention and its pooling on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, nhwc


def _like(x: Tensor) -> Tensor:
    return empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3])


def cpsca_pool(x: Tensor) -> tuple[Tensor, ...]:
    """Mean and maximum of each row (N, C, H), mean and maximum of each column (N, C, W), channels adjoining."""
    n, c, h, w = x.shape
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
    return tuple(t.transpose(1, 2) for t in (row_mean, row_max, col_mean, col_max))


def cpsca_pool_backward(
    d_row_mean: Tensor, d_row_max: Tensor, d_col_mean: Tensor, d_col_max: Tensor, x: Tensor
) -> Tensor:
    """Gradient of x."""
    n, c, h, w = x.shape
    dx = _like(x)
    params = _C.LinePoolParams(
        n=n,
        h=h,
        w=w,
        c=c,
        x=nhwc(x),
        d_row_mean=d_row_mean.transpose(1, 2).contiguous(),
        d_row_max=d_row_max.transpose(1, 2).contiguous(),
        d_col_mean=d_col_mean.transpose(1, 2).contiguous(),
        d_col_max=d_col_max.transpose(1, 2).contiguous(),
        dx=dx,
        threads=num_threads(),
    )
    _C.cpsca_pool_bwd(x.dtype == torch.float64, params)
    return dx


def _run(train: bool, batch_stats: bool, *args: Any) -> tuple[Tensor, ...]:
    x, weight, bias, n_weight, n_bias, n_mean, n_var, eps, act, h_weight, h_bias, w_weight, w_bias, kind = args
    (n, c, h, w), middle = x.shape, weight.shape[0]
    out, positions = _like(x), n * (h + w)
    pooled = at = y = gates = stats = out  # not written in inference
    if train:
        pooled, gates = x.new_empty((positions, c)), x.new_empty((positions, c))
        y, stats = x.new_empty((positions, middle)), x.new_empty((3, middle))
        at = torch.empty_like(pooled) if kind else x.new_empty(0)
    norm = _C.NormParams(
        weight=n_weight.contiguous(),
        bias=n_bias.contiguous(),
        mean=n_mean.contiguous(),
        var=n_var.contiguous(),
        eps=eps,
        stats=stats,
    )
    params = _C.CoordinateParams(
        n=n,
        h=h,
        w=w,
        c=c,
        middle=middle,
        kind=kind,
        act=act,
        batch_stats=batch_stats,
        x=nhwc(x),
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        norm=norm,
        h_weight=h_weight.contiguous(),
        h_bias=h_bias.contiguous(),
        w_weight=w_weight.contiguous(),
        w_bias=w_bias.contiguous(),
        out=out,
        pooled=pooled,
        at=at,
        y=y,
        gates=gates,
        threads=num_threads(),
    )
    run = _C.coordinate_attention_train if train else _C.coordinate_attention_fwd
    run(x.dtype == torch.float64, params)
    return out, pooled, at, y, gates, stats


def coordinate_attention(*args: Any) -> Tensor:
    """Output with running statistics; arguments as the op's."""
    return _run(False, False, *args)[0]


def coordinate_attention_train(*args: Any) -> tuple[Tensor, ...]:
    """Output, pooled positions, places of maxima (empty for "ca"), y before the norm, gates, statistics (3, M)."""
    *given, batch_stats = args
    return _run(True, batch_stats, *given)


def coordinate_attention_backward(
    dout: Tensor,
    x: Tensor,
    pooled: Tensor,
    at: Tensor,
    y: Tensor,
    gates: Tensor,
    stats: Tensor,
    weight: Tensor,
    n_weight: Tensor,
    n_bias: Tensor,
    act: int,
    h_weight: Tensor,
    w_weight: Tensor,
    kind: int,
    batch_stats: bool,
    mask: list[bool],
) -> tuple[Tensor, ...]:
    """Gradients of x; weight, bias, the norm's two, h_weight, h_bias, w_weight, w_bias. Not asked for: empty."""
    need_dx, need_params = mask
    (n, c, h, w), middle = x.shape, weight.shape[0]
    weight, h_weight, w_weight = weight.contiguous(), h_weight.contiguous(), w_weight.contiguous()
    dx = _like(x) if need_dx else None

    def wanted(*shape: int) -> Tensor | None:
        return x.new_empty(shape) if need_params else None

    d_weight, d_h_weight, d_w_weight = (
        torch.empty_like(t) if need_params else None for t in (weight, h_weight, w_weight)
    )
    d_bias, d_n_weight, d_n_bias = wanted(middle), wanted(middle), wanted(middle)
    d_h_bias, d_w_bias = wanted(c), wanted(c)
    norm = _C.NormParams(
        weight=n_weight.contiguous(), bias=n_bias.contiguous(), stats=stats, d_weight=d_n_weight, d_bias=d_n_bias
    )
    params = _C.CoordinateParams(
        n=n,
        h=h,
        w=w,
        c=c,
        middle=middle,
        kind=kind,
        act=act,
        batch_stats=batch_stats,
        x=nhwc(x),
        weight=weight,
        norm=norm,
        h_weight=h_weight,
        w_weight=w_weight,
        pooled=pooled,
        at=at if kind else None,
        y=y,
        gates=gates,
        dout=nhwc(dout),
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
    grads = (dx, d_weight, d_bias, d_n_weight, d_n_bias, d_h_weight, d_h_bias, d_w_weight, d_w_bias)
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)
