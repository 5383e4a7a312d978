# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck (Sandler et al. 2018), and with an attention before its projection (Howard et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastfer import _checks
from fastfer.nn._checks import positive
from fastfer.nn._lookup import child, tensor
from fastfer.nn._plain import replaceable
from fastfer.nn._residual import residual
from fastfer.nn.chain import chained
from fastfer.nn.conv2d import Conv2d
from fastfer.nn.norm import BatchNorm2d
from fastfer.nn.separable_conv import DepthwiseConv2d, SeparableConv2d
from fastfer.ops.bottleneck import inverted_bottleneck, pays

_Step = tuple[Any, BatchNorm2d]
"""A convolution and its norm."""


def _one_mode(steps: Sequence[_Step]) -> bool:
    """Whether there are all norms, and all train or none does: the op has one flag for them."""
    _, first = steps[0]
    return all(norm is not None and norm.training == first.training for _, norm in steps)


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution, attention, projection: (N, in, H, W) -> (N, out, OH, OW), channels_last.

    1×1 to ``hidden`` channels, norm, ``act``; depthwise, norm, ``act``; ``attention``, a module of ``hidden`` channels,
    or None; 1×1 to ``out_channels``, norm. No biases. There is no expansion where ``hidden`` is the input's channels.
    The input is added where stride is 1 and it has as many channels as the output. Where that pays
    (`fastfer.ops.bottleneck.pays`) all of it is one op without an attention, and the part before it with one; where
    ``expand`` or ``body`` is not plain (see `fastfer.nn._plain`) they are called in turn.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        *,
        act: str | None = None,
        attention: nn.Module | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op, factory = "InvertedBottleneck", {"device": device, "dtype": dtype}
        _checks.act_code(op, act)
        for name, value in (("in_channels", in_channels), ("hidden", hidden), ("out_channels", out_channels)):
            positive(op, name, value)

        def norm(channels: int) -> BatchNorm2d:
            return BatchNorm2d(channels, eps, momentum, **factory)

        def conv1x1(inputs: int, outputs: int, act: str | None) -> Conv2d:
            return Conv2d(inputs, outputs, 1, bias=False, norm=norm(outputs), act=act, **factory)

        self.act = act
        self.residual = _checks.pair(op, "stride", stride) == [1, 1] and in_channels == out_channels
        self.expand = conv1x1(in_channels, hidden, act) if hidden != in_channels else nn.Identity()
        if attention is None:
            self.body: nn.Module = SeparableConv2d(
                hidden,
                out_channels,
                kernel_size,
                stride,
                padding,
                norm1=norm(hidden),
                act1=act,
                norm2=norm(out_channels),
                **factory,
            )
        else:
            self.body = nn.Sequential(
                DepthwiseConv2d(
                    hidden, kernel_size, stride, padding, bias=False, norm=norm(hidden), act=act, **factory
                ),
                attention,
                conv1x1(hidden, out_channels, None),
            )

    def forward(self, x: Tensor) -> Tensor:
        expand, body = child(self, "expand"), child(self, "body")
        y: Tensor
        sequence = type(body) is nn.Sequential and replaceable(body)
        if type(expand) is not Conv2d or not pays(expand.in_channels):
            y = chained(x, [expand, *(body if sequence and self.training else [body])])
        elif type(body) is SeparableConv2d and replaceable(expand) and replaceable(body):
            steps = [
                (expand, child(expand, "norm")),
                (child(body, "depthwise"), child(body, "norm1")),
                (child(body, "pointwise"), child(body, "norm2")),
            ]
            if _one_mode(steps):
                return self._fused(x, steps, self.residual)
            y = body(expand(x))
        elif sequence and len(body) == 3:
            depthwise, attention, project = body
            y = project(attention(self._expanded(x, expand, depthwise)))
        else:
            y = body(expand(x))
        return residual(x, y, body) if self.residual else y

    def _expanded(self, x: Tensor, expand: Any, depthwise: Any) -> Tensor:
        """The expansion and the depthwise convolution, as one op where they are plain and their norms of one mode."""
        if type(depthwise) is DepthwiseConv2d and replaceable(expand) and replaceable(depthwise):
            steps = [(expand, child(expand, "norm")), (depthwise, child(depthwise, "norm"))]
            if _one_mode(steps):
                return self._fused(x, steps, False)
        y: Tensor = depthwise(expand(x))
        return y

    def _fused(self, x: Tensor, steps: Sequence[_Step], residual: bool) -> Tensor:
        depthwise = steps[1][0]
        arguments: list[Any] = [v for conv, norm in steps for v in (tensor(conv, "weight"), norm.step())]
        return inverted_bottleneck(
            x,
            *arguments,
            act=self.act,
            stride=depthwise.stride,
            padding=depthwise.padding,
            residual=residual,
            training=steps[0][1].training,
        )

    def extra_repr(self) -> str:
        return f"act={self.act!r}, residual={self.residual}"
