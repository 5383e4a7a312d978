# SPDX-License-Identifier: Apache-2.0
"""Signatures of the gates on channels and on pixels; formulas in ``csrc/gate/op.h``.

Gradients that are not asked for, or are of a gate that is not there, are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

from torch import Tensor

from fastfer.signatures.fields import Link, Stored
from fastfer.signatures.shapes import Index, Line, shapes


def _channel_weight(a: ChannelSide) -> str:
    return "1 1 k+" if a.w2 is None else "m+ c|m+ c 1 1"


def _hidden(line: str) -> Callable[[ChannelSide], str]:
    """The line of a tensor that there is only with hidden units."""
    return lambda a: "-" if a.w2 is None else f"!{line}"


def _pixel_weight(a: PixelSide) -> str:
    return "1 c 1 1" if a.linear else "1 2 1 1"


def _odd_taps(a: ChannelSide, sizes: Mapping[str, int]) -> str:
    return "" if sizes.get("k", 1) % 2 else "w1: expected an odd number of taps"


def _halves(a: Gates, sizes: Mapping[str, int]) -> str:
    if not a.pool:
        return "" if a.channel or a.pixel else "w1, sw: expected a gate"
    if a.channel is None or a.pixel is None or a.pixel.linear:
        return "pool: expected a channel gate and a pixel gate that is not linear"
    return "" if min(sizes["h"], sizes["w"]) > 1 else "x: expected height and width of at least 2"


def _kept_out(a: GateBackward | GateLinkedBackward) -> str:
    return "n c h//2 w//2" if a.gates.pool else "n c h w"


def _kept_means(a: GateBackward | GateLinkedBackward) -> str:
    return "0" if a.gates.channel is None else "n c"


def _kept_pixels(a: GateBackward | GateLinkedBackward) -> Line:
    if a.gates.pixel is None:
        return "0"
    return "n 1 h w" if a.gates.pixel.linear else Index("n 3 h w", None, "c", plane=2)


@shapes(_odd_taps, w1=_channel_weight, b1=_hidden("m"), w2=_hidden("c m|c m 1 1"), b2=_hidden("c"))
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


@shapes(sw=_pixel_weight, sb="1")
class PixelSide(NamedTuple):
    """sigmoid(sw · [max_c x; mean_c x] + sb), or when ``linear`` sigmoid(sw · x + sb).

    sw (1, 2 or C, 1, 1), the maximum's first, sb (1,).
    """

    sw: Tensor
    sb: Tensor
    linear: bool


@shapes(_halves)
class Gates(NamedTuple):
    """What x is multiplied by: the sum of the gates that there are. ``pool``: then its 2×2 maximum, stride 2."""

    channel: Annotated[ChannelSide, "inline"] | None
    pixel: Annotated[PixelSide, "inline"] | None
    pool: bool


@shapes(x="n c+ h+ w+")
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


@shapes(d_out=_kept_out, x="n c+ h+ w+", means=_kept_means, pixels=_kept_pixels)
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


@shapes(x="n c+ h+ w+", link="c")
class GateLinked(NamedTuple):
    """`Gate` in training, of an input whose norm the op before left to this one."""

    x: Stored
    link: Link
    gates: Annotated[Gates, "inline"]


@shapes(d_out=_kept_out, x="n c+ h+ w+", link="c", means=_kept_means, pixels=_kept_pixels)
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
