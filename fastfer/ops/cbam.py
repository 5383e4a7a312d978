# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention: the channel gate, the spatial gate, and both one after the other."""

from __future__ import annotations

from torch import Tensor

from fastfer import _checks
from fastfer.ops.norm import Norm, check_batch, check_norm
from fastfer.reference.cbam import cbam as _cbam
from fastfer.reference.cbam import channel_gate as _channel_gate
from fastfer.reference.cbam import spatial_gate as _spatial_gate

BACKENDS = ("reference",)


def _check_input(op: str, x: Tensor) -> None:
    _checks.image(op, "x", x)
    if min(x.shape[1:]) == 0:
        raise ValueError(f"{op}: x: expected C, H and W >= 1, got shape {tuple(x.shape)}")


def _check_mlp(op: str, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    channels = x.shape[1]
    if _checks.is_tensor(op, "w1", w1).dim() != 2:
        raise ValueError(f"{op}: w1: expected 2 dimensions (H, C), got shape {tuple(w1.shape)}")
    hidden = w1.shape[0]
    _checks.like(op, "w1", w1, x, (hidden, channels))
    _checks.like(op, "b1", b1, x, (hidden,))
    _checks.like(op, "w2", w2, x, (channels, hidden))
    _checks.like(op, "b2", b2, x, (channels,))


def _check_spatial(op: str, x: Tensor, weight: Tensor, norm: Norm, name: str, training: bool) -> None:
    _checks.is_tensor(op, "spatial_weight", weight)
    size = weight.shape[-1] if weight.dim() else 0
    if size % 2 == 0:
        raise ValueError(f"{op}: spatial_weight: expected shape (1, 2, K, K) with K odd, got {tuple(weight.shape)}")
    _checks.like(op, "spatial_weight", weight, x, (1, 2, size, size))
    check_norm(op, name, norm, x, 1)
    if training:
        check_batch(op, x.shape)


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x · sigmoid(mlp(mean) + mlp(max)), the two poolings over (H, W): x (N, C, H, W) -> the same shape, channels_last.

    mlp(v) = w2 · relu(w1 · v + b1) + b2 with w1 (H, C), b1 (H,), w2 (C, H), b2 (C,), H hidden units.
    """
    _check_input("channel_gate", x)
    _check_mlp("channel_gate", x, w1, b1, w2, b2)
    return _channel_gate(x, w1, b1, w2, b2)


def spatial_gate(x: Tensor, spatial_weight: Tensor, norm: Norm, *, training: bool = False) -> Tensor:
    """x · sigmoid(norm(conv([max_c; mean_c]))): x (N, C, H, W) -> the same shape, channels_last.

    spatial_weight (1, 2, K, K), K odd (7 in CBAM), "same" padding; norm over one channel, ``training`` as `batch_norm`.
    """
    _check_input("spatial_gate", x)
    _check_spatial("spatial_gate", x, spatial_weight, norm, "norm", training)
    return _spatial_gate(x, spatial_weight, *norm, training)


def cbam(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    spatial_weight: Tensor,
    spatial_norm: Norm,
    *,
    training: bool = False,
) -> Tensor:
    """spatial_gate(channel_gate(x)): x (N, C, H, W) -> the same shape, channels_last (Woo et al. 2018).

    Arguments as in `channel_gate` and `spatial_gate`. TypeError or ValueError for a wrong dtype, device or shape.
    """
    _check_input("cbam", x)
    _check_mlp("cbam", x, w1, b1, w2, b2)
    _check_spatial("cbam", x, spatial_weight, spatial_norm, "spatial_norm", training)
    return _cbam(x, w1, b1, w2, b2, spatial_weight, *spatial_norm, training)
