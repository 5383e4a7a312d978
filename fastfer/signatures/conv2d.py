# SPDX-License-Identifier: Apache-2.0
"""Signatures of the dense convolution; formulas in ``csrc/conv2d/op.h``.

Statistics are (3, O): mean, 1/sqrt(var + eps), unbiased variance. Activations are channels_last. Gradients that are not
asked for are empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from fastfer.signatures.fields import Affine, LeftNorm, Pair, RunningNorm, Sides, Stored, Window
from fastfer.signatures.shapes import Index, shapes


def _kept_y(a: Conv2dBackward) -> str:
    return "n o oh ow" if a.norm is not None or a.act else "0"


def _kept_stats(a: Conv2dBackward) -> str:
    return "0" if a.norm is None else "3 o"


def _small_pool(a: Conv2dPoolTrain | Conv2dPoolBackward, sizes: Mapping[str, int]) -> str:
    kernel = a.pool.kernel
    return "" if kernel[0] * kernel[1] <= 256 else f"pool_kernel: expected at most 256 elements in {tuple(kernel)}"


@shapes(x="n c h w", weight="o+ c+ p+ q+", bias="o", norm="o")
class Conv2d(NamedTuple):
    """act(norm(convolution(x) + bias)) with running statistics: weight (O, C, KH, KW), bias (O,)."""

    x: Stored
    weight: Tensor
    bias: Tensor | None
    norm: RunningNorm | None
    act: int
    stride: Pair
    padding: Sides


class Conv2dTrain(NamedTuple):
    """`Conv2d` that keeps what backward needs; with ``batch_stats`` the norm's statistics are the batch's."""

    block: Annotated[Conv2d, "inline"]
    batch_stats: bool


class Conv2dTrained(NamedTuple):
    """The output, the convolution y before norm and activation (empty where neither follows), the statistics."""

    out: Stored
    y: Stored
    stats: Tensor


class Conv2dNeeds(NamedTuple):
    """Which gradients are asked for: x's, the parameters', and of those the bias's."""

    x: bool
    params: Annotated[bool, "weight", "bias", "norm"]
    bias: bool


@shapes(d_out="n o oh ow", x="n c h w", y=_kept_y, weight="o+ c+ p+ q+", norm="o", stats=_kept_stats)
class Conv2dBackward(NamedTuple):
    """Backward of `Conv2dTrain`."""

    d_out: Stored
    x: Stored
    y: Stored
    weight: Tensor
    norm: Affine | None
    stats: Tensor
    act: int
    stride: Pair
    padding: Sides
    batch_stats: bool
    needs: Conv2dNeeds


class Conv2dGradients(NamedTuple):
    """Gradients of `Conv2dTrain`."""

    d_x: Stored
    d_weight: Tensor
    d_bias: Tensor
    d_norm_weight: Tensor
    d_norm_bias: Tensor


@shapes(_small_pool, norm_weight="!o")
class Conv2dPoolTrain(NamedTuple):
    """`Conv2dTrain` with max pooling after the activation, windows of at most 256 elements; the norm is never None."""

    block: Annotated[Conv2d, "inline"]
    pool: Window
    batch_stats: bool


class Conv2dPoolTrained(NamedTuple):
    """The pooled output, y, y at the maxima, their places in the windows, and the statistics used."""

    out: Stored
    y: Stored
    best: Stored
    positions: Tensor
    stats: Tensor


@shapes(
    _small_pool,
    d_out="n o ph pw",
    x="n c h w",
    y="n o oh ow",
    best="n o ph pw",
    positions=Index("n o ph pw", torch.uint8),
    weight="o+ c+ p+ q+",
    norm="o",
    stats="3 o",
)
class Conv2dPoolBackward(NamedTuple):
    """Backward of `Conv2dPoolTrain`."""

    d_out: Stored
    x: Stored
    y: Stored
    best: Stored
    positions: Tensor
    weight: Tensor
    norm: Affine
    stats: Tensor
    act: int
    stride: Pair
    padding: Sides
    pool: Window
    batch_stats: bool
    needs: Conv2dNeeds


@shapes(x="n c h w", weight="o+ c+ p+ q+", bias="o", left="o")
class Conv2dLinked(NamedTuple):
    """The convolution in training, whose norm and activation are left to the next op."""

    x: Stored
    weight: Tensor
    bias: Tensor | None
    left: LeftNorm
    stride: Pair
    padding: Sides


class Conv2dLinkedTrained(NamedTuple):
    """The convolution, and its statistics."""

    y: Stored
    stats: Tensor


class Conv2dLinkedNeeds(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    weight: Annotated[bool, "weight", "bias"]
    bias: bool


@shapes(d_y="n o oh ow", d_stats="3 o", x="n c h w", y="n o oh ow", weight="o+ c+ p+ q+", stats="3 o")
class Conv2dLinkedBackward(NamedTuple):
    """Backward of `Conv2dLinked`."""

    d_y: Stored
    d_stats: Tensor | None
    x: Stored
    y: Stored
    weight: Tensor
    stats: Tensor
    stride: Pair
    padding: Sides
    needs: Conv2dLinkedNeeds
