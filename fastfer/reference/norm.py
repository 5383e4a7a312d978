# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation (Ioffe & Szegedy 2015) followed by an activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfer.reference import elementwise


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    act: int,
    training: bool,
) -> Tensor:
    """act((x - mean) / sqrt(var + eps) · weight + bias), channel by channel.

    x (N, C, H, W), the four tensors (C,) -> (N, C, H, W), channels_last. Evaluation takes mean and var from the running
    statistics. Training takes them from the batch's n = N·H·W values a channel, var biased, and updates in place
    running = (1 - momentum) · running + momentum · batch, there with var · n / (n - 1); an empty batch updates nothing.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return elementwise.apply(y, act) if act else y
