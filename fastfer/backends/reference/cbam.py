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
from fastfer.backends.reference.norm import norm_statistics
from fastfer.backends.reference.pool import global_avg_max_pool
from fastfer.signatures.cbam import (
    Cbam,
    CbamBackward,
    CbamGradients,
    CbamTrain,
    CbamTrained,
    ChannelGate,
    ChannelGateBackward,
    ChannelGateGradients,
    ChannelGateNeeds,
    ChannelGateTrained,
    Mlp,
    SpatialGate,
    SpatialGateBackward,
    SpatialGateGradients,
    SpatialGateNeeds,
    SpatialGateTrain,
    SpatialGateTrained,
)
from fastfer.signatures.fields import Affine, RunningNorm
from fastfer.signatures.pool import GlobalPool


def _gate(x: Tensor, mlp: Mlp) -> tuple[Tensor, Tensor]:
    """pooled (3, N, C) and positions (N, C)."""
    avg, largest, positions = global_avg_max_pool(GlobalPool(x))

    def layers(v: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(v, mlp.w1, mlp.b1)), mlp.w2, mlp.b2)

    return torch.stack([avg, largest, torch.sigmoid(layers(avg) + layers(largest))]), positions


def _planes(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """planes (3, N, H, W) and channels (N, H, W)."""
    largest, channels = u.max(1)
    pooled = torch.stack([largest, u.mean(1)], 1)
    y = F.conv2d(pooled, weight, padding=weight.shape[-1] // 2)
    return torch.stack([*pooled.unbind(1), y[:, 0]]), channels.int()


def _spatial(y: Tensor, norm: RunningNorm | Affine, stats: Tensor) -> Tensor:
    """s (N, H, W)."""
    return torch.sigmoid((y - stats[0]) * (stats[1] * norm.weight) + norm.bias)


def channel_gate_train(a: ChannelGate) -> ChannelGateTrained:
    """x · g, pooled, positions."""
    pooled, positions = _gate(a.x, a.mlp)
    return ChannelGateTrained(nhwc(a.x * pooled[2, :, :, None, None]), pooled, positions)


def channel_gate(a: ChannelGate) -> Tensor:
    """x · g."""
    return channel_gate_train(a).out


def spatial_gate_train(a: SpatialGateTrain) -> SpatialGateTrained:
    """x · s, planes, channels, stats."""
    x, weight, norm = a.block
    planes, channels = _planes(x, weight)
    stats = norm_statistics(planes[2][:, None], norm, a.batch_stats)
    return SpatialGateTrained(nhwc(x * _spatial(planes[2], norm, stats)[:, None]), planes, channels, stats)


def spatial_gate(a: SpatialGate) -> Tensor:
    """x · s with running statistics."""
    return spatial_gate_train(SpatialGateTrain(a, False)).out


def cbam_train(a: CbamTrain) -> CbamTrained:
    """out, pooled, positions, planes, channels, stats."""
    x, mlp, weight, norm = a.block
    channel = channel_gate_train(ChannelGate(x, mlp))
    spatial = spatial_gate_train(SpatialGateTrain(SpatialGate(channel.out, weight, norm), a.batch_stats))
    return CbamTrained(spatial.out, channel.pooled, channel.positions, spatial.planes, spatial.channels, spatial.stats)


def cbam(a: Cbam) -> Tensor:
    """out with running statistics."""
    return cbam_train(CbamTrain(a, False)).out


def channel_gate_backward(a: ChannelGateBackward) -> ChannelGateGradients:
    """Gradients of x and of the MLP."""
    x, dout, (w1, b1, w2) = a.x, a.d_out, a.mlp
    avg, largest, gate = a.pooled
    dz = (dout * x).sum((2, 3)) * gate * (1 - gate)
    hidden = [F.linear(v, w1, b1) for v in (avg, largest)]
    dh = dz @ w2
    d_avg, d_max = (torch.where(h <= 0, torch.zeros_like(dh), dh) for h in hidden)
    pixels = x.shape[2] * x.shape[3]
    dx = dout * gate[:, :, None, None] + (d_avg @ w1 / pixels)[:, :, None, None]
    dx = dx.flatten(2).scatter_add(2, a.positions.long()[:, :, None], (d_max @ w1)[:, :, None]).view(x.shape)
    d_w1, d_b1 = d_avg.T @ avg + d_max.T @ largest, (d_avg + d_max).sum(0)
    d_w2, d_b2 = dz.T @ (F.relu(hidden[0]) + F.relu(hidden[1])), 2 * dz.sum(0)
    none = x.new_empty(0)
    params = (d_w1, d_b1, d_w2, d_b2) if a.needs.params else (none,) * 4
    return ChannelGateGradients(nhwc(dx) if a.needs.x else none, *params)


def spatial_gate_backward(a: SpatialGateBackward) -> SpatialGateGradients:
    """Gradients of x, of the convolution and of the norm."""
    x, dout, weight, stats, y = a.x, a.d_out, a.weight, a.stats, a.planes[2]
    s, xhat = _spatial(y, a.norm, stats), (y - stats[0]) * stats[1]
    t = (dout * x).sum(1) * s * (1 - s)
    d_nw, d_nb = (t * xhat).sum().view(1), t.sum().view(1)
    centred = t
    if a.batch_stats:
        (all_b, all_w), count = _processes.over_batch(torch.cat([d_nb, d_nw]), y.numel())
        centred = t - (all_b + xhat * all_w) / count
    dy = (centred * (stats[1] * a.norm.weight))[:, None]
    d_planes, d_weight, _ = torch.ops.aten.convolution_backward(
        dy, a.planes[:2].transpose(0, 1), weight, None, [1, 1], [weight.shape[-1] // 2] * 2, [1, 1], False, [0, 0], 1,
        [True, True, False],
    )  # fmt: skip
    dx = dout * s[:, None] + d_planes[:, 1:] / x.shape[1]
    dx = dx.scatter_add(1, a.channels.long()[:, None], d_planes[:, :1])
    none = x.new_empty(0)
    params = (d_weight.contiguous(), d_nw, d_nb) if a.needs.params else (none,) * 3
    return SpatialGateGradients(nhwc(dx) if a.needs.x else none, *params)


def cbam_backward(a: CbamBackward) -> CbamGradients:
    """Gradients of x, of the MLP, of the convolution and of the norm."""
    u = a.x * a.pooled[2, :, :, None, None]
    du, *d_spatial = spatial_gate_backward(
        SpatialGateBackward(
            a.d_out,
            u,
            a.planes,
            a.channels,
            a.stats,
            a.weight,
            a.norm,
            a.batch_stats,
            SpatialGateNeeds(True, a.needs.spatial),
        )
    )
    needs = ChannelGateNeeds(a.needs.x, a.needs.channel)
    channel = channel_gate_backward(ChannelGateBackward(du, a.x, a.pooled, a.positions, a.mlp, needs))
    return CbamGradients(*channel, *d_spatial)
