# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention (Hou et al. 2021) and its complementary pooling (improved MobileNetV3, section 3.2).

Positions are flat: the N·H rows of all images, then their N·W columns, C values each: (N·(H + W), C). A maximum's
gradient goes to one element, the first, as that of ``torch.max(x, dim)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference.norm import norm_act, norm_act_backward, statistics
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

KINDS = ("ca", "maxca", "cpsca")
"""Pooling by mean, by maximum, and by both; the index is the code that kernels receive."""

_CL = torch.channels_last


def _flat(rows: Tensor, cols: Tensor) -> Tensor:
    """(N, C, H) and (N, C, W) as positions."""
    return torch.cat([rows.transpose(1, 2).flatten(0, 1), cols.transpose(1, 2).flatten(0, 1)])


def _split(positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Positions as (N, C, H, 1) and (N, C, 1, W)."""
    n, c, h, w = x.shape
    rows, cols = positions[: n * h].view(n, h, 1, c), positions[n * h :].view(n, 1, w, c)
    return rows.permute(0, 3, 1, 2), cols.permute(0, 3, 1, 2)


def _last(v: Tensor) -> Tensor:
    """(N, C, L), its channels adjoining."""
    return v.transpose(1, 2).contiguous().transpose(1, 2)


def cpsca_pool(a: LinePool) -> LinePooled:
    """Mean and maximum of each row, mean and maximum of each column."""
    x = a.x
    return LinePooled(_last(x.mean(3)), _last(x.max(3).values), _last(x.mean(2)), _last(x.max(2).values))


def _pool_backward(rows: Tensor, cols: Tensor, row_at: Tensor, col_at: Tensor, kind: int) -> Tensor:
    """Gradient of x from those of its rows (N, C, H, 1) and columns (N, C, 1, W), by ``kind``'s pooling."""
    height, width = rows.shape[2], cols.shape[3]
    dx = rows / width + cols / height if kind != 1 else (rows + cols).zero_()
    if kind != 0:
        dx.scatter_add_(3, row_at, rows).scatter_add_(2, col_at, cols)
    return dx


def cpsca_pool_backward(a: LinePoolBackward) -> Tensor:
    """Gradient of x."""
    x = a.x
    row_at, col_at = x.max(3, keepdim=True).indices, x.max(2, keepdim=True).indices
    dx = _pool_backward(a.d_row_mean[:, :, :, None], a.d_col_mean[:, :, None], row_at, col_at, 0)
    dx += _pool_backward(a.d_row_max[:, :, :, None], a.d_col_max[:, :, None], row_at, col_at, 1)
    return torch.empty_like(x, memory_format=_CL).copy_(dx)


def coordinate_attention_train(a: CoordinateTrain) -> CoordinateTrained:
    """Output and what backward needs.

    "cpsca" sends [row mean; column max] and [row max; column mean] through the convolution and adds them: as that is
    linear, here the two are added first, and the bias counts twice.
    """
    block, norm, kind, x = a.block, a.block.norm, a.block.kind, a.block.x
    pooled, at = x.new_zeros(()), x.new_empty(0)
    if kind != 1:
        pooled = pooled + _flat(x.mean(3), x.mean(2))
    if kind != 0:
        rows, cols = x.max(3), x.max(2)
        pooled, at = pooled + _flat(rows.values, cols.values), _flat(rows.indices, cols.indices).to(x.dtype)
    y = torch.addmm(block.bias * (2 if kind == 2 else 1), pooled, block.weight.flatten(1).t())
    stats = statistics(y[:, :, None, None], norm.mean, norm.var, norm.eps, a.batch_stats)
    z = norm_act(y[:, :, None, None], norm.weight, norm.bias, stats, block.act)[:, :, 0, 0]
    split = x.shape[0] * x.shape[2]
    logits = [
        torch.addmm(block.h_bias, z[:split], block.h_weight.flatten(1).t()),
        torch.addmm(block.w_bias, z[split:], block.w_weight.flatten(1).t()),
    ]
    gates = torch.cat(logits).sigmoid_()
    g_h, g_w = _split(gates, x)
    return CoordinateTrained(nhwc(x * g_h * g_w), pooled, at, y, gates, stats)


def coordinate_attention(a: Coordinate) -> Tensor:
    """Output with running statistics."""
    return coordinate_attention_train(CoordinateTrain(a, False)).out


def coordinate_attention_backward(a: CoordinateBackward) -> CoordinateGradients:
    """Gradients of x; weight, bias, the norm's two, h_weight, h_bias, w_weight, w_bias."""
    x, kind, y, stats, gates = a.x, a.kind, a.y, a.stats, a.gates
    n_weight, n_bias = a.norm
    h_weight, w_weight = a.h_weight, a.w_weight
    rows, product = x.shape[0] * x.shape[2], a.d_out * x
    g_h, g_w = _split(gates, x)
    d_logits = _flat((product * g_w).sum(3), (product * g_h).sum(2)) * gates * (1 - gates)
    z = norm_act(y[:, :, None, None], n_weight, n_bias, stats, a.act)[:, :, 0, 0]
    dz = torch.cat([d_logits[:rows] @ h_weight.flatten(1), d_logits[rows:] @ w_weight.flatten(1)])
    dy, d_n_weight, d_n_bias = norm_act_backward(
        dz[:, :, None, None], y[:, :, None, None], n_weight, n_bias, stats, a.act, a.batch_stats
    )
    dy = dy[:, :, 0, 0]
    dx = x.new_empty(0)
    if a.needs.x:
        d_rows, d_cols = _split(dy @ a.weight.flatten(1), x)
        row_at, col_at = _split(a.at.long(), x) if kind else (a.at, a.at)
        pooling = _pool_backward(d_rows, d_cols, row_at, col_at, 0 if kind != 1 else 1)
        if kind == 2:
            pooling += _pool_backward(d_rows, d_cols, row_at, col_at, 1)
        dx = torch.empty_like(x, memory_format=_CL).copy_(a.d_out * g_h * g_w + pooling)
    if not a.needs.params:
        return CoordinateGradients(dx, *(x.new_empty(0) for _ in range(8)))
    return CoordinateGradients(
        d_x=dx,
        d_weight=(dy.t() @ a.pooled).view(a.weight.shape),
        d_bias=dy.sum(0) * (2 if kind == 2 else 1),
        d_norm_weight=d_n_weight,
        d_norm_bias=d_n_bias,
        d_h_weight=(d_logits[:rows].t() @ z[:rows]).view(h_weight.shape),
        d_h_bias=d_logits[:rows].sum(0),
        d_w_weight=(d_logits[rows:].t() @ z[rows:]).view(w_weight.shape),
        d_w_bias=d_logits[rows:].sum(0),
    )
