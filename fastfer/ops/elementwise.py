# SPDX-License-Identifier: Apache-2.0
"""Activations: relu, relu6, hardswish, hardsigmoid, silu, sigmoid. The family to copy when adding one.

Saved for backward: the input (4 bytes an element in float32).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.signatures.elementwise import Activation, ActivationBackward


def _fake(a: Activation | ActivationBackward) -> Tensor:
    return torch.empty_like(a.x)


_activation = _library.define("activation", "elementwise", Activation, Tensor, _fake)
_activation_backward = _library.define("activation_backward", "elementwise", ActivationBackward, Tensor, _fake)
_library.autograd(_activation, _activation_backward)
_library.autocast(_activation)


def activation(x: Tensor, act: str | None) -> Tensor:
    """``act`` applied element by element; ``x`` of any shape and strides, float32 or float64.

    Raises TypeError for another dtype, ValueError for an unknown name. ``None`` and "none" return ``x`` itself.
    """
    _checks.floating("activation", "x", x)
    code = _checks.act_code("activation", act)
    return _activation(Activation(x, code)) if code else x


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return activation(x, "relu")


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6) (Howard et al. 2017)."""
    return activation(x, "relu6")


def hardswish(x: Tensor) -> Tensor:
    """x · min(max(x + 3, 0), 6) / 6 (Howard et al. 2019, MobileNetV3)."""
    return activation(x, "hardswish")


def hardsigmoid(x: Tensor) -> Tensor:
    """min(max(x + 3, 0), 6) / 6 (Howard et al. 2019, MobileNetV3)."""
    return activation(x, "hardsigmoid")


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x) (Elfwing et al. 2018)."""
    return activation(x, "silu")


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return activation(x, "sigmoid")
