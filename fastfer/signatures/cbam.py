# SPDX-License-Identifier: Apache-2.0
"""Signatures of CBAM and its two gates; formulas in ``csrc/cbam/op.h``. Gradients not asked for are empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from fastfer.signatures.fields import Affine, RunningNorm, Stored
from fastfer.signatures.shapes import Index, shapes

_PIXEL = Index("n c", torch.int32, "h*w")
_CHANNEL = Index("n h w", torch.int32, "c")


def _odd_window(a: Any, sizes: Mapping[str, int]) -> str:
    """The rule that a square window has a middle."""
    return "" if sizes["k"] % 2 else "weight: expected a window of odd size"


@shapes(w1="m+ c", b1="m", w2="c m", b2="c")
class Mlp(NamedTuple):
    """w2 · relu(w1 · v + b1) + b2: w1 (H, C), b1 (H,), w2 (C, H), b2 (C,), H hidden units."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor


@shapes(w1="m+ c", b1="m", w2="c m")
class MlpKept(NamedTuple):
    """What backward needs of an `Mlp`."""

    w1: Tensor
    b1: Tensor
    w2: Tensor


class SpatialLayers(NamedTuple):
    """The spatial gate's layers: a convolution, weight (1, 2, K, K), and a norm of one channel."""

    weight: Tensor
    norm: RunningNorm


@shapes(x="n c+ h+ w+")
class ChannelGate(NamedTuple):
    """x · g, g = sigmoid(mlp(mean) + mlp(max)): x (N, C, H, W)."""

    x: Stored
    mlp: Mlp


@shapes(_odd_window, x="n c+ h+ w+", weight="1 2 k k", norm="1")
class SpatialGate(NamedTuple):
    """x · s, s = sigmoid(norm(conv([max_c; mean_c]))): x (N, C, H, W), weight (1, 2, K, K), a norm of one channel."""

    x: Stored
    weight: Tensor
    norm: RunningNorm


@shapes(_odd_window, x="n c+ h+ w+", weight="1 2 k k", norm="1")
class Cbam(NamedTuple):
    """The channel gate, then the spatial gate."""

    x: Stored
    mlp: Mlp
    weight: Tensor
    norm: RunningNorm


class SpatialGateTrain(NamedTuple):
    """`SpatialGate` that keeps what backward needs; with ``batch_stats`` the statistics are the batch's."""

    block: Annotated[SpatialGate, "inline"]
    batch_stats: bool


class CbamTrain(NamedTuple):
    """`Cbam` that keeps what backward needs; with ``batch_stats`` the statistics are the batch's."""

    block: Annotated[Cbam, "inline"]
    batch_stats: bool


class ChannelGateTrained(NamedTuple):
    """The output; pooled (3, N, C): mean, maximum, g; positions (N, C) int32: the maximum's pixel."""

    out: Stored
    pooled: Tensor
    positions: Tensor


class SpatialGateTrained(NamedTuple):
    """The output; planes (3, N, H, W): max_c, mean_c, the convolution; channels (N, H, W) int32: of the maximum; stats.

    stats (3, 1): mean, 1/sqrt(var + eps), unbiased variance of the convolution.
    """

    out: Stored
    planes: Tensor
    channels: Tensor
    stats: Tensor


class CbamTrained(NamedTuple):
    """The output, and what `ChannelGateTrained` and `SpatialGateTrained` keep."""

    out: Stored
    pooled: Tensor
    positions: Tensor
    planes: Tensor
    channels: Tensor
    stats: Tensor


class ChannelGateNeeds(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    params: Annotated[bool, "mlp"]


class SpatialGateNeeds(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    params: Annotated[bool, "weight", "norm"]


class CbamNeeds(NamedTuple):
    """Which gradients are asked for: x's, those of the channel gate, those of the spatial gate."""

    x: bool
    channel: Annotated[bool, "mlp"]
    spatial: Annotated[bool, "weight", "norm"]


@shapes(d_out="n c h w", x="n c+ h+ w+", pooled="3 n c", positions=_PIXEL)
class ChannelGateBackward(NamedTuple):
    """Backward of `ChannelGate`."""

    d_out: Stored
    x: Stored
    pooled: Tensor
    positions: Tensor
    mlp: MlpKept
    needs: ChannelGateNeeds


@shapes(
    _odd_window,
    d_out="n c h w",
    x="n c+ h+ w+",
    planes="3 n h w",
    channels=_CHANNEL,
    stats="3 1",
    weight="1 2 k k",
    norm="1",
)
class SpatialGateBackward(NamedTuple):
    """Backward of `SpatialGateTrain`."""

    d_out: Stored
    x: Stored
    planes: Tensor
    channels: Tensor
    stats: Tensor
    weight: Tensor
    norm: Affine
    batch_stats: bool
    needs: SpatialGateNeeds


@shapes(
    _odd_window,
    d_out="n c h w",
    x="n c+ h+ w+",
    pooled="3 n c",
    positions=_PIXEL,
    planes="3 n h w",
    channels=_CHANNEL,
    stats="3 1",
    weight="1 2 k k",
    norm="1",
)
class CbamBackward(NamedTuple):
    """Backward of `CbamTrain`."""

    d_out: Stored
    x: Stored
    pooled: Tensor
    positions: Tensor
    planes: Tensor
    channels: Tensor
    stats: Tensor
    mlp: MlpKept
    weight: Tensor
    norm: Affine
    batch_stats: bool
    needs: CbamNeeds


class ChannelGateGradients(NamedTuple):
    """Gradients of `ChannelGate`."""

    d_x: Stored
    d_mlp_w1: Tensor
    d_mlp_b1: Tensor
    d_mlp_w2: Tensor
    d_mlp_b2: Tensor


class SpatialGateGradients(NamedTuple):
    """Gradients of `SpatialGateTrain`."""

    d_x: Stored
    d_weight: Tensor
    d_norm_weight: Tensor
    d_norm_bias: Tensor


class CbamGradients(NamedTuple):
    """Gradients of `CbamTrain`."""

    d_x: Stored
    d_mlp_w1: Tensor
    d_mlp_b1: Tensor
    d_mlp_w2: Tensor
    d_mlp_b2: Tensor
    d_weight: Tensor
    d_norm_weight: Tensor
    d_norm_bias: Tensor


class KeptGates(NamedTuple):
    """What backward of one gate or both needs, for kernels that run all three ops; None for an absent gate."""

    mlp: MlpKept | None = None
    pooled: Tensor | None = None
    positions: Tensor | None = None
    weight: Tensor | None = None
    norm: Affine | None = None
    planes: Tensor | None = None
    channels: Tensor | None = None
    stats: Tensor | None = None


class GatesGradients(NamedTuple):
    """Gradients of one gate or both: empty where not asked for, or where there is no such gate."""

    x: Tensor
    mlp: tuple[Tensor, Tensor, Tensor, Tensor]
    spatial: tuple[Tensor, Tensor, Tensor]
