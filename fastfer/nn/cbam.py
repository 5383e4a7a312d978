# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention (Woo et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastfer.nn._checks import positive
from fastfer.nn._lookup import child, tensor, weight_and_bias
from fastfer.nn._plain import fused, fuses
from fastfer.nn.conv2d import reset_conv
from fastfer.nn.norm import BatchNorm2d, make_norm, normalised
from fastfer.ops.cbam import cbam, channel_gate, spatial_gate
from fastfer.ops.conv2d import conv2d
from fastfer.ops.pool import global_avg_pool, global_max_pool


@fused(fc1=nn.Linear, fc2=nn.Linear)
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
        fc1, fc2 = child(self, "fc1"), child(self, "fc2")
        if not fuses(self, ChannelGate):
            mean, most = (fc2(torch.relu(fc1(pool(x)))) for pool in (global_avg_pool, global_max_pool))
            return (x * torch.sigmoid(mean + most)[:, :, None, None]).contiguous(memory_format=torch.channels_last)
        return channel_gate(x, *weight_and_bias(fc1), *weight_and_bias(fc2))


@fused(norm=BatchNorm2d)
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
        norm, weight = child(self, "norm"), tensor(self, "weight")
        if not fuses(self, SpatialGate):
            planes = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
            gate = normalised(conv2d(planes, weight, padding=weight.shape[-1] // 2), norm, "sigmoid")
            return (x * gate).contiguous(memory_format=torch.channels_last)
        return spatial_gate(x, weight, norm.step(), training=norm.training)

    def extra_repr(self) -> str:
        return f"kernel_size={self.weight.shape[-1]}"


@fused(channel=ChannelGate, spatial=SpatialGate)
class CBAM(nn.Module):
    """The channel gate, then the spatial gate, as one op: (N, channels, H, W) -> the same shape, channels_last.

    Where a part is not plain (see `fastfer.nn._plain`) the two gates are called in turn.
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
        channel, spatial = child(self, "channel"), child(self, "spatial")
        if not fuses(self, CBAM):
            y: Tensor = spatial(channel(x))
            return y
        norm, mlp = (
            child(spatial, "norm"),
            (*weight_and_bias(child(channel, "fc1")), *weight_and_bias(child(channel, "fc2"))),
        )
        return cbam(x, *mlp, tensor(spatial, "weight"), norm.step(), training=norm.training)
