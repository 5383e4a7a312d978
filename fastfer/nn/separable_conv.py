# SPDX-License-Identifier: Apache-2.0
"""Depthwise and pointwise convolutions, and the fused separable block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastfer import _checks
from fastfer.nn._checks import positive
from fastfer.nn._lookup import child, tensor
from fastfer.nn._plain import fused, fuses
from fastfer.nn.conv2d import reset_conv
from fastfer.nn.norm import BatchNorm2d, make_norm, normalised
from fastfer.ops._linked import Linked, linked_depthwise_conv2d, linked_separable_conv2d
from fastfer.ops.separable_conv import depthwise_conv2d, pointwise_conv2d, separable_conv2d


@fused(norm=BatchNorm2d)
class DepthwiseConv2d(nn.Module):
    """act(norm(one filter a channel)): (N, channels, H, W) -> (N, channels, OH, OW), channels_last.

    Sizes, norm and activation as in `Conv2d`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        *,
        bias: bool = True,
        norm: bool | BatchNorm2d = False,
        act: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op, factory = "DepthwiseConv2d", {"device": device, "dtype": dtype}
        _checks.act_code(op, act)
        self.act = act
        self.channels = positive(op, "channels", channels)
        self.kernel_size = _checks.pair(op, "kernel_size", kernel_size)
        self.stride = _checks.pair(op, "stride", stride)
        self.padding = _checks.padding4(op, padding)
        self.weight = nn.Parameter(torch.empty(channels, 1, *self.kernel_size, **factory))
        self.bias = nn.Parameter(torch.empty(channels, **factory)) if bias else None
        self.norm = make_norm(op, "norm", norm, channels, factory)
        reset_conv(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        norm, weight, bias = child(self, "norm"), tensor(self, "weight"), tensor(self, "bias")
        if not fuses(self, DepthwiseConv2d):
            return normalised(depthwise_conv2d(x, weight, bias, self.stride, self.padding), norm, self.act)
        return depthwise_conv2d(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            norm=norm.step() if norm is not None else None,
            act=self.act,
            training=norm is not None and norm.training,
        )

    def linked(self, x: Linked) -> Tensor:
        """In training, after a normalisation that was left to this op: see `Chain`."""
        return linked_depthwise_conv2d(
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
            f"{self.channels}, kernel_size={tuple(self.kernel_size)}, stride={tuple(self.stride)}, "
            f"padding={tuple(self.padding)}, bias={self.bias is not None}, act={self.act!r}"
        )


@fused()
class PointwiseConv2d(nn.Module):
    """1×1 convolution: (N, in_channels, H, W) -> (N, out_channels, H, W), channels_last."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op, factory = "PointwiseConv2d", {"device": device, "dtype": dtype}
        self.in_channels = positive(op, "in_channels", in_channels)
        self.out_channels = positive(op, "out_channels", out_channels)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1, **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        reset_conv(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise_conv2d(x, tensor(self, "weight"), tensor(self, "bias"))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"


@fused(depthwise=DepthwiseConv2d, norm1=BatchNorm2d, pointwise=PointwiseConv2d, norm2=BatchNorm2d)
class SeparableConv2d(nn.Module):
    """act2(norm2(pointwise(act1(norm1(depthwise(x)))))) as one op: (N, in, H, W) -> (N, out, OH, OW), channels_last.

    Sizes, norms and activations as in `Conv2d`; no biases unless asked for. The op takes the tensors of ``depthwise``,
    ``pointwise`` and the norms; where one of them is not plain (see `fastfer.nn._plain`) they are called in turn.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        *,
        dw_bias: bool = False,
        norm1: bool | BatchNorm2d = False,
        act1: str | None = None,
        pw_bias: bool = False,
        norm2: bool | BatchNorm2d = False,
        act2: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op, factory = "SeparableConv2d", {"device": device, "dtype": dtype}
        _checks.act_code(op, act1, "act1")
        _checks.act_code(op, act2, "act2")
        self.act1, self.act2 = act1, act2
        self.depthwise = DepthwiseConv2d(in_channels, kernel_size, stride, padding, bias=dw_bias, **factory)
        self.norm1 = make_norm(op, "norm1", norm1, in_channels, factory)
        self.pointwise = PointwiseConv2d(in_channels, out_channels, bias=pw_bias, **factory)
        self.norm2 = make_norm(op, "norm2", norm2, out_channels, factory)

    def forward(self, x: Tensor) -> Tensor:
        if not fuses(self, SeparableConv2d):
            return self._one_by_one(x)
        norm1, norm2 = child(self, "norm1"), child(self, "norm2")
        if norm1 is not None and norm2 is not None and norm1.training != norm2.training:  # the op has one flag
            return self._one_by_one(x)
        norm = norm2 if norm1 is None else norm1
        return separable_conv2d(x, **self._arguments(), training=norm is not None and norm.training)

    def linked(self, x: Tensor | Linked, leaves: bool) -> Tensor | Linked:
        """In training, linked to the op before it, or, with ``leaves``, to the one after it: see `Chain`."""
        return linked_separable_conv2d(x, **self._arguments(), leaves=leaves)

    def _arguments(self) -> dict[str, Any]:
        """The op's, but for x and how it runs; a norm in training counts the batch."""
        dw, norm1 = child(self, "depthwise"), child(self, "norm1")
        pw, norm2 = child(self, "pointwise"), child(self, "norm2")
        return {
            "dw_weight": tensor(dw, "weight"),
            "pw_weight": tensor(pw, "weight"),
            "dw_bias": tensor(dw, "bias"),
            "norm1": norm1.step() if norm1 is not None else None,
            "act1": self.act1,
            "pw_bias": tensor(pw, "bias"),
            "norm2": norm2.step() if norm2 is not None else None,
            "act2": self.act2,
            "stride": dw.stride,
            "padding": dw.padding,
        }

    def _one_by_one(self, x: Tensor) -> Tensor:
        y = normalised(self.depthwise(x), self.norm1, self.act1)
        return normalised(self.pointwise(y), self.norm2, self.act2)

    def extra_repr(self) -> str:
        return f"act1={self.act1!r}, act2={self.act2!r}"
