# SPDX-License-Identifier: Apache-2.0
"""Losses on a batch: centre loss, batch-hard triplet loss, cross-entropy; each a 0-dim tensor.

Saved for backward: centre loss its inputs (a copy of the centres, which an update may change before backward);
triplet loss the features and 24 bytes a sample; cross-entropy the gradient of the logits, which backward only scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.signatures.loss import (
    Center,
    CenterBackward,
    CenterGradients,
    CenterNeeds,
    Entropy,
    EntropyBackward,
    EntropyTrained,
    Triplet,
    TripletBackward,
    TripletTrained,
)


def _dense(t: Tensor, wanted: bool = True) -> Tensor:
    return t.new_empty(t.shape if wanted else 0)


def _fake_loss(a: Center | Triplet) -> Tensor:
    return a.features.new_empty(())


def _fake_center_backward(a: CenterBackward) -> CenterGradients:
    return CenterGradients(_dense(a.features, a.needs.features), _dense(a.centers, a.needs.centers))


def _fake_triplet_train(a: Triplet) -> TripletTrained:
    pairs = (a.features.shape[0], 2)
    return TripletTrained(_fake_loss(a), a.labels.new_empty(pairs), a.features.new_empty(pairs))


def _fake_triplet_backward(a: TripletBackward) -> Tensor:
    return _dense(a.features)


def _fake_entropy(a: Entropy) -> Tensor:
    return a.logits.new_empty(())


def _fake_entropy_train(a: Entropy) -> EntropyTrained:
    return EntropyTrained(_fake_entropy(a), _dense(a.logits))


def _keep_center(a: Center, out: Tensor) -> tuple[Center, Tensor]:
    return a._replace(centers=a.centers.clone()), out


def _entropy_grad(a: EntropyBackward) -> Tensor:
    return a.d_loss * a.slopes


_center = _library.define("center_loss", "loss", Center, Tensor, _fake_loss)
_center_backward = _library.define(
    "center_loss_backward", "loss", CenterBackward, CenterGradients, _fake_center_backward
)
_triplet = _library.define("triplet_loss", "loss", Triplet, Tensor, _fake_loss)
_triplet_train = _library.define("triplet_loss_train", "loss", Triplet, TripletTrained, _fake_triplet_train)
_triplet_backward = _library.define("triplet_loss_backward", "loss", TripletBackward, Tensor, _fake_triplet_backward)
_entropy = _library.define("cross_entropy", "loss", Entropy, Tensor, _fake_entropy)
_entropy_train = _library.define("cross_entropy_train", "loss", Entropy, EntropyTrained, _fake_entropy_train)
_library.autograd(_center, _center_backward, kept=_keep_center)
_library.autograd(_triplet_train, _triplet_backward)
_library.autograd(_entropy_train, _entropy_grad, takes=EntropyBackward, returns=Tensor)
for _op in (_center, _triplet, _triplet_train, _entropy, _entropy_train):
    _library.autocast(_op)  # losses in float32, as torch


def _rows(op: str, arg: str, x: object) -> Tensor:
    t = _checks.floating(op, arg, x)
    if t.dim() != 2:
        raise ValueError(f"{op}: {arg}: expected 2 dimensions, got shape {tuple(t.shape)}")
    return t


def _labels(op: str, labels: object, ref: Tensor, ref_name: str, arg: str = "labels") -> Tensor:
    t = _checks.is_tensor(op, arg, labels)
    if t.dtype != torch.int64:
        raise TypeError(f"{op}: {arg}: expected dtype int64, got {str(t.dtype).removeprefix('torch.')}")
    if tuple(t.shape) != (ref.shape[0],):
        raise ValueError(f"{op}: {arg}: expected shape ({ref.shape[0]},), got {tuple(t.shape)}")
    if t.device != ref.device:
        raise ValueError(f"{op}: {arg}: expected device {ref.device} as {ref_name}, got {t.device}")
    return t


def _check_center(op: str, features: Tensor, labels: Tensor, centers: Tensor) -> None:
    _rows(op, "features", features)
    _labels(op, labels, features, "features")
    if _checks.is_tensor(op, "centers", centers).dim() != 2:
        raise ValueError(f"{op}: centers: expected shape (K, {features.shape[1]}), got {tuple(centers.shape)}")
    _checks.like(op, "centers", centers, features, (centers.shape[0], features.shape[1]), "features")


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """½ sum_n |x_n - c_y(n)|², a sum and not a mean: features (N, D), labels (N,) int64, centers (K, D) -> ().

    float32 or float64. Gradients flow to the features and, where they require one, to the centres; the paper learns
    those by `update_centers_` instead. Raises TypeError or ValueError naming the argument, IndexError for a label
    outside [0, K). Source: Wen et al. 2016, eq. 2 and 3.
    """
    _check_center("center_loss", features, labels, centers)
    return _center(Center(features, labels, centers))


@torch.no_grad()
def update_centers_(centers: Tensor, features: Tensor, labels: Tensor, alpha: float = 0.5) -> Tensor:
    """c_j -= alpha · sum_(y=j)(c_j - x_n) / (1 + number of y=j), in place; returns ``centers``.

    Arguments as in `center_loss`; 0 <= alpha <= 1 is the centres' learning rate. Source: Wen et al. 2016, eq. 4.
    """
    op = "update_centers_"
    _check_center(op, features, labels, centers)
    if not 0 <= alpha <= 1:
        raise ValueError(f"{op}: alpha: expected 0 <= alpha <= 1, got {alpha}")
    one = torch.ones((), dtype=centers.dtype, device=centers.device)
    needs = CenterNeeds(features=False, centers=True)
    sums = _center_backward(CenterBackward(one, features.to(centers.dtype), labels, centers, needs)).d_centers
    counts = centers.new_ones(centers.shape[0]).index_add_(0, labels, one.expand(labels.shape[0]))
    return centers.sub_(sums / counts[:, None], alpha=alpha)


def triplet_loss(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|): features (N, D), labels (N,) int64 -> ().

    Batch-hard mining: of each anchor's class the farthest other sample p, of the other classes the nearest n, by
    Euclidean distance (not squared: it is the better one in the paper). Anchors without a p or an n are left out of the
    mean; without any anchor the loss is 0. Among equally hard samples the first one gets the gradient; a distance of 0
    passes none. float32 or float64; raises TypeError or ValueError naming the argument.
    Source: Hermans et al. 2017, eq. 5.
    """
    op = "triplet_loss"
    _rows(op, "features", features)
    _labels(op, labels, features, "features")
    if not margin >= 0:
        raise ValueError(f"{op}: margin: expected a number >= 0, got {margin}")
    triplet = Triplet(features, labels, margin)
    return _triplet_train(triplet).loss if _triplet_train.needs_gradient(triplet) else _triplet(triplet)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy as `torch.nn.functional.cross_entropy`: logits (N, K), labels (N,) int64 or (N, K) -> ().

    weight (K,) multiplies each class's terms, and with integer labels the mean is over the weights of the labels. Soft
    labels (N, K) have the dtype of the logits and sum to one. float32 or float64. There is no ``ignore_index``. Raises
    TypeError or ValueError naming the argument, IndexError for a label outside [0, K). Gradients flow to the logits.
    """
    op = "cross_entropy"
    _rows(op, "logits", logits)
    if not logits.shape[1]:
        raise ValueError(f"{op}: logits: expected at least one class, got shape {tuple(logits.shape)}")
    if _checks.is_tensor(op, "labels", labels).is_floating_point():
        _checks.like(op, "labels", labels, logits, logits.shape, "logits", stored=True)
        if labels.requires_grad:
            raise ValueError(f"{op}: labels: expected soft labels that require no gradient")
    else:
        _labels(op, labels, logits, "logits")
    if weight is not None:
        _checks.like(op, "weight", weight, logits, (logits.shape[1],), "logits")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing: expected 0 <= label_smoothing <= 1, got {label_smoothing}")
    fields = Entropy(logits, labels, weight, label_smoothing)
    if _library.gradients_on() and logits.requires_grad:  # a weight that requires a gradient gets none
        return _entropy_train(fields).loss
    return _entropy(fields)
