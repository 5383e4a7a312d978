# SPDX-License-Identifier: Apache-2.0
"""Centre loss (Wen et al. 2016), batch-hard triplet loss (Hermans et al. 2017), cross-entropy; with gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def check_labels(op: str, labels: Tensor, classes: int) -> None:
    """IndexError unless all labels are in [0, classes)."""
    bad = labels[(labels < 0) | (labels >= classes)]
    if bad.numel():
        raise IndexError(f"{op}: labels: expected 0 <= label < {classes}, got {int(bad[0])}")


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """½ sum_n |x_n - c_y(n)|² (eq. 2): features (N, D), labels (N,) int64, centers (K, D) -> ()."""
    check_labels("center_loss", labels, centers.shape[0])
    return 0.5 * (features - centers[labels]).double().square().sum().to(features.dtype)


def center_loss_backward(
    dloss: Tensor, features: Tensor, labels: Tensor, centers: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of features, x_n - c_y(n), and centers, the class's sum of c - x; those not in ``mask`` are empty."""
    check_labels("center_loss", labels, centers.shape[0])
    diff, none = (features - centers[labels]) * dloss, features.new_empty(0)
    return diff if mask[0] else none, torch.zeros_like(centers).index_add_(0, labels, -diff) if mask[1] else none


def triplet_loss_train(features: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), hardest positive and negative (N, 2) int64 of each anchor, slopes (N, 2).

    The slopes are the loss's derivatives by the two distances, made positive, over the distance: what the difference
    of two rows is multiplied by. An anchor without positive or negative has indices -1; slopes are 0 there, where the
    hinge is closed, and at distance 0.
    """
    count = features.shape[0]
    if not count:
        return features.new_zeros(()), labels.new_empty((0, 2)), features.new_empty((0, 2))
    # Differences, not the expanded square: near rows would cancel in |a|² - 2ab + |b|².
    squares = (features[:, None] - features[None]).square().sum(2)
    # The root has no derivative at 0, where torch's would be NaN.
    distances = torch.where(squares == 0, 0, torch.where(squares == 0, 1, squares).sqrt())
    same = labels[:, None] == labels[None]
    positives = same & ~torch.eye(count, dtype=torch.bool, device=labels.device)
    valid = positives.any(1) & (~same).any(1)
    far, positive = distances.masked_fill(~positives, -1).max(1)
    near, negative = distances.masked_fill(same, torch.inf).min(1)
    hinge = margin + far - near
    share = 1 / valid.sum().clamp(min=1).to(features.dtype)
    active = valid & ~(hinge <= 0)
    loss = torch.where(active, hinge, 0).sum() * share
    pair = torch.stack([far, near], 1)
    slopes = torch.where(active[:, None] & (pair != 0), share / pair, 0)
    indices = torch.where(valid[:, None], torch.stack([positive, negative], 1), -1)
    return loss, indices, slopes


def triplet_loss(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean over anchors a of max(0, margin + max_p |a - p| - min_n |a - n|): features (N, D), labels (N,) -> ()."""
    return triplet_loss_train(features, labels, margin)[0]


def triplet_loss_backward(dloss: Tensor, features: Tensor, pairs: Tensor, slopes: Tensor) -> Tensor:
    """Gradient of the features (N, D)."""
    result = torch.zeros_like(features)
    for column, sign in ((0, 1.0), (1, -1.0)):
        other = pairs[:, column].clamp(min=0)
        slope = (sign * dloss * slopes[:, column])[:, None]
        diff = torch.where(slope != 0, slope * (features - features[other]), 0)
        result += diff
        result.index_add_(0, other, -diff)
    return result


def _target_weights(logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """What each log-probability is multiplied by (N, K), and what the sum is divided by ()."""
    count, classes = logits.shape
    scale = logits.new_ones(classes) if weight is None else weight
    if target.is_floating_point():
        return scale * (target * (1 - smoothing) + smoothing / classes), logits.new_tensor(count)
    check_labels("cross_entropy", target, classes)
    hot = torch.zeros_like(logits).scatter_(1, target[:, None], 1)
    return scale * (hot * (1 - smoothing) + smoothing / classes), scale[target].sum()


def cross_entropy_train(
    logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Loss () and its gradient by the logits (N, K)."""
    factors, total = _target_weights(logits, target, weight, smoothing)
    logs = torch.log_softmax(logits, 1)
    terms = factors * logs
    if not target.is_floating_point() and smoothing == 0:  # 0 · inf: classes without a factor do not take part
        terms = terms.gather(1, target[:, None])
    return -terms.sum() / total, (logs.exp() * factors.sum(1, keepdim=True) - factors) / total


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> Tensor:
    """Mean cross-entropy as `torch.nn.functional.cross_entropy`: logits (N, K), target (N,) int64 or (N, K) -> ()."""
    return cross_entropy_train(logits, target, weight, smoothing)[0]
