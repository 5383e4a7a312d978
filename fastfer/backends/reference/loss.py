# SPDX-License-Identifier: Apache-2.0
"""Centre loss (Wen et al. 2016), batch-hard triplet loss (Hermans et al. 2017), cross-entropy; with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

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


def check_labels(op: str, labels: Tensor, classes: int) -> None:
    """IndexError unless all labels are in [0, classes)."""
    bad = labels[(labels < 0) | (labels >= classes)]
    if bad.numel():
        raise IndexError(f"{op}: labels: expected 0 <= label < {classes}, got {int(bad[0])}")


def center_loss(a: Center) -> Tensor:
    """½ sum_n |x_n - c_y(n)|² (eq. 2)."""
    check_labels("center_loss", a.labels, a.centers.shape[0])
    return 0.5 * (a.features - a.centers[a.labels]).double().square().sum().to(a.features.dtype)


def center_loss_backward(a: CenterBackward) -> CenterGradients:
    """Gradients of features, x_n - c_y(n), and centers, the class's sum of c - x."""
    check_labels("center_loss", a.labels, a.centers.shape[0])
    diff, none = (a.features - a.centers[a.labels]) * a.d_out, a.features.new_empty(0)
    return CenterGradients(
        diff if a.needs.features else none,
        torch.zeros_like(a.centers).index_add_(0, a.labels, -diff) if a.needs.centers else none,
    )


def triplet_loss_train(a: Triplet) -> TripletTrained:
    """Loss, hardest positive and negative of each anchor, slopes."""
    features, labels, count = a.features, a.labels, a.features.shape[0]
    if not count:
        return TripletTrained(features.new_zeros(()), labels.new_empty((0, 2)), features.new_empty((0, 2)))
    # Differences, not the expanded square: near rows would cancel in |a|² - 2ab + |b|².
    squares = (features[:, None] - features[None]).square().sum(2)
    # The root has no derivative at 0, where torch's would be NaN.
    distances = torch.where(squares == 0, 0, torch.where(squares == 0, 1, squares).sqrt())
    same = labels[:, None] == labels[None]
    positives = same & ~torch.eye(count, dtype=torch.bool, device=labels.device)
    valid = positives.any(1) & (~same).any(1)
    far, positive = distances.masked_fill(~positives, -1).max(1)
    near, negative = distances.masked_fill(same, torch.inf).min(1)
    hinge = a.margin + far - near
    share = 1 / valid.sum().clamp(min=1).to(features.dtype)
    active = valid & ~(hinge <= 0)
    loss = torch.where(active, hinge, 0).sum() * share
    pair = torch.stack([far, near], 1)
    slopes = torch.where(active[:, None] & (pair != 0), share / pair, 0)
    indices = torch.where(valid[:, None], torch.stack([positive, negative], 1), -1)
    return TripletTrained(loss, indices, slopes)


def triplet_loss(a: Triplet) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|)."""
    return triplet_loss_train(a).loss


def triplet_loss_backward(a: TripletBackward) -> Tensor:
    """Gradient of the features (N, D)."""
    result = torch.zeros_like(a.features)
    for column, sign in ((0, 1.0), (1, -1.0)):
        other = a.pairs[:, column].clamp(min=0)
        slope = (sign * a.d_loss * a.slopes[:, column])[:, None]
        diff = torch.where(slope != 0, slope * (a.features - a.features[other]), 0)
        result += diff
        result.index_add_(0, other, -diff)
    return result


def _target_weights(a: Entropy) -> tuple[Tensor, Tensor]:
    """What each log-probability is multiplied by (N, K), and what the sum is divided by ()."""
    logits, target, weight, smoothing = a
    count, classes = logits.shape
    scale = logits.new_ones(classes) if weight is None else weight
    if target.is_floating_point():
        return scale * (target * (1 - smoothing) + smoothing / classes), logits.new_tensor(count)
    check_labels("cross_entropy", target, classes)
    hot = torch.zeros_like(logits).scatter_(1, target[:, None], 1)
    return scale * (hot * (1 - smoothing) + smoothing / classes), scale[target].sum()


def cross_entropy_train(a: Entropy) -> EntropyTrained:
    """Loss and its derivative by the logits."""
    factors, total = _target_weights(a)
    logs = torch.log_softmax(a.logits, 1)
    terms = factors * logs
    if not a.target.is_floating_point() and a.smoothing == 0:  # 0 · inf: classes without a factor do not take part
        terms = terms.gather(1, a.target[:, None])
    slopes = (logs.exp() * factors.sum(1, keepdim=True) - factors) / total
    return EntropyTrained(-terms.sum() / total, slopes)


def cross_entropy(a: Entropy) -> Tensor:
    """Mean cross-entropy as `torch.nn.functional.cross_entropy`."""
    return cross_entropy_train(a).loss
