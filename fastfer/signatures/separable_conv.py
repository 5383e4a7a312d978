# SPDX-License-Identifier: Apache-2.0
"""Signatures of depthwise, pointwise and separable convolutions; formulas in ``csrc/separable_conv/op.h``.

Statistics are (3, C): mean, 1/sqrt(var + eps), unbiased variance. Activations are channels_last. Gradients that are not
asked for are empty.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

from fastfer.signatures.fields import Affine, LeftNorm, Link, Pair, RunningNorm, Sides, Stored


def output_size(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    top, left, bottom, right = padding
    return (
        (x.shape[2] + top + bottom - weight.shape[2]) // stride[0] + 1,
        (x.shape[3] + left + right - weight.shape[3]) // stride[1] + 1,
    )


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
    """Which gradients are asked for: x's, the parameters'. With a link x's is computed always: the link's follow."""

    x: Annotated[bool, "x", "link"]
    params: Annotated[bool, "weight", "bias", "norm"]


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


class DepthwiseNormLinked(NamedTuple):
    """`DepthwiseNormTrain` with the batch's statistics, of an input whose norm the op before left to this one."""

    block: Annotated[DepthwiseNorm, "inline"]
    link: Link

    @property
    def batch_stats(self) -> bool:
        """Always."""
        return True


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


class Pointwise(NamedTuple):
    """1×1 convolution: weight (O, C, 1, 1), bias (O,)."""

    x: Stored
    weight: Tensor
    bias: Tensor | None


class PointwiseBackward(NamedTuple):
    """Backward of `Pointwise`."""

    d_out: Stored
    x: Stored
    weight: Tensor
    needs: ConvNeeds


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
