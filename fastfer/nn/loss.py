# SPDX-License-Identifier: Apache-2.0
"""Losses as modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastfer.nn._checks import positive
from fastfer.ops.loss import center_loss, cross_entropy, triplet_loss, update_centers_


class CenterLoss(nn.Module):
    """½ sum_n |x_n - c_y(n)|²: features (N, dim), labels (N,) -> (); the caller weighs it (Wen et al. 2016).

    The centres (num_classes, dim) are a buffer that starts at 0. In training a call with gradients enabled moves them
    by the paper's update at rate ``alpha`` after the loss is computed; in evaluation they stay.
    """

    centers: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        alpha: float = 0.5,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "CenterLoss"
        if not 0 <= alpha <= 1:
            raise ValueError(f"{op}: alpha: expected 0 <= alpha <= 1, got {alpha}")
        self.alpha = alpha
        size = (positive(op, "num_classes", num_classes), positive(op, "dim", dim))
        self.register_buffer("centers", torch.zeros(size, device=device, dtype=dtype))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        loss = center_loss(features, labels, self.centers)
        if self.training and torch.is_grad_enabled():
            update_centers_(self.centers, features.detach(), labels, self.alpha)
        return loss

    def extra_repr(self) -> str:
        return f"{self.centers.shape[0]}, {self.centers.shape[1]}, alpha={self.alpha}"


class TripletLoss(nn.Module):
    """Batch-hard triplet loss on Euclidean distances: features (N, D), labels (N,) -> () (Hermans et al. 2017)."""

    def __init__(self, margin: float = 0.3) -> None:
        super().__init__()
        if not margin >= 0:
            raise ValueError(f"TripletLoss: margin: expected a number >= 0, got {margin}")
        self.margin = margin

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return triplet_loss(features, labels, self.margin)

    def extra_repr(self) -> str:
        return f"margin={self.margin}"


class CrossEntropyLoss(nn.Module):
    """``torch.nn.CrossEntropyLoss`` with the mean over the batch: logits (N, K), labels (N,) int64 or (N, K) -> ()."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"CrossEntropyLoss: label_smoothing: expected 0 <= label_smoothing <= 1, got {label_smoothing}"
            )
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, weight=self.weight, label_smoothing=self.label_smoothing)

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}"
