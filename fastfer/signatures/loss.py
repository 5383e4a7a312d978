# SPDX-License-Identifier: Apache-2.0
"""Signatures of the losses; formulas in ``csrc/loss/op.h``. Losses are 0-dim. Gradients not asked for are empty."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastfer.signatures.fields import Stored
from fastfer.signatures.shapes import Index, Line, shapes


def _target(a: Entropy) -> Line:
    return "n k" if a.target.is_floating_point() else Index("n", torch.int64)


@shapes(features="n d", labels=Index("n", torch.int64), centers="k d")
class Center(NamedTuple):
    """Centre loss: features (N, D), labels (N,) int64, centers (K, D)."""

    features: Tensor
    labels: Tensor
    centers: Tensor


class CenterNeeds(NamedTuple):
    """Which gradients are asked for."""

    features: bool
    centers: bool


@shapes(d_out="", features="n d", labels=Index("n", torch.int64), centers="k d")
class CenterBackward(NamedTuple):
    """Backward of `Center`."""

    d_out: Tensor
    features: Tensor
    labels: Tensor
    centers: Tensor
    needs: CenterNeeds


class CenterGradients(NamedTuple):
    """Gradients of `Center`."""

    d_features: Stored
    d_centers: Tensor


@shapes(features="n d", labels=Index("n", torch.int64))
class Triplet(NamedTuple):
    """Batch-hard triplet loss: features (N, D), labels (N,) int64."""

    features: Tensor
    labels: Tensor
    margin: float


class TripletTrained(NamedTuple):
    """The loss, the hardest positive and negative (N, 2) int64 of each anchor, and slopes (N, 2).

    The slopes are the loss's derivatives by the two distances, made positive, over the distance: what the difference
    of two rows is multiplied by. An anchor without positive or negative has indices -1; slopes are 0 there, where the
    hinge is closed, and at distance 0.
    """

    loss: Stored
    pairs: Tensor
    slopes: Tensor


@shapes(d_loss="", features="n d", pairs=Index("n 2", torch.int64, "n", -1), slopes="n 2")
class TripletBackward(NamedTuple):
    """Backward of `Triplet`: the gradient of the features."""

    d_loss: Tensor
    features: Tensor
    pairs: Tensor
    slopes: Tensor


@shapes(logits="n k", target=_target, weight="k")
class Entropy(NamedTuple):
    """Cross-entropy: logits (N, K), target (N,) int64 or soft (N, K), weight (K,)."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    smoothing: float


class EntropyTrained(NamedTuple):
    """The loss and its derivative by the logits (N, K)."""

    loss: Stored
    slopes: Stored


class EntropyBackward(NamedTuple):
    """Backward of `Entropy`: the gradient of the logits."""

    d_loss: Tensor
    slopes: Tensor
