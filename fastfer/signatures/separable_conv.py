# SPDX-License-Identifier: Apache-2.0
"""Signatures of depthwise, pointwise and separable convolutions; formulas in ``csrc/separable_conv/op.h``.

Statistics are (3, C): mean, 1/sqrt(var + eps), unbiased variance. Activations are channels_last. Gradients that are not
asked for are empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from torch import Tensor

from fastfer.signatures.fields import Affine, LeftNorm, Link, Pair, RunningNorm, Sides, Stored
from fastfer.signatures.shapes import shapes


def output_size(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    top, left, bottom, right = padding
    return (
        (x.shape[2] + top + bottom - weight.shape[2]) // stride[0] + 1,
        (x.shape[3] + left + right - weight.shape[3]) // stride[1] + 1,
    )


def _kept_y1(a: SeparableBackward) -> str:
    return "n c oh ow" if a.norm1 is not None or a.act1 else "n c oh ow|0"


def _kept_y2(a: SeparableBackward) -> str:
    return "n o oh ow" if a.norm2 is not None or a.act2 else "0"


def _kept_stats1(a: SeparableBackward) -> str:
    return "0" if a.norm1 is None else "3 c"


def _kept_stats2(a: SeparableBackward) -> str:
    return "0" if a.norm2 is None else "3 o"


def _linked_y2(a: SeparableLinkedBackward) -> str:
    return "n o oh ow" if a.leaves else _kept_y2(a.block)


def _linked_stats2(a: SeparableLinkedBackward) -> str:
    return "3 o" if a.leaves else _kept_stats2(a.block)


def _one_last_norm(a: SeparableLinked | SeparableLinkedBackward, sizes: Mapping[str, int]) -> str:
    block = a.block
    bare = block.norm2 is None and block.act2 == 0
    return "" if bare or not a.leaves else "norm2, act2: expected none, since the last norm is left to the next op"


@shapes(x="n c h w", weight="c 1 p+ q+", bias="c")
class Depthwise(NamedTuple):
    """Depthwise convolution: weight (C, 1, KH, KW), bias (C,)."""

    x: Stored
    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Sides


class ConvNeeds(NamedTuple):
    """Which gradients of a convolution are asked for."""

    x: bool
    weight: bool
    bias: bool


@shapes(d_out="n c oh ow", x="n c h w", weight="c 1 p+ q+")
class DepthwiseBackward(NamedTuple):
    """Backward of `Depthwise`."""

    d_out: Stored
    x: Stored
    weight: Tensor
    stride: Pair
    padding: Sides
    needs: ConvNeeds


class ConvGradients(NamedTuple):
    """Gradients of a convolution."""

    d_x: Stored
    d_weight: Tensor
    d_bias: Tensor


@shapes(x="n c h w", weight="c 1 p+ q+", bias="c", norm="c")
class DepthwiseNorm(NamedTuple):
    """act(norm(depthwise(x))) with running statistics."""

    x: Stored
    weight: Tensor
    bias: Tensor | None
    norm: RunningNorm
    act: int
    stride: Pair
    padding: Sides


class DepthwiseNormTrain(NamedTuple):
    """`DepthwiseNorm` that keeps what backward needs; with ``batch_stats`` the norm's statistics are the batch's."""

    block: Annotated[DepthwiseNorm, "inline"]
    batch_stats: bool


class DepthwiseNormTrained(NamedTuple):
    """The output, the depthwise convolution y before its norm, and the statistics used."""

    out: Stored
    y: Stored
    stats: Tensor


class DepthwiseNormNeeds(NamedTuple):
    """Which gradients are asked for: x's, the parameters', and of those the bias's.

    With a link x's is computed always: the link's follow.
    """

    x: Annotated[bool, "x", "link"]
    params: Annotated[bool, "weight", "bias", "norm"]
    bias: bool


@shapes(d_out="n c oh ow", x="n c h w", y="n c oh ow", weight="c 1 p+ q+", norm="c", stats="3 c")
class DepthwiseNormBackward(NamedTuple):
    """Backward of `DepthwiseNormTrain`."""

    d_out: Stored
    x: Stored
    y: Stored
    weight: Tensor
    norm: Affine
    stats: Tensor
    act: int
    stride: Pair
    padding: Sides
    batch_stats: bool
    needs: DepthwiseNormNeeds


class DepthwiseNormGradients(NamedTuple):
    """Gradients of `DepthwiseNormTrain`."""

    d_x: Stored
    d_weight: Tensor
    d_bias: Tensor
    d_norm_weight: Tensor
    d_norm_bias: Tensor


@shapes(link="c")
class DepthwiseNormLinked(NamedTuple):
    """`DepthwiseNormTrain` with the batch's statistics, of an input whose norm the op before left to this one."""

    block: Annotated[DepthwiseNorm, "inline"]
    link: Link

    @property
    def batch_stats(self) -> bool:
        """Always."""
        return True


@shapes(link="c")
class DepthwiseNormLinkedBackward(NamedTuple):
    """Backward of `DepthwiseNormLinked`."""

    block: Annotated[DepthwiseNormBackward, "inline"]
    link: Link


class DepthwiseNormLinkedGradients(NamedTuple):
    """Gradients of `DepthwiseNormLinked`."""

    d_x: Stored
    d_weight: Tensor
    d_bias: Tensor
    d_norm_weight: Tensor
    d_norm_bias: Tensor
    d_link_stats: Tensor
    d_link_weight: Tensor
    d_link_bias: Tensor


