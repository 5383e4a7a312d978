# SPDX-License-Identifier: Apache-2.0
"""Centre loss, triplet loss and cross-entropy on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads


def _labels(op: str, labels: Tensor, classes: int) -> Tensor:
    """A copy of ``labels``, which no other thread changes later; IndexError unless all are in [0, classes)."""
    labels = labels.clone(memory_format=torch.contiguous_format)
    bad = _C.first_outside(labels.data_ptr(), labels.shape[0], classes)
    if bad >= 0:
        raise IndexError(f"{op}: labels: expected 0 <= label < {classes}, got {int(labels[bad])}")
    return labels


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """½ sum_n |x_n - c_y(n)|²."""
    (count, dim), classes = features.shape, centers.shape[0]
    features, centers, labels = features.contiguous(), centers.contiguous(), _labels("center_loss", labels, classes)
    loss = features.new_empty(())
    params = _C.CenterParams(
        count=count,
        dim=dim,
        classes=classes,
        features=features,
        labels=labels,
        centers=centers,
        loss=loss,
        threads=num_threads(),
    )
    _C.center_loss_fwd(features.dtype == torch.float64, params)
    return loss


def center_loss_backward(
    dloss: Tensor, features: Tensor, labels: Tensor, centers: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of features and centers; those not in ``mask`` are empty."""
    (count, dim), classes = features.shape, centers.shape[0]
    features, centers, labels = features.contiguous(), centers.contiguous(), _labels("center_loss", labels, classes)
    d_features, d_centers = (
        torch.empty_like(t) if wanted else None for wanted, t in zip(mask, (features, centers), strict=True)
    )
    params = _C.CenterParams(
        count=count,
        dim=dim,
        classes=classes,
        features=features,
        labels=labels,
        centers=centers,
        dloss=dloss,
        d_features=d_features,
        d_centers=d_centers,
        threads=num_threads(),
    )
    _C.center_loss_bwd(features.dtype == torch.float64, params)
    none = features.new_empty(0)
    return none if d_features is None else d_features, none.clone() if d_centers is None else d_centers


def _triplet(features: Tensor, labels: Tensor, margin: float, train: bool) -> tuple[Tensor, Tensor, Tensor]:
    count, dim = features.shape
    features, labels = features.contiguous(), labels.contiguous()
    loss = features.new_empty(())
    pairs, slopes = (labels.new_empty((count, 2)), features.new_empty((count, 2))) if train else (labels, features)
    params = _C.TripletParams(
        count=count,
        dim=dim,
        features=features,
        labels=labels,
        margin=margin,
        loss=loss,
        pairs=pairs if train else None,
        slopes=slopes if train else None,
        threads=num_threads(),
    )
    _C.triplet_loss_fwd(features.dtype == torch.float64, params)
    return loss, pairs, slopes


def triplet_loss(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|)."""
    return _triplet(features, labels, margin, False)[0]


def triplet_loss_train(features: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, hardest positive and negative (N, 2) and slopes (N, 2), as in ``fastfer.backends.reference.loss``."""
    return _triplet(features, labels, margin, True)


def triplet_loss_backward(dloss: Tensor, features: Tensor, pairs: Tensor, slopes: Tensor) -> Tensor:
    """Gradient of the features."""
    count, dim = features.shape
    features = features.contiguous()
    d_features = torch.empty_like(features)
    params = _C.TripletParams(
        count=count,
        dim=dim,
        features=features,
        pairs=pairs,
        slopes=slopes,
        dloss=dloss,
        d_features=d_features,
        threads=num_threads(),
    )
    _C.triplet_loss_bwd(features.dtype == torch.float64, params)
    return d_features


def _entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, train: bool
) -> tuple[Tensor, Tensor]:
    (count, classes), soft = logits.shape, target.is_floating_point()
    target = target.contiguous() if soft else _labels("cross_entropy", target, classes)
    logits, weight = logits.contiguous(), None if weight is None else weight.contiguous()
    loss = logits.new_empty(())
    grad = torch.empty_like(logits) if train else logits
    params = _C.CrossEntropyParams(
        count=count,
        classes=classes,
        logits=logits,
        labels=None if soft else target,
        targets=target if soft else None,
        weight=weight,
        smoothing=smoothing,
        loss=loss,
        d_logits=grad if train else None,
        threads=num_threads(),
    )
    _C.cross_entropy_fwd(logits.dtype == torch.float64, params)
    return loss, grad


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> Tensor:
    """Mean cross-entropy."""
    return _entropy(logits, target, weight, smoothing, False)[0]


def cross_entropy_train(
    logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Loss and its gradient by the logits (N, K)."""
    return _entropy(logits, target, weight, smoothing, True)
