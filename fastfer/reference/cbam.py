# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention: a channel gate, then a spatial gate (CBAM, Woo et al. 2018; FGW-FER eq. 6-10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfer.reference.pool import global_avg_pool, global_max_pool


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x · sigmoid(mlp(mean_hw x) + mlp(max_hw x)), mlp(v) = w2 · relu(w1 · v + b1) + b2 (eq. 6-8; b2 counts twice).

    x (N, C, H, W), w1 (C/r, C), b1 (C/r,), w2 (C, C/r), b2 (C,) -> (N, C, H, W), channels_last.
    """
    x = x.contiguous(memory_format=torch.channels_last)

    def mlp(v: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(v, w1, b1)), w2, b2)

    gate = torch.sigmoid(mlp(global_avg_pool(x)) + mlp(global_max_pool(x)[0]))
    return x * gate[:, :, None, None]


def spatial_gate(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    training: bool,
) -> Tensor:
    """x · sigmoid(bn(conv([max_c x; mean_c x]))), the convolution K×K, 2 -> 1, "same", no bias (eq. 9-10).

    x (N, C, H, W), weight (1, 2, K, K) with K odd, norm tensors (1,) -> (N, C, H, W), channels_last.
    Equation 9 of FGW-FER writes an MLP; its parameter count and CBAM itself have the convolution and the norm.
    A maximum's gradient goes to one channel. ``training`` is that of the norm, see `fastfer.reference.norm`.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    pooled = torch.cat([x.max(1, keepdim=True).values, x.mean(1, keepdim=True)], 1)
    y = F.conv2d(pooled, weight, padding=weight.shape[-1] // 2)
    y = F.batch_norm(y, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps)
    return x * torch.sigmoid(y)


def cbam(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    training: bool,
) -> Tensor:
    """spatial_gate(channel_gate(x)); shapes as there."""
    y = channel_gate(x, w1, b1, w2, b2)
    return spatial_gate(y, weight, norm_weight, norm_bias, running_mean, running_var, momentum, eps, training)
