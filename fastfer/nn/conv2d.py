# SPDX-License-Identifier: Apache-2.0
"""Dense convolution block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastfer import _checks
from fastfer.nn._checks import positive
from fastfer.nn._lookup import child, tensor
from fastfer.nn._plain import fused, fuses
from fastfer.nn.norm import BatchNorm2d, make_norm, normalised
from fastfer.nn.pool import MaxPool2d
from fastfer.ops._linked import Linked, linked_conv2d
from fastfer.ops.conv2d import conv2d
from fastfer.ops.pool import Pool


def reset_conv(weight: Tensor, bias: Tensor | None) -> None:
    """torch's default: weight and bias uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


@fused(norm=BatchNorm2d, pool=MaxPool2d)
class Conv2d(nn.Module):
    """pool(act(norm(convolution(x) + bias))): (N, in_channels, H, W) -> (N, out_channels, OH, OW), channels_last.

    kernel_size and stride are an int or (vertical, horizontal), padding an int, (vertical, horizontal) or
    (top, left, bottom, right). norm is True for a default `BatchNorm2d`, or one of out_channels features; act a name;
    pool a `MaxPool2d` after it or None. One op does it all where norm and pool are plain: see `fastfer.nn._plain`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        *,
        bias: bool = True,
        norm: bool | BatchNorm2d = False,
        act: str | None = None,
        pool: MaxPool2d | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op, factory = "Conv2d", {"device": device, "dtype": dtype}
        self.in_channels = positive(op, "in_channels", in_channels)
        self.out_channels = positive(op, "out_channels", out_channels)
        self.kernel_size = _checks.pair(op, "kernel_size", kernel_size)
        self.stride = _checks.pair(op, "stride", stride)
        self.padding = _checks.padding4(op, padding)
        _checks.act_code(op, act)
        self.act = act
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size, **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self.norm = make_norm(op, "norm", norm, out_channels, factory)
        if pool is not None and not isinstance(pool, MaxPool2d):
            raise TypeError(f"{op}: pool: expected a fastfer.nn.MaxPool2d, got {type(pool).__name__}")
        self.pool = pool
        reset_conv(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        norm, pool = child(self, "norm"), child(self, "pool")
        weight, bias = tensor(self, "weight"), tensor(self, "bias")
        if not fuses(self, Conv2d):
            y = normalised(conv2d(x, weight, bias, stride=self.stride, padding=self.padding), norm, self.act)
            return y if pool is None else pool(y)
        return conv2d(
            x,
            weight,
            bias,
            norm=norm.step() if norm is not None else None,
            act=self.act,
            stride=self.stride,
            padding=self.padding,
            pool=Pool(pool.kernel_size, pool.stride, pool.padding) if pool is not None else None,
            training=norm is not None and norm.training,
        )

    def linked(self, x: Tensor) -> Linked:
        """In training, with the normalisation left to the next op: see `Chain`."""
        return linked_conv2d(
            x,
            tensor(self, "weight"),
            tensor(self, "bias"),
            child(self, "norm").step(),
            self.act,
            self.stride,
            self.padding,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={tuple(self.kernel_size)}, "
            f"stride={tuple(self.stride)}, padding={tuple(self.padding)}, "
            f"bias={self.bias is not None}, act={self.act!r}"
        )
