# SPDX-License-Identifier: Apache-2.0
"""Signatures of the inverted bottleneck; formulas in ``csrc/bottleneck/op.h``. Gradients not asked for are empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from torch import Tensor

from fastfer.signatures.fields import Affine, Pair, RunningNorm, Sides, Stored
from fastfer.signatures.shapes import shapes


def _norm3(a: Bottleneck | BottleneckBackward) -> str:
    return "-" if a.project_weight is None else "!o"


def _kept_out(a: BottleneckBackward) -> str:
    return "n i oh ow" if a.project_weight is None else "n o oh ow"


def _kept_y2(a: BottleneckBackward) -> str:
    return "0" if a.project_weight is None else "n o oh ow"


def _kept_stats3(a: BottleneckBackward) -> str:
    return "0" if a.project_weight is None else "3 o"


def _kept_covariance(a: BottleneckBackward) -> str:
    return "i+1 c" if a.batch_stats and a.x.is_cpu else "0"


def _adds_alike(a: Bottleneck | BottleneckBackward, sizes: Mapping[str, int]) -> str:
    s = sizes
    alike = a.project_weight is not None and (s["o"], s["oh"], s["ow"]) == (s["c"], s["h"], s["w"])
    return "" if alike or not a.residual else "residual: expected a projection of x's shape"


@shapes(
    _adds_alike,
    x="n c h w",
    expand_weight="i+ c+ 1 1",
    norm1="i",
    dw_weight="i 1 p+ q+",
    norm2="i",
    project_weight="o+ i 1 1",
    norm3=_norm3,
)
class Bottleneck(NamedTuple):
    """norm3(project(a)) (+ x with ``residual``), a = act(norm2(depthwise(act(norm1(expand(x)))))); a without project.

    expand_weight (E, C, 1, 1), dw_weight (E, 1, KH, KW), project_weight (O, E, 1, 1) with norm3, or both None.
    """

    x: Stored
    expand_weight: Tensor
    norm1: RunningNorm
    dw_weight: Tensor
    norm2: RunningNorm
    project_weight: Tensor | None
    norm3: RunningNorm | None
    act: int
    residual: bool
    stride: Pair
    padding: Sides


class BottleneckTrain(NamedTuple):
    """`Bottleneck` that keeps what backward needs; with ``batch_stats`` the norms' statistics are the batch's."""

    block: Annotated[Bottleneck, "inline"]
    batch_stats: bool


class BottleneckTrained(NamedTuple):
    """The output, the depthwise convolution and the projection before their norms, and the statistics used.

    ``covariance`` (E + 1, C) is that of the expansion with x, its last row the mean of x, where a CPU trains with batch
    statistics, else empty. Statistics are (3, channels): mean, 1/sqrt(var + eps), unbiased variance. y2 and its
    statistics are empty without a projection.
    """

    out: Stored
    y1: Stored
    y2: Stored
    covariance: Tensor
    stats1: Tensor
    stats2: Tensor
    stats3: Tensor


class BottleneckNeeds(NamedTuple):
    """Which gradients are asked for: x's, the parameters'."""

    x: bool
    params: Annotated[bool, "expand_weight", "norm1", "dw_weight", "norm2", "project_weight", "norm3"]


@shapes(
    _adds_alike,
    d_out=_kept_out,
    x="n c h w",
    y1="n i oh ow",
    y2=_kept_y2,
    covariance=_kept_covariance,
    expand_weight="i+ c+ 1 1",
    norm1="i",
    stats1="3 i",
    dw_weight="i 1 p+ q+",
    norm2="i",
    stats2="3 i",
    project_weight="o+ i 1 1",
    norm3=_norm3,
    stats3=_kept_stats3,
)
class BottleneckBackward(NamedTuple):
    """Backward of `BottleneckTrain`."""

    d_out: Stored
    x: Stored
    y1: Stored
    y2: Stored
    covariance: Tensor
    expand_weight: Tensor
    norm1: Affine
    stats1: Tensor
    dw_weight: Tensor
    norm2: Affine
    stats2: Tensor
    project_weight: Tensor | None
    norm3: Affine | None
    stats3: Tensor
    act: int
    residual: bool
    stride: Pair
    padding: Sides
    batch_stats: bool
    needs: BottleneckNeeds


class BottleneckGradients(NamedTuple):
    """Gradients of `BottleneckTrain`."""

    d_x: Stored
    d_expand_weight: Tensor
    d_norm1_weight: Tensor
    d_norm1_bias: Tensor
    d_dw_weight: Tensor
    d_norm2_weight: Tensor
    d_norm2_bias: Tensor
    d_project_weight: Tensor
    d_norm3_weight: Tensor
    d_norm3_bias: Tensor
