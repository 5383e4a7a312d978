# SPDX-License-Identifier: Apache-2.0
"""Signatures of coordinate attention and its pooling; formulas in ``csrc/coordinate/op.h``.

A position is a row or a column: the N·H rows of all images, then their N·W columns. Gradients not asked for are empty.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

from fastfer.signatures.fields import Affine, RunningNorm, Stored
from fastfer.signatures.shapes import shapes


def _places(a: CoordinateBackward) -> str:
    return "n*(h+w) c" if a.kind else "0"


@shapes(x="n c h+ w+")
class LinePool(NamedTuple):
    """Means and maxima of the rows and columns of x (N, C, H, W)."""

    x: Stored


class LinePooled(NamedTuple):
    """Of rows (N, C, H), then of columns (N, C, W); channels adjoin."""

    row_mean: Stored
    row_max: Stored
    col_mean: Stored
    col_max: Stored


@shapes(d_row_mean="n c h", d_row_max="n c h", d_col_mean="n c w", d_col_max="n c w", x="n c h+ w+")
class LinePoolBackward(NamedTuple):
    """Backward of `LinePool`: the gradient of x."""

    d_row_mean: Stored
    d_row_max: Stored
    d_col_mean: Stored
    d_col_max: Stored
    x: Stored


@shapes(
    x="n c+ h+ w+",
    weight="m+ c 1 1",
    bias="m",
    norm="m",
    h_weight="c m 1 1",
    h_bias="c",
    w_weight="c m 1 1",
    w_bias="c",
)
class Coordinate(NamedTuple):
    """x · g_h · g_w, g = sigmoid(w · act(norm(weight · pooled + bias)) + b) for rows and for columns.

    weight (M, C, 1, 1), bias (M,), h_weight and w_weight (C, M, 1, 1), their biases (C,); ``kind`` 0 is "ca", 1
    "maxca", 2 "cpsca".
    """

    x: Stored
    weight: Tensor
    bias: Tensor
    norm: RunningNorm
    act: int
    h_weight: Tensor
    h_bias: Tensor
    w_weight: Tensor
    w_bias: Tensor
    kind: int


class CoordinateTrain(NamedTuple):
    """`Coordinate` that keeps what backward needs; with ``batch_stats`` the norm's statistics are the batch's."""

    block: Annotated[Coordinate, "inline"]
    batch_stats: bool


class CoordinateTrained(NamedTuple):
    """The output and, by position, the pooled values, where along its row or column each maximum lies (empty for
    "ca"), the convolution y before the norm and the gates; the statistics (3, M)."""

    out: Stored
    pooled: Tensor
    at: Tensor
    y: Tensor
    gates: Tensor
    stats: Tensor


class CoordinateNeeds(NamedTuple):
    """Which gradients are asked for: x's, the parameters'."""

    x: bool
    params: Annotated[bool, "weight", "bias", "norm", "h_weight", "h_bias", "w_weight", "w_bias"]


@shapes(
    d_out="n c h w",
    x="n c+ h+ w+",
    pooled="n*(h+w) c",
    at=_places,
    y="n*(h+w) m",
    gates="n*(h+w) c",
    stats="3 m",
    weight="m+ c 1 1",
    norm="m",
    h_weight="c m 1 1",
    w_weight="c m 1 1",
)
class CoordinateBackward(NamedTuple):
    """Backward of `CoordinateTrain`."""

    d_out: Stored
    x: Stored
    pooled: Tensor
    at: Tensor
    y: Tensor
    gates: Tensor
    stats: Tensor
    weight: Tensor
    norm: Affine
    act: int
    h_weight: Tensor
    w_weight: Tensor
    kind: int
    batch_stats: bool
    needs: CoordinateNeeds


class CoordinateGradients(NamedTuple):
    """Gradients of `CoordinateTrain`."""

    d_x: Stored
    d_weight: Tensor
    d_bias: Tensor
    d_norm_weight: Tensor
    d_norm_bias: Tensor
    d_h_weight: Tensor
    d_h_bias: Tensor
    d_w_weight: Tensor
    d_w_bias: Tensor
