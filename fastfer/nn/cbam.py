# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention (Woo et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastfer.nn._checks import positive
from fastfer.nn.conv2d import reset_conv
from fastfer.nn.norm import BatchNorm2d, make_norm
from fastfer.ops.cbam import cbam, channel_gate, spatial_gate


class ChannelGate(nn.Module):
    """x · sigmoid(mlp(mean) + mlp(max)): (N, channels, H, W) -> the same shape, channels_last.

    The MLP has one hidden layer of max(1, channels // reduction) units.
    """

    def __init__(
        self, channels: int, reduction: int = 8, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        op = "ChannelGate"
        hidden = max(1, positive(op, "channels", channels) // positive(op, "reduction", reduction))
        self.fc1 = nn.Linear(channels, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, channels, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return channel_gate(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


class SpatialGate(nn.Module):
    """x · sigmoid(norm(conv([max_c; mean_c]))): (N, C, H, W) -> the same shape; kernel_size is odd.

    norm is True for a default `BatchNorm2d`, or one of a single feature.
    """

    def __init__(
        self,
        kernel_size: int = 7,
        norm: bool | BatchNorm2d = True,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op, factory = "SpatialGate", {"device": device, "dtype": dtype}
        if positive(op, "kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"{op}: kernel_size: expected an odd int, got {kernel_size}")
        module = make_norm(op, "norm", norm, 1, factory)
        if module is None:
            raise ValueError(f"{op}: norm: expected True or a fastfer.nn.BatchNorm2d, got {norm!r}")
        self.weight = nn.Parameter(torch.empty(1, 2, kernel_size, kernel_size, **factory))
        self.norm = module
        reset_conv(self.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        return spatial_gate(x, self.weight, self.norm.step(), training=self.norm.training)

    def extra_repr(self) -> str:
        return f"kernel_size={self.weight.shape[-1]}"


class CBAM(nn.Module):
    """The channel gate, then the spatial gate, as one op: (N, channels, H, W) -> the same shape, channels_last.

    The op takes the tensors of ``channel`` and ``spatial``, so that their own forwards and hooks do not run.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 8,
        kernel_size: int = 7,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction, device=device, dtype=dtype)
        self.spatial = SpatialGate(kernel_size, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2, norm = self.channel.fc1, self.channel.fc2, self.spatial.norm
        return cbam(
            x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, self.spatial.weight, norm.step(), training=norm.training
        )
