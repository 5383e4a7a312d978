# SPDX-License-Identifier: Apache-2.0
"""Signatures of the activations; ``act`` is an index of `fastfer._types.ACTIVATIONS`."""

from __future__ import annotations

from typing import NamedTuple

from fastfer.signatures.fields import Stored


class Activation(NamedTuple):
    """act(x), as one tensor with the strides of ``torch.empty_like(x)``."""

    x: Stored
    act: int


class ActivationBackward(NamedTuple):
    """d_out · act'(x), as one tensor with the strides of ``torch.empty_like(x)``."""

    d_out: Stored
    x: Stored
    act: int
