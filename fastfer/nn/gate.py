# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and pixels: squeeze-and-excitation, ECA, CSA, its spatial part, scSE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastfer import _checks
from fastfer.nn._checks import positive
from fastfer.nn._lookup import child, tensor, weight_and_bias
from fastfer.nn._plain import fused, fuses
from fastfer.nn.conv2d import reset_conv
from fastfer.nn.separable_conv import PointwiseConv2d
from fastfer.ops._linked import Linked, linked_csa
from fastfer.ops.elementwise import activation
from fastfer.ops.gate import csa, eca, sa, scse, squeeze_excite
from fastfer.ops.pool import max_pool2d


@fused(fc1=PointwiseConv2d, fc2=PointwiseConv2d)
class SqueezeExcite(nn.Module):
    """x · gate(fc2(act(fc1(mean_hw x)))): (N, channels, H, W) -> the same shape, channels_last.

    ``hidden`` units; by default channels // 4 to the nearest multiple of 8, not more than a tenth below it (Howard et
    al. 2019, as in torchvision). ``fc1`` and ``fc2`` are 1×1 convolutions, as torchvision has them; where one of them
    is not plain (see `fastfer.nn._plain`) they are called in turn.
    """

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        *,
        act: str | None = "relu",
        gate: str = "hardsigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op, factory = "SqueezeExcite", {"device": device, "dtype": dtype}
        _checks.act_code(op, act)
        _checks.act_code(op, gate, "gate")
        self.act, self.gate = act, gate
        units = (
            _default_hidden(positive(op, "channels", channels)) if hidden is None else positive(op, "hidden", hidden)
        )
        self.fc1 = PointwiseConv2d(channels, units, **factory)
        self.fc2 = PointwiseConv2d(units, channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2 = child(self, "fc1"), child(self, "fc2")
        if not fuses(self, SqueezeExcite):
            return _gated(x, _squeezed(x, fc1, self.act, fc2, self.gate))
        return squeeze_excite(x, *weight_and_bias(fc1), *weight_and_bias(fc2), act=self.act, gate=self.gate)

    def extra_repr(self) -> str:
        return f"act={self.act!r}, gate={self.gate!r}"


def _gated(x: Tensor, gate: Tensor) -> Tensor:
    return (x * gate).contiguous(memory_format=torch.channels_last)


def _squeezed(x: Tensor, fc1: nn.Module, act: str | None, fc2: nn.Module, gate: str) -> Tensor:
    """The gate of the means over the image, layer by layer."""
    return activation(fc2(activation(fc1(x.mean((2, 3), keepdim=True)), act)), gate)


def _default_hidden(channels: int) -> int:
    """A quarter of the channels to the nearest multiple of 8, a step up where that loses more than a tenth."""
    quarter = channels // 4
    units = max(8, (quarter + 4) // 8 * 8)
    return units + 8 if units < 0.9 * quarter else units


@fused()
class ECA(nn.Module):
    """x · sigmoid(convolution of the channels' means): (N, channels, H, W) -> the same shape, channels_last.

    ``kernel_size`` is odd; by default |log2(channels) / 2 + 1 / 2|, one more where that is even: 3 for 64 channels, 5
    for 128 to 512 (Wang et al. 2020, eq. 12).
    """

    def __init__(
        self, channels: int, kernel_size: int | None = None, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        size = int(abs(math.log2(positive("ECA", "channels", channels)) / 2 + 0.5)) | 1
        if kernel_size is not None and positive("ECA", "kernel_size", size := kernel_size) % 2 == 0:
            raise ValueError(f"ECA: kernel_size: expected an odd int, got {kernel_size}")
        self.weight = nn.Parameter(torch.empty(1, 1, size, device=device, dtype=dtype))
        reset_conv(self.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        return eca(x, tensor(self, "weight"))

    def extra_repr(self) -> str:
        return f"kernel_size={self.weight.shape[-1]}"


@fused()
class SpatialAttention(nn.Module):
    """x · sigmoid(weight · [max_c x; mean_c x] + bias): (N, C, H, W) -> the same shape, channels_last."""

    def __init__(self, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 2, 1, 1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        reset_conv(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return sa(x, *weight_and_bias(self))


@fused(channel=ECA, spatial=SpatialAttention)
class CSA(nn.Module):
    """The channel gate of ``channel`` and the pixel gate of ``spatial`` added, as one op: -> the same, channels_last.

    ``pool`` takes the 2×2 maximum, stride 2, in the same pass: (N, channels, H, W) -> (N, channels, H // 2, W // 2).
    Where one of the two is not plain (see `fastfer.nn._plain`) they are called in turn.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        *,
        pool: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.channel = ECA(channels, kernel_size, device=device, dtype=dtype)
        self.spatial = SpatialAttention(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        channel, spatial = child(self, "channel"), child(self, "spatial")
        if not fuses(self, CSA):
            y: Tensor = channel(x) + spatial(x)
            return max_pool2d(y, 2) if self.pool else y
        return csa(x, tensor(channel, "weight"), *weight_and_bias(spatial), pool=self.pool)

    def linked(self, x: Linked) -> Tensor:
        """In training, after a normalisation that was left to this op: see `Chain`."""
        channel, spatial = child(self, "channel"), child(self, "spatial")
        return linked_csa(x, tensor(channel, "weight"), *weight_and_bias(spatial), pool=self.pool)

    def extra_repr(self) -> str:
        return f"pool={self.pool}"


@fused(fc1=PointwiseConv2d, fc2=PointwiseConv2d, spatial=PointwiseConv2d)
class ScSE(nn.Module):
    """Squeeze-and-excitation and a 1×1 convolution's pixel gate added, as one op: -> the same shape, channels_last.

    channels // reduction hidden units, at least 1 (Roy et al. 2018: reduction 2). Where ``fc1``, ``fc2`` or ``spatial``
    is not plain (see `fastfer.nn._plain`) they are called in turn.
    """

    def __init__(
        self, channels: int, reduction: int = 2, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        op, factory = "ScSE", {"device": device, "dtype": dtype}
        hidden = max(1, positive(op, "channels", channels) // positive(op, "reduction", reduction))
        self.fc1 = PointwiseConv2d(channels, hidden, **factory)
        self.fc2 = PointwiseConv2d(hidden, channels, **factory)
        self.spatial = PointwiseConv2d(channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2, spatial = child(self, "fc1"), child(self, "fc2"), child(self, "spatial")
        if not fuses(self, ScSE):
            return _gated(x, _squeezed(x, fc1, "relu", fc2, "sigmoid") + torch.sigmoid(spatial(x)))
        return scse(x, *weight_and_bias(fc1), *weight_and_bias(fc2), *weight_and_bias(spatial))
