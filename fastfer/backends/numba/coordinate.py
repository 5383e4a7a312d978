# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention and its pooling on Numba: ``_lines`` passes over images, the middle is of ``separable_conv``.

The N·(H + W) pooled positions go through the products and the norm of a pointwise convolution as images of one pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.numba import _lines
from fastfer.backends.numba._numba import image, nhwc
from fastfer.backends.numba._steps import affine, batch, distinct, norm_backward, norm_gradients, running
from fastfer.backends.numba.elementwise import activation
from fastfer.backends.numba.separable_conv import pointwise, pointwise_backward
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
from fastfer.signatures.elementwise import Activation

_SIGMOID = 6


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[2], x.shape[3], x.shape[1]


def _pool(x: Tensor, means: bool, maxima: bool) -> list[Tensor | None]:
    """Row mean, row maximum and its place (N·H, C), the same of columns (N·W, C); None where not asked for."""
    n, c, h, w = x.shape
    wanted = (means, maxima, maxima)
    values = [x.new_empty((n * length, c)) if there else None for length in (h, w) for there in wanted]
    if n:
        _lines.pool(x.dtype, n, 4 * x.numel(), *values, x, *_size(x))
    return values


def _spread(dx: Tensor, *values: Tensor | None) -> Tensor:
    if dx.numel():
        _lines.spread(dx.dtype, dx.shape[0], 4 * dx.numel(), dx, *values, *_size(dx))
    return dx


def cpsca_pool(a: LinePool) -> LinePooled:
    """Mean and maximum of each row, mean and maximum of each column, channels adjoining."""
    n, c, h, w = a.x.shape
    row_mean, row_max, _, col_mean, col_max, _ = (t for t in _pool(nhwc(a.x), True, True) if t is not None)
    lengths = ((row_mean, h), (row_max, h), (col_mean, w), (col_max, w))
    return LinePooled(*(t.view(n, length, c).transpose(1, 2) for t, length in lengths))


def cpsca_pool_backward(a: LinePoolBackward) -> Tensor:
    """Gradient of x."""
    _, _, row_at, _, _, col_at = _pool(nhwc(a.x), False, True)
    row_mean, row_max = (t.transpose(1, 2).contiguous() for t in (a.d_row_mean, a.d_row_max))
    col_mean, col_max = (t.transpose(1, 2).contiguous() for t in (a.d_col_mean, a.d_col_max))
    dx = image(a.x, *a.x.shape[1:])
    return _spread(dx, None, None, None, row_mean, row_max, row_at, col_mean, col_max, col_at)


def coordinate_attention_train(a: CoordinateTrain) -> CoordinateTrained:
    """Output and what backward needs."""
    block, kind, batch_stats, x = a.block, a.block.kind, a.batch_stats, nhwc(a.block.x)
    n_weight, n_bias, n_mean, n_var, eps = block.norm
    n, c, h, w = x.shape
    rows = n * h
    row_mean, row_max, row_at, col_mean, col_max, col_at = _pool(x, kind != 1, kind != 0)
    pooled, at = x.new_empty((rows + n * w, c)), x.new_empty(0)
    for part, mean, most in ((pooled[:rows], row_mean, row_max), (pooled[rows:], col_mean, col_max)):
        if mean is not None and most is not None:
            torch.add(mean, most, out=part)
        else:
            part.copy_(mean if mean is not None else most)  # type: ignore[arg-type]
    if row_at is not None and col_at is not None:
        at = torch.cat([row_at, col_at])
    bias = block.bias * (2 if kind == 2 else 1)
    y, moments, counts = pointwise(pooled[:, :, None, None], block.weight, bias, moments=batch_stats)
    stats = batch(moments, counts, eps, y) if batch_stats else running(n_mean, n_var, eps, x)
    norm = affine(n_weight, n_bias, stats)
    gates = torch.cat(
        [
            pointwise(part, matrix, vector, norm, block.act).y
            for part, matrix, vector in (
                (y[:rows], block.h_weight, block.h_bias),
                (y[rows:], block.w_weight, block.w_bias),
            )
        ]
    )
    gates = activation(Activation(gates.view(pooled.shape), _SIGMOID))
    out = image(x, c, h, w)
    if n:
        _lines.apply_gates(x.dtype, n, 2 * x.numel(), out, x, gates[:rows], gates[rows:], *_size(x))
    return CoordinateTrained(out, pooled, at, y.view(-1, block.weight.shape[0]), gates, stats)


def coordinate_attention(a: Coordinate) -> Tensor:
    """Output with running statistics."""
    return coordinate_attention_train(CoordinateTrain(a, False)).out


def coordinate_attention_backward(a: CoordinateBackward) -> CoordinateGradients:
    """Gradients of x; weight, bias, the norm's two, h_weight, h_bias, w_weight, w_bias."""
    need_dx, need_params = a.needs
    dout, x, kind, at, gates, stats, act = nhwc(a.d_out), nhwc(a.x), a.kind, a.at, a.gates, a.stats, a.act
    n_weight, n_bias = a.norm
    n, c, h, w = x.shape
    rows, positions = n * h, n * (h + w)
    d_logits = torch.empty_like(gates)
    halves = (slice(0, rows), slice(rows, positions))
    if n:
        arrays = *(d_logits[half] for half in halves), x, dout, *(gates[half] for half in halves)
        _lines.gate_gradients(x.dtype, n, 4 * x.numel(), *arrays, *_size(x))
    norm, y = affine(n_weight, n_bias, stats), a.y[:, :, None, None]
    of_h, of_w = (
        pointwise_backward(
            d_logits[half, :, None, None],
            y[half],
            matrix,
            need_input=True,
            need_params=need_params,
            act1=act,
            norm1=norm,
        )
        for half, matrix in zip(halves, (a.h_weight, a.w_weight), strict=True)
    )
    d_n_weight, d_n_bias, coef = norm_gradients(of_h.sums1 + of_w.sums1, stats, n_weight, positions, a.batch_stats)
    dy = torch.cat([of_h.d_y1, of_w.d_y1])
    norm_backward(dy, dy, nhwc(y), norm, coef, 0)
    pooled = pointwise_backward(dy, a.pooled[:, :, None, None], a.weight, need_input=need_dx, need_params=need_params)
    dx = image(x, c, h, w) if need_dx else x.new_empty(0)
    if need_dx:
        d_rows, d_cols = pooled.d_y1[:rows], pooled.d_y1[rows:]
        row_at, col_at = (at[:rows], at[rows:]) if kind else (None, None)
        mean, most = kind != 1, kind != 0
        _spread(
            dx,
            dout,
            *(gates[half] for half in halves),
            d_rows if mean else None,
            d_rows if most else None,
            row_at,
            d_cols if mean else None,
            d_cols if most else None,
            col_at,
        )
    if not need_params:
        return CoordinateGradients(dx, *(x.new_empty(0) for _ in range(8)))
    d_bias = pooled.d_bias * 2 if kind == 2 else pooled.d_bias
    of_sides = of_h.d_weight, of_h.d_bias, of_w.d_weight, of_w.d_bias
    return CoordinateGradients(*distinct(dx, pooled.d_weight, d_bias, d_n_weight, d_n_bias, *of_sides))
