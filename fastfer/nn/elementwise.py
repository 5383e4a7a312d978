# SPDX-License-Identifier: Apache-2.0
"""Activations as modules: any shape, float32 or float64."""

from __future__ import annotations

from torch import Tensor, nn

from fastfer import _checks
from fastfer.ops.elementwise import activation


class Activation(nn.Module):
    """The activation of that name; None is the identity."""

    def __init__(self, act: str | None) -> None:
        super().__init__()
        _checks.act_code("Activation", act)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return activation(x, self.act)

    def extra_repr(self) -> str:
        return repr(self.act) if type(self) is Activation else ""


class ReLU(Activation):
    """max(x, 0)."""

    def __init__(self) -> None:
        super().__init__("relu")


class ReLU6(Activation):
    """min(max(x, 0), 6)."""

    def __init__(self) -> None:
        super().__init__("relu6")


class Hardswish(Activation):
    """x · min(max(x + 3, 0), 6) / 6."""

    def __init__(self) -> None:
        super().__init__("hardswish")


class Hardsigmoid(Activation):
    """min(max(x + 3, 0), 6) / 6."""

    def __init__(self) -> None:
        super().__init__("hardsigmoid")


class SiLU(Activation):
    """x · sigmoid(x)."""

    def __init__(self) -> None:
        super().__init__("silu")


class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    def __init__(self) -> None:
        super().__init__("sigmoid")
