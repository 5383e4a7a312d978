# SPDX-License-Identifier: Apache-2.0
"""Checks of module constructors; those of tensors are in ``fastfer._checks``."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def positive(op: str, arg: str, value: object) -> int:
    """An int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{op}: {arg}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{op}: {arg}: expected an int >= 1, got {value}")
    return value


def weight_and_bias(conv: Any) -> tuple[Tensor, Tensor]:
    """The tensors of a convolution that was made with a bias."""
    return conv.weight, conv.bias
