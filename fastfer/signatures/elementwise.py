# SPDX-License-Identifier: Apache-2.0
"""Signatures of the activations; ``act`` is an index of `fastfer._types.ACTIVATIONS`."""

from __future__ import annotations

from typing import NamedTuple

from fastfer.signatures.fields import Stored
from fastfer.signatures.shapes import shapes


@shapes(x="*")
class Activation(NamedTuple):
    """act(x), as one tensor with the strides of ``torch.empty_like(x)``."""

    x: Stored
    act: int


@shapes(d_out="*", x="*")
class ActivationBackward(NamedTuple):
    """d_out · act'(x), as one tensor with the strides of ``torch.empty_like(x)``."""

    d_out: Stored
    x: Stored
    act: int
