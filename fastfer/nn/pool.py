# SPDX-License-Identifier: Apache-2.0
"""Pooling modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastfer import _checks
from fastfer.nn._plain import fused
from fastfer.ops.pool import global_avg_pool, global_max_pool, max_pool2d


@fused()
class MaxPool2d(nn.Module):
    """Largest element of each window: (N, C, H, W) -> (N, C, OH, OW), channels_last; stride defaults to the kernel."""

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        self.kernel_size = _checks.pair("MaxPool2d", "kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else _checks.pair("MaxPool2d", "stride", stride)
        self.padding = _checks.padding4("MaxPool2d", padding)

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def extra_repr(self) -> str:
        return f"kernel_size={tuple(self.kernel_size)}, stride={tuple(self.stride)}, padding={tuple(self.padding)}"


class GlobalAvgPool(nn.Module):
    """Mean over the image: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return global_avg_pool(x)


class GlobalMaxPool(nn.Module):
    """Maximum over the image: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return global_max_pool(x)
