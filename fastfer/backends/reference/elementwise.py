# SPDX-License-Identifier: Apache-2.0
"""Activations and their derivatives; codes as ``fastfer._types.ACTIVATIONS``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.signatures.elementwise import Activation, ActivationBackward

_FORWARD = (torch.clone, torch.relu, F.relu6, F.hardswish, F.hardsigmoid, F.silu, torch.sigmoid)


def apply(x: Tensor, act: int) -> Tensor:
    """act(x), differentiable."""
    return _FORWARD[act](x)


def derivative(x: Tensor, act: int) -> Tensor:
    """d act(x) / dx, with torch's choice at the kinks; relu and relu6 pass the gradient at NaN."""
    if act == 0:
        return torch.ones_like(x)
    if act == 1:
        return (~(x <= 0)).to(x.dtype)
    if act == 2:
        return (~((x <= 0) | (x >= 6))).to(x.dtype)
    if act == 3:
        slope = torch.where(x >= 3, torch.ones_like(x), x / 3 + 0.5)
        return torch.where(x <= -3, torch.zeros_like(x), slope)
    if act == 4:
        return ((x > -3) & (x < 3)).to(x.dtype) / 6
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s)) if act == 5 else s * (1 - s)


def _dense(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    return x if y.stride() == x.stride() else y.copy_(x)


def backward(dy: Tensor, x: Tensor, act: int) -> Tensor:
    """dy · act'(x); zero where the derivative is zero, as torch's masks do."""
    slope = derivative(x, act)
    masked = act in (1, 2, 4)
    return torch.empty_like(x).copy_(
        torch.where(slope == 0, torch.zeros_like(dy), dy * slope) if masked else dy * slope
    )


def activation(a: Activation) -> Tensor:
    """act(x) with the strides of ``torch.empty_like(x)``."""
    return torch.empty_like(a.x).copy_(apply(_dense(a.x), a.act))


def activation_backward(a: ActivationBackward) -> Tensor:
    """d_out · act'(x) with the strides of ``torch.empty_like(x)``."""
    return backward(a.d_out, a.x, a.act)
