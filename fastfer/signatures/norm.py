# SPDX-License-Identifier: Apache-2.0
"""Signatures of batch normalisation with an activation; formulas in ``csrc/norm/op.h``."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from torch import Tensor

from fastfer.signatures.fields import Affine, RunningNorm, Stored
from fastfer.signatures.shapes import shapes


@shapes(x="n c h w", norm="c")
class BatchNorm(NamedTuple):
    """act((x - mean) / sqrt(var + eps) · weight + bias), channel by channel, with running statistics: channels_last."""

    x: Stored
    norm: RunningNorm
    act: int


class BatchNormTrain(NamedTuple):
    """`BatchNorm` that keeps what backward needs; with ``batch_stats`` the statistics are the batch's."""

    block: Annotated[BatchNorm, "inline"]
    batch_stats: bool


class BatchNormTrained(NamedTuple):
    """The output, and statistics (3, C): mean, 1/sqrt(var + eps), unbiased variance."""

    out: Stored
    stats: Tensor


class BatchNormNeeds(NamedTuple):
    """Which gradients are asked for: x's, the parameters'. The others are empty."""

    x: bool
    params: Annotated[bool, "norm"]


@shapes(d_out="n c h w", x="n c h w", norm="c", stats="3 c")
class BatchNormBackward(NamedTuple):
    """Backward of `BatchNormTrain`."""

    d_out: Stored
    x: Stored
    norm: Affine
    stats: Tensor
    act: int
    batch_stats: bool
    needs: BatchNormNeeds


class BatchNormGradients(NamedTuple):
    """Gradients of `BatchNormTrain`."""

    d_x: Stored
    d_norm_weight: Tensor
    d_norm_bias: Tensor
