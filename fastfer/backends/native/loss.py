# SPDX-License-Identifier: Apache-2.0
"""Centre loss, triplet loss and cross-entropy on the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import flat
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


def _labels(op: str, labels: Tensor, classes: int) -> Tensor:
    """A copy of ``labels``, which no other thread changes later; IndexError unless all are in [0, classes)."""
    labels = labels.clone(memory_format=torch.contiguous_format)
    params = _C.LabelParams(count=labels.shape[0], classes=classes, labels=labels)
    try:
        _C.check_labels(False, params)
    except IndexError as error:
        raise IndexError(f"{op}: {error}") from None
    return labels


def center_loss(a: Center) -> Tensor:
    """½ sum_n |x_n - c_y(n)|²."""
    (count, dim), classes = a.features.shape, a.centers.shape[0]
    features, centers = a.features.contiguous(), a.centers.contiguous()
    labels = _labels("center_loss", a.labels, classes)
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


def center_loss_backward(a: CenterBackward) -> CenterGradients:
    """Gradients of features and centers."""
    (count, dim), classes = a.features.shape, a.centers.shape[0]
    features, centers = a.features.contiguous(), a.centers.contiguous()
    labels = _labels("center_loss", a.labels, classes)
    d_features = torch.empty_like(features) if a.needs.features else None
    d_centers = torch.empty_like(centers) if a.needs.centers else None
    params = _C.CenterParams(
        count=count,
        dim=dim,
        classes=classes,
        features=features,
        labels=labels,
        centers=centers,
        dloss=a.d_out,
        d_features=d_features,
        d_centers=d_centers,
        threads=num_threads(),
    )
    _C.center_loss_bwd(features.dtype == torch.float64, params)
    return CenterGradients(*(features.new_empty(0) if grad is None else grad for grad in (d_features, d_centers)))


def _triplet(a: Triplet, train: bool) -> TripletTrained:
    count, dim = a.features.shape
    features, labels = a.features.contiguous(), a.labels.contiguous()
    loss = features.new_empty(())
    pairs, slopes = (labels.new_empty((count, 2)), features.new_empty((count, 2))) if train else (labels, features)
    params = _C.TripletParams(
        count=count,
        dim=dim,
        features=features,
        labels=labels,
        margin=a.margin,
        loss=loss,
        pairs=pairs if train else None,
        slopes=slopes if train else None,
        threads=num_threads(),
    )
    _C.triplet_loss_fwd(features.dtype == torch.float64, params)
    return TripletTrained(loss, pairs, slopes)


def triplet_loss(a: Triplet) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|)."""
    return _triplet(a, False).loss


def triplet_loss_train(a: Triplet) -> TripletTrained:
    """Loss, hardest positive and negative, slopes."""
    return _triplet(a, True)


def triplet_loss_backward(a: TripletBackward) -> Tensor:
    """Gradient of the features."""
    count, dim = a.features.shape
    features = a.features.contiguous()
    d_features = torch.empty_like(features)
    params = _C.TripletParams(
        count=count,
        dim=dim,
        features=features,
        pairs=a.pairs,
        slopes=a.slopes,
        dloss=a.d_loss,
        d_features=d_features,
        threads=num_threads(),
    )
    _C.triplet_loss_bwd(features.dtype == torch.float64, params)
    return d_features


def _entropy(a: Entropy, train: bool) -> EntropyTrained:
    (count, classes), soft = a.logits.shape, a.target.is_floating_point()
    target = a.target.contiguous() if soft else _labels("cross_entropy", a.target, classes)
    logits, weight = a.logits.contiguous(), flat(a.weight)
    loss = logits.new_empty(())
    slopes = torch.empty_like(logits) if train else logits
    params = _C.CrossEntropyParams(
        count=count,
        classes=classes,
        logits=logits,
        labels=None if soft else target,
        targets=target if soft else None,
        weight=weight,
        smoothing=a.smoothing,
        loss=loss,
        d_logits=slopes if train else None,
        threads=num_threads(),
    )
    _C.cross_entropy_fwd(logits.dtype == torch.float64, params)
    return EntropyTrained(loss, slopes)


def cross_entropy(a: Entropy) -> Tensor:
    """Mean cross-entropy."""
    return _entropy(a, False).loss


def cross_entropy_train(a: Entropy) -> EntropyTrained:
    """Loss and its derivative by the logits."""
    return _entropy(a, True)
