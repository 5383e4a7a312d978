# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention (Hou et al. 2021; improved MobileNetV3, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastfer.nn._checks import positive, weight_and_bias
from fastfer.nn.norm import BatchNorm2d
from fastfer.nn.separable_conv import PointwiseConv2d
from fastfer.ops.coordinate import coordinate_attention, kind_code


class CoordinateAttention(nn.Module):
    """x · g_h · g_w as one op: (N, channels, H, W) -> the same shape, channels_last.

    ``kind`` is "ca", "maxca" or "cpsca"; between pooling and gates there are max(8, channels // reduction) channels,
    normalised with ``eps`` and ``momentum`` and activated by h-swish. The op takes the tensors of ``conv``, ``norm``,
    ``conv_h`` and ``conv_w``, so that their own forwards and hooks do not run.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 32,
        *,
        kind: str = "ca",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op, factory = "CoordinateAttention", {"device": device, "dtype": dtype}
        middle = max(8, positive(op, "channels", channels) // positive(op, "reduction", reduction))
        kind_code(op, kind)
        self.kind = kind
        self.conv = PointwiseConv2d(channels, middle, **factory)
        self.norm = BatchNorm2d(middle, eps, momentum, **factory)
        self.conv_h = PointwiseConv2d(middle, channels, **factory)
        self.conv_w = PointwiseConv2d(middle, channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return coordinate_attention(
            x,
            *weight_and_bias(self.conv),
            self.norm.step(),
            *weight_and_bias(self.conv_h),
            *weight_and_bias(self.conv_w),
            kind=self.kind,
            training=self.norm.training,
        )

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"
