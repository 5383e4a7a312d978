# SPDX-License-Identifier: Apache-2.0
"""Centre loss, triplet loss and cross-entropy on Numba, with the functions of the reference backend."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastfer.backends.numba import _losses
from fastfer.backends.numba._numba import Array, chunks
from fastfer.signatures.loss import (
    Center,
    CenterBackward,
    CenterGradients,
    Entropy,
    EntropyTrained,
    Triplet,
    TripletBackward,
    TripletTrained,
)

_COLUMNS = 64
"""Columns of a block in backward, at least: whole registers of every CPU."""


def _starts(items: int, count: int) -> Array:
    return np.arange(count + 1, dtype=np.int64) * items // count


def _labels(op: str, labels: Tensor, classes: int) -> Tensor:
    """A copy of ``labels``, which no other thread changes later; IndexError unless all are in [0, classes)."""
    labels = labels.clone(memory_format=torch.contiguous_format)
    values = labels.numpy()
    if values.size and not (values.min() >= 0 and values.max() < classes):
        bad = int(values[(values < 0) | (values >= classes)][0])
        raise IndexError(f"{op}: labels: expected 0 <= label < {classes}, got {bad}")
    return labels


def _columns(dim: int, work: int) -> tuple[int, Array]:
    """Number of blocks of columns and where they start."""
    count = chunks(-(-dim // _COLUMNS), work)
    return count, np.minimum(_starts(-(-dim // _COLUMNS), count) * _COLUMNS, dim)


def center_loss(a: Center) -> Tensor:
    """½ sum_n |x_n - c_y(n)|²."""
    features, centers = a.features, a.centers
    labels = _labels("center_loss", a.labels, centers.shape[0])
    rows, dim = features.shape
    count = chunks(rows, features.numel())
    parts = np.zeros(count)
    if features.numel():
        _losses.center_forward(
            features.dtype,
            count,
            features.numel(),
            parts,
            features.contiguous(),
            centers.contiguous(),
            labels.contiguous(),
            _starts(rows, count),
            dim,
        )
    return torch.full((), 0.5 * float(parts.sum()), dtype=features.dtype, device="cpu")


def center_loss_backward(a: CenterBackward) -> CenterGradients:
    """Gradients of features and centers."""
    features, centers = a.features, a.centers
    labels = _labels("center_loss", a.labels, centers.shape[0])
    d_features = features.new_empty(features.shape if a.needs.features else 0)
    d_centers = centers.new_zeros(centers.shape if a.needs.centers else 0)
    count, starts = _columns(features.shape[1], features.numel())
    if features.numel():
        _losses.center_backward(
            features.dtype,
            count,
            features.numel(),
            d_features,
            d_centers,
            features.contiguous(),
            centers.contiguous(),
            a.d_out,
            labels.contiguous(),
            starts,
            features.shape[1],
        )
    return CenterGradients(d_features, d_centers)


def triplet_loss_train(a: Triplet) -> TripletTrained:
    """Loss, hardest positive and negative, slopes."""
    features, labels, margin = a
    rows, dim = features.shape
    squares, pairs = torch.zeros((rows, 2), dtype=torch.float64, device="cpu"), labels.new_full((rows, 2), -1)
    work = rows * rows * max(dim, 1)
    count = chunks(rows, work)
    if rows:
        _losses.mine(
            features.dtype,
            count,
            work,
            squares,
            pairs,
            features.contiguous(),
            labels.contiguous(),
            _starts(rows, count),
            dim,
        )
    valid = (pairs >= 0).all(1)
    distances, share = squares.sqrt(), 1 / valid.sum().clamp(min=1).double()
    hinge = margin + distances[:, 0] - distances[:, 1]
    active = valid & ~(hinge <= 0)
    loss = torch.where(active, hinge, 0).sum() * share
    slopes = torch.where(active[:, None] & (distances != 0), share / distances, 0)
    pairs[~valid] = -1
    return TripletTrained(loss.to(features.dtype), pairs, slopes.to(features.dtype))


def triplet_loss(a: Triplet) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|)."""
    return triplet_loss_train(a).loss


def triplet_loss_backward(a: TripletBackward) -> Tensor:
    """Gradient of the features."""
    features = a.features
    grads = features.new_zeros(features.shape)
    count, starts = _columns(features.shape[1], features.numel())
    if features.numel():
        signed = a.slopes * torch.stack([a.d_loss, -a.d_loss])
        _losses.triplet_backward(
            features.dtype,
            count,
            features.numel(),
            grads,
            features.contiguous(),
            signed,
            a.pairs,
            starts,
            features.shape[1],
        )
    return grads


def _entropy(a: Entropy, train: bool) -> EntropyTrained:
    logits, target, weight, smoothing = a
    (rows, classes), soft = logits.shape, target.is_floating_point()
    if not soft:
        target = _labels("cross_entropy", target, classes)
    total = float(rows)
    if not soft and weight is not None:
        total = float(weight.detach().numpy()[target.numpy()].sum(dtype=np.float64))
    grad, target = logits.new_empty(logits.shape if train else 0), target.contiguous()
    weight = None if weight is None else weight.contiguous()
    work = 32 * logits.numel()
    count = chunks(rows, work)
    parts = np.zeros(count)
    if rows:
        settings = np.array([smoothing, total])
        _losses.entropy(
            logits.dtype,
            count,
            work,
            parts,
            grad,
            logits.contiguous(),
            target if soft else None,
            weight,
            settings,
            None if soft else target,
            _starts(rows, count),
            classes,
        )
    with np.errstate(all="ignore"):
        loss = parts.sum() / np.float64(total)
    return EntropyTrained(torch.full((), float(loss), dtype=logits.dtype, device="cpu"), grad)


def cross_entropy(a: Entropy) -> Tensor:
    """Mean cross-entropy."""
    return _entropy(a, False).loss


def cross_entropy_train(a: Entropy) -> EntropyTrained:
    """Loss and its derivative by the logits."""
    return _entropy(a, True)
