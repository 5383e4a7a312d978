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


def cpsca_pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and maximum of each row (N, C, H), mean and maximum of each column (N, C, W)."""
    return _last(x.mean(3)), _last(x.max(3).values), _last(x.mean(2)), _last(x.max(2).values)


def _pool_backward(rows: Tensor, cols: Tensor, row_at: Tensor, col_at: Tensor, kind: int) -> Tensor:
    """Gradient of x from those of its rows (N, C, H, 1) and columns (N, C, 1, W), by ``kind``'s pooling."""
    height, width = rows.shape[2], cols.shape[3]
    dx = rows / width + cols / height if kind != 1 else (rows + cols).zero_()
    if kind != 0:
        dx.scatter_add_(3, row_at, rows).scatter_add_(2, col_at, cols)
    return dx


def cpsca_pool_backward(
    d_row_mean: Tensor, d_row_max: Tensor, d_col_mean: Tensor, d_col_max: Tensor, x: Tensor
) -> Tensor:
    """Gradient of x."""
    row_at, col_at = x.max(3, keepdim=True).indices, x.max(2, keepdim=True).indices
    dx = _pool_backward(d_row_mean[:, :, :, None], d_col_mean[:, :, None], row_at, col_at, 0)
    dx += _pool_backward(d_row_max[:, :, :, None], d_col_max[:, :, None], row_at, col_at, 1)
    return torch.empty_like(x, memory_format=_CL).copy_(dx)


def coordinate_attention_train(
    x: Tensor, weight: Tensor, bias: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float, act: int,
    h_weight: Tensor, h_bias: Tensor, w_weight: Tensor, w_bias: Tensor, kind: int, batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x · g_h · g_w, g = sigmoid(w · act(norm(weight · pooled + bias)) + b) for rows and for columns.

    "cpsca" sends [row mean; column max] and [row max; column mean] through the convolution and adds them: as that is
    linear, here the two are added first, and the bias counts twice. Returns the output, the pooled positions, where
    along its row or column each maximum lies (empty for "ca"), the convolution y before the norm, the gates, all by
    position, and the statistics (3, M).
    """
    pooled, at = x.new_zeros(()), x.new_empty(0)
    if kind != 1:
        pooled = pooled + _flat(x.mean(3), x.mean(2))
    if kind != 0:
        rows, cols = x.max(3), x.max(2)
        pooled, at = pooled + _flat(rows.values, cols.values), _flat(rows.indices, cols.indices).to(x.dtype)
    y = torch.addmm(bias * (2 if kind == 2 else 1), pooled, weight.flatten(1).t())
    stats = statistics(y[:, :, None, None], n_mean, n_var, eps, batch_stats)
    z, split = norm_act(y[:, :, None, None], n_weight, n_bias, stats, act)[:, :, 0, 0], x.shape[0] * x.shape[2]
    logits = [
        torch.addmm(h_bias, z[:split], h_weight.flatten(1).t()),
        torch.addmm(w_bias, z[split:], w_weight.flatten(1).t()),
    ]
    gates = torch.cat(logits).sigmoid_()
    g_h, g_w = _split(gates, x)
    return nhwc(x * g_h * g_w), pooled, at, y, gates, stats


def coordinate_attention(*args: object) -> Tensor:
    """Output with running statistics; arguments as `coordinate_attention_train` without ``batch_stats``."""
    return coordinate_attention_train(*args, False)[0]  # type: ignore[arg-type, call-arg]


def coordinate_attention_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, at: Tensor, y: Tensor, gates: Tensor, stats: Tensor,
    weight: Tensor, n_weight: Tensor, n_bias: Tensor, act: int, h_weight: Tensor, w_weight: Tensor,
    kind: int, batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; weight, bias, the norm's two, h_weight, h_bias, w_weight, w_bias. Not asked for: empty."""
    need_dx, need_params = mask
    rows, product = x.shape[0] * x.shape[2], dout * x
    g_h, g_w = _split(gates, x)
    d_logits = _flat((product * g_w).sum(3), (product * g_h).sum(2)) * gates * (1 - gates)
    z = norm_act(y[:, :, None, None], n_weight, n_bias, stats, act)[:, :, 0, 0]
    dz = torch.cat([d_logits[:rows] @ h_weight.flatten(1), d_logits[rows:] @ w_weight.flatten(1)])
    dy, d_n_weight, d_n_bias = norm_act_backward(
        dz[:, :, None, None], y[:, :, None, None], n_weight, n_bias, stats, act, batch_stats
    )
    dy = dy[:, :, 0, 0]
    dx = x.new_empty(0)
    if need_dx:
        d_rows, d_cols = _split(dy @ weight.flatten(1), x)
        row_at, col_at = _split(at.long(), x) if kind else (at, at)
        pooling = _pool_backward(d_rows, d_cols, row_at, col_at, 0 if kind != 1 else 1)
        if kind == 2:
            pooling += _pool_backward(d_rows, d_cols, row_at, col_at, 1)
        dx = torch.empty_like(x, memory_format=_CL).copy_(dout * g_h * g_w + pooling)
    if not need_params:
        return dx, *(x.new_empty(0) for _ in range(8))
    return (
        dx,
        (dy.t() @ pooled).view(weight.shape),
        dy.sum(0) * (2 if kind == 2 else 1),
        d_n_weight,
        d_n_bias,
        (d_logits[:rows].t() @ z[:rows]).view(h_weight.shape),
        d_logits[:rows].sum(0),
        (d_logits[rows:].t() @ z[rows:]).view(w_weight.shape),
        d_logits[rows:].sum(0),
    )
