# SPDX-License-Identifier: Apache-2.0
"""Signatures of the gates on channels and on pixels; formulas in ``csrc/gate/op.h``.

Gradients that are not asked for, or are of a gate that is not there, are empty.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

from fastfer.signatures.fields import Link, Stored


class ChannelSide(NamedTuple):
    """gate_act(w2 · act(w1 · m + b1) + b2), m the means of an image; without w2 gate_act(w1 * m) over the channels.

    w1 (M, C), b1 (M,), w2 (C, M), b2 (C,), M hidden units; both w may be (.., .., 1, 1). Without w2 there are no
    biases, w1 is (1, 1, K), K odd, and zeros lie beside the channels.
    """

    w1: Tensor
    b1: Tensor | None
    w2: Tensor | None
    b2: Tensor | None
    act: int
    gate_act: int

    @property
    def units(self) -> int:
        """Hidden units, or taps of the convolution."""
        return self.w1.shape[2] if self.w2 is None else self.w1.shape[0]


class PixelSide(NamedTuple):
    """sigmoid(sw · [max_c x; mean_c x] + sb), or when ``linear`` sigmoid(sw · x + sb).

    sw (1, 2 or C, 1, 1), the maximum's first, sb (1,).
    """

    sw: Tensor
    sb: Tensor
    linear: bool


class Gates(NamedTuple):
    """What x is multiplied by: the sum of the gates that there are. ``pool``: then its 2×2 maximum, stride 2."""

    channel: Annotated[ChannelSide, "inline"] | None
    pixel: Annotated[PixelSide, "inline"] | None
    pool: bool


class Gate(NamedTuple):
    """x (N, C, H, W) times its gates."""

    x: Stored
    gates: Annotated[Gates, "inline"]


class GateTrained(NamedTuple):
    """The output, the means (N, C) of the images, and of each pixel (N, 3, H, W) maximum, mean and maximum's channel.

    Of a linear pixel gate (N, 1, H, W): the logit. Empty without a channel gate, without a pixel gate.
    """

    out: Stored
    means: Tensor
    pixels: Tensor


class GateNeeds(NamedTuple):
    """Which gradients are asked for: x's, the channel gate's, the pixel gate's. With a link x's is computed always."""

    x: Annotated[bool, "x", "link"]
    channel: bool
    pixel: bool


class GateBackward(NamedTuple):
    """Backward of `Gate`."""

    d_out: Stored
    x: Stored
    means: Tensor
    pixels: Tensor
    gates: Annotated[Gates, "inline"]
    needs: GateNeeds


class GateGradients(NamedTuple):
    """Gradients of `Gate`."""

    d_x: Stored
    d_w1: Tensor
    d_b1: Tensor
    d_w2: Tensor
    d_b2: Tensor
    d_sw: Tensor
    d_sb: Tensor


class GateLinked(NamedTuple):
    """`Gate` in training, of an input whose norm the op before left to this one."""

    x: Stored
    link: Link
    gates: Annotated[Gates, "inline"]


class GateLinkedBackward(NamedTuple):
    """Backward of `GateLinked`."""

    d_out: Stored
    x: Stored
    link: Link
    means: Tensor
    pixels: Tensor
    gates: Annotated[Gates, "inline"]
    needs: GateNeeds


class GateLinkedGradients(NamedTuple):
    """Gradients of `GateLinked`."""

    d_x: Stored
    d_w1: Tensor
    d_b1: Tensor
    d_w2: Tensor
    d_b2: Tensor
    d_sw: Tensor
    d_sb: Tensor
    d_link_stats: Tensor
    d_link_weight: Tensor
    d_link_bias: Tensor
