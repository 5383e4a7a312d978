# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention (Hou et al. 2021; improved MobileNetV3, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastfer.nn._checks import positive
from fastfer.nn._lookup import child, weight_and_bias
from fastfer.nn._plain import fused, fuses
from fastfer.nn.norm import BatchNorm2d, normalised
from fastfer.nn.separable_conv import PointwiseConv2d
from fastfer.ops.coordinate import coordinate_attention, cpsca_pool, kind_code


@fused(conv=PointwiseConv2d, norm=BatchNorm2d, conv_h=PointwiseConv2d, conv_w=PointwiseConv2d)
class CoordinateAttention(nn.Module):
    """x · g_h · g_w as one op: (N, channels, H, W) -> the same shape, channels_last.

    ``kind`` is "ca", "maxca" or "cpsca"; between pooling and gates there are max(8, channels // reduction) channels,
    normalised with ``eps`` and ``momentum`` and activated by h-swish. Where ``conv``, ``norm``, ``conv_h`` or
    ``conv_w`` is not plain (see `fastfer.nn._plain`) they are called in turn.
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
        if not fuses(self, CoordinateAttention):
            return self._one_by_one(x)
        norm = child(self, "norm")
        return coordinate_attention(
            x,
            *weight_and_bias(child(self, "conv")),
            norm.step(),
            *weight_and_bias(child(self, "conv_h")),
            *weight_and_bias(child(self, "conv_w")),
            kind=self.kind,
            training=norm.training,
        )

    def _one_by_one(self, x: Tensor) -> Tensor:
        row_mean, row_max, column_mean, column_max = cpsca_pool(x)
        pooled = {
            "ca": [(row_mean, column_mean)],
            "maxca": [(row_max, column_max)],
            "cpsca": [(row_mean, column_max), (row_max, column_mean)],
        }
        mixed = [self.conv(torch.cat(lines, 2).unsqueeze(-1)) for lines in pooled[self.kind]]
        y = normalised(mixed[0] if len(mixed) == 1 else mixed[0] + mixed[1], self.norm, "hardswish")
        rows, columns = torch.split(y, [x.shape[2], x.shape[3]], 2)
        gates = torch.sigmoid(self.conv_h(rows)), torch.sigmoid(self.conv_w(columns)).transpose(2, 3)
        return (x * gates[0] * gates[1]).contiguous(memory_format=torch.channels_last)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"