@shapes(x="n c h w", weight="o c 1 1", bias="o")
class Pointwise(NamedTuple):
    """1×1 convolution: weight (O, C, 1, 1), bias (O,)."""

    x: Stored
    weight: Tensor
    bias: Tensor | None


@shapes(d_out="n o h w", x="n c h w", weight="o c 1 1")
class PointwiseBackward(NamedTuple):
    """Backward of `Pointwise`."""

    d_out: Stored
    x: Stored
    weight: Tensor
    needs: ConvNeeds


@shapes(x="n c h w", dw_weight="c 1 p+ q+", dw_bias="c", norm1="c", pw_weight="o c 1 1", pw_bias="o", norm2="o")
class Separable(NamedTuple):
    """act2(norm2(pointwise(act1(norm1(depthwise(x)))))) with running statistics, either norm or None."""

    x: Stored
    dw_weight: Tensor
    dw_bias: Tensor | None
    norm1: RunningNorm | None
    act1: int
    pw_weight: Tensor
    pw_bias: Tensor | None
    norm2: RunningNorm | None
    act2: int
    stride: Pair
    padding: Sides


class SeparableTrain(NamedTuple):
    """`Separable` that keeps what backward needs; with ``batch_stats`` the norms' statistics are the batch's."""

    block: Annotated[Separable, "inline"]
    batch_stats: bool


def keeps_y1(block: Separable, height: int, width: int) -> bool:
    """Whether training keeps y1, which is ``height`` × ``width``.

    Else backward computes it again, which is possible where nothing follows the depthwise convolution. Above 256
    channels a band of rows and the pointwise weights no longer share an L2, and images below 8×8 are too few rows for a
    product: there keeping y1 is faster.
    """
    bare = block.dw_bias is None and block.norm1 is None and block.act1 == 0
    return not (bare and block.dw_weight.shape[0] <= 256 and height * width >= 64)


class SeparableTrained(NamedTuple):
    """The output, the depthwise and pointwise convolutions y1 and y2 before their norms, and the statistics used.

    y1 is empty where backward computes it again (`keeps_y1`), y2 where nothing follows the pointwise convolution, and
    statistics where there is no norm.
    """

    out: Stored
    y1: Stored
    y2: Stored
    stats1: Tensor
    stats2: Tensor


class SeparableNeeds(NamedTuple):
    """Which gradients are asked for: x's, the depthwise and the pointwise parameters', and of those the biases'."""

    x: Annotated[bool, "x", "link"]
    dw: Annotated[bool, "dw_weight", "dw_bias", "norm1"]
    pw: Annotated[bool, "pw_weight", "pw_bias", "norm2"]
    biases: Annotated[bool, "dw_bias", "pw_bias"]


@shapes(
    d_out="n o oh ow",
    x="n c h w",
    y1=_kept_y1,
    y2=_kept_y2,
    dw_weight="c 1 p+ q+",
    norm1="c",
    stats1=_kept_stats1,
    pw_weight="o c 1 1",
    norm2="o",
    stats2=_kept_stats2,
)
class SeparableBackward(NamedTuple):
    """Backward of `SeparableTrain`."""

    d_out: Stored
    x: Stored
    y1: Stored
    y2: Stored
    dw_weight: Tensor
    norm1: Affine | None
    stats1: Tensor
    act1: int
    pw_weight: Tensor
    norm2: Affine | None
    stats2: Tensor
    act2: int
    stride: Pair
    padding: Sides
    batch_stats: bool
    needs: SeparableNeeds


class SeparableGradients(NamedTuple):
    """Gradients of `SeparableTrain`."""

    d_x: Stored
    d_dw_weight: Tensor
    d_dw_bias: Tensor
    d_norm1_weight: Tensor
    d_norm1_bias: Tensor
    d_pw_weight: Tensor
    d_pw_bias: Tensor
    d_norm2_weight: Tensor
    d_norm2_bias: Tensor


@shapes(_one_last_norm, link="c", left="o")
class SeparableLinked(NamedTuple):
    """`SeparableTrain` with the batch's statistics, linked to the op before, the op after, or both.

    With a ``link`` the input's norm was left to this op. With ``left`` this op leaves its last norm and activation to
    the next: the block has neither norm2 nor act2, and ``stats2`` are those of the output.
    """

    block: Annotated[Separable, "inline"]
    link: Link | None
    left: LeftNorm | None

    @property
    def batch_stats(self) -> bool:
        """Always."""
        return True

    @property
    def leaves(self) -> bool:
        """Whether the last norm is left to the next op."""
        return self.left is not None


@shapes(_one_last_norm, y2=_linked_y2, stats2=_linked_stats2, d_stats2="3 o", link="c")
class SeparableLinkedBackward(NamedTuple):
    """Backward of `SeparableLinked`; where it ``leaves``, y2 is the output, and ``d_stats2`` of its statistics."""

    block: Annotated[SeparableBackward, "inline"]
    d_stats2: Tensor | None
    link: Link | None
    leaves: bool


class SeparableLinkedGradients(NamedTuple):
    """Gradients of `SeparableLinked`; the link's are empty without one."""

    d_x: Stored
    d_dw_weight: Tensor
    d_dw_bias: Tensor
    d_norm1_weight: Tensor
    d_norm1_bias: Tensor
    d_pw_weight: Tensor
    d_pw_bias: Tensor
    d_norm2_weight: Tensor
    d_norm2_bias: Tensor
    d_link_stats: Tensor
    d_link_weight: Tensor
    d_link_bias: Tensor
