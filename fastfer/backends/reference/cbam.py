# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention: a channel gate, then a spatial gate (CBAM, Woo et al. 2018; FGW-FER eq. 6-10).

    g = sigmoid(mlp(mean_hw x) + mlp(max_hw x)), mlp(v) = w2 · relu(w1 · v + b1) + b2       (eq. 6-8; b2 counts twice)
    s = sigmoid(norm(conv([max_c u; mean_c u]))), u = x · g, the convolution K×K, 2 -> 1, "same", no bias   (eq. 9-10)
    out = u · s

Equation 9 of FGW-FER writes an MLP; its parameter count and CBAM itself have the convolution and the norm. A maximum's
gradient goes to one element: over pixels the first of equal ones, over channels too.
Kept by training: pooled (3, N, C): mean, maximum, g; positions (N, C) int32: the maximum's pixel; planes (3, N, H, W):
max_c u, mean_c u, the convolution; channels (N, H, W) int32: the channel of max_c u; stats (3, 1): mean,
1/sqrt(var + eps), unbiased variance of the convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfer import _processes
from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference.norm import statistics
from fastfer.backends.reference.pool import global_avg_max_pool


def _gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """pooled (3, N, C) and positions (N, C)."""
    avg, largest, positions = global_avg_max_pool(x)

    def mlp(v: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(v, w1, b1)), w2, b2)

    return torch.stack([avg, largest, torch.sigmoid(mlp(avg) + mlp(largest))]), positions


def _planes(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """planes (3, N, H, W) and channels (N, H, W)."""
    largest, channels = u.max(1)
    pooled = torch.stack([largest, u.mean(1)], 1)
    y = F.conv2d(pooled, weight, padding=weight.shape[-1] // 2)
    return torch.stack([*pooled.unbind(1), y[:, 0]]), channels.int()


def _spatial(y: Tensor, n_weight: Tensor, n_bias: Tensor, stats: Tensor) -> Tensor:
    """s (N, H, W)."""
    return torch.sigmoid((y - stats[0]) * (stats[1] * n_weight) + n_bias)


def channel_gate_train(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x · g, pooled, positions: x (N, C, H, W), w1 (H, C), b1 (H,), w2 (C, H), b2 (C,), H hidden units."""
    pooled, positions = _gate(x, w1, b1, w2, b2)
    return nhwc(x * pooled[2, :, :, None, None]), pooled, positions


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x · g: shapes as `channel_gate_train`."""
    return channel_gate_train(x, w1, b1, w2, b2)[0]


def spatial_gate_train(
    x: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float,
    batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x · s, planes, channels, stats: x (N, C, H, W), weight (1, 2, K, K), K odd, norm tensors (1,).

    ``batch_stats`` normalises with the statistics of the batch, else n_mean and n_var are constants.
    """
    planes, channels = _planes(x, weight)
    stats = statistics(planes[2][:, None], n_mean, n_var, eps, batch_stats)
    return nhwc(x * _spatial(planes[2], n_weight, n_bias, stats)[:, None]), planes, channels, stats


def spatial_gate(
    x: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float
) -> Tensor:
    """x · s with running statistics."""
    return spatial_gate_train(x, weight, n_weight, n_bias, n_mean, n_var, eps, False)[0]


def cbam_train(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float, batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """out, pooled, positions, planes, channels, stats; shapes as in the two gates."""
    u, *gate = channel_gate_train(x, w1, b1, w2, b2)
    out, *spatial = spatial_gate_train(u, weight, n_weight, n_bias, n_mean, n_var, eps, batch_stats)
    return out, *gate, *spatial


def cbam(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """out with running statistics."""
    return cbam_train(x, w1, b1, w2, b2, weight, n_weight, n_bias, n_mean, n_var, eps, False)[0]


def _keep(mask: list[bool], sizes: tuple[int, ...], grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients whose group of ``sizes`` is in ``mask``; the others empty."""
    wanted = [flag for flag, size in zip(mask, sizes, strict=True) for _ in range(size)]
    return tuple(g if flag else g.new_empty(0) for flag, g in zip(wanted, grads, strict=True))


def channel_gate_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x; w1, b1, w2, b2. ``mask``: of x, of the parameters; those not asked for are empty."""
    avg, largest, gate = pooled
    dz = (dout * x).sum((2, 3)) * gate * (1 - gate)
    hidden = [F.linear(v, w1, b1) for v in (avg, largest)]
    dh = dz @ w2
    d_avg, d_max = (torch.where(h <= 0, torch.zeros_like(dh), dh) for h in hidden)
    pixels = x.shape[2] * x.shape[3]
    dx = dout * gate[:, :, None, None] + (d_avg @ w1 / pixels)[:, :, None, None]
    dx = dx.flatten(2).scatter_add(2, positions.long()[:, :, None], (d_max @ w1)[:, :, None]).view(x.shape)
    d_w1, d_b1 = d_avg.T @ avg + d_max.T @ largest, (d_avg + d_max).sum(0)
    d_w2, d_b2 = dz.T @ (F.relu(hidden[0]) + F.relu(hidden[1])), 2 * dz.sum(0)
    return _keep(mask, (1, 4), (nhwc(dx), d_w1, d_b1, d_w2, d_b2))


def spatial_gate_backward(
    dout: Tensor, x: Tensor, planes: Tensor, channels: Tensor, stats: Tensor, weight: Tensor, n_weight: Tensor,
    n_bias: Tensor, batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; weight, norm weight, norm bias. ``mask``: of x, of the parameters; others are empty."""
    y = planes[2]
    s, xhat = _spatial(y, n_weight, n_bias, stats), (y - stats[0]) * stats[1]
    t = (dout * x).sum(1) * s * (1 - s)
    d_nw, d_nb = (t * xhat).sum().view(1), t.sum().view(1)
    centred = t
    if batch_stats:
        (all_b, all_w), count = _processes.over_batch(torch.cat([d_nb, d_nw]), y.numel())
        centred = t - (all_b + xhat * all_w) / count
    dy = (centred * (stats[1] * n_weight))[:, None]
    d_planes, d_weight, _ = torch.ops.aten.convolution_backward(
        dy, planes[:2].transpose(0, 1), weight, None, [1, 1], [weight.shape[-1] // 2] * 2, [1, 1], False, [0, 0], 1,
        [True, True, False],
    )  # fmt: skip
    dx = dout * s[:, None] + d_planes[:, 1:] / x.shape[1]
    dx = dx.scatter_add(1, channels.long()[:, None], d_planes[:, :1])
    return _keep(mask, (1, 3), (nhwc(dx), d_weight.contiguous(), d_nw, d_nb))


def cbam_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, positions: Tensor, planes: Tensor, channels: Tensor, stats: Tensor,
    w1: Tensor, b1: Tensor, w2: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor,
    batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2; weight, norm weight, norm bias. ``mask``: of x and of the two groups."""
    need_dx, need_mlp, need_spatial = mask
    u = x * pooled[2, :, :, None, None]
    du, *d_spatial = spatial_gate_backward(
        dout, u, planes, channels, stats, weight, n_weight, n_bias, batch_stats, [True, need_spatial]
    )
    return *channel_gate_backward(du, x, pooled, positions, w1, b1, w2, [need_dx, need_mlp]), *d_spatial
