# SPDX-License-Identifier: Apache-2.0
"""Losses by torch's own functions and autograd: what every backend is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def classes_of(count: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def center_formula(x: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    return 0.5 * (x - centers[labels]).square().sum()


def triplet_formula(x: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Anchor by anchor, with sums of squares whose gradient at 0 is 0."""
    terms, labels_list = [], labels.tolist()
    ranks = (x.detach()[:, None] - x.detach()[None]).square().sum(2).tolist()
    for a, row in enumerate(ranks):
        others = [i for i, label in enumerate(labels_list) if label == labels_list[a] and i != a]
        negatives = [i for i, label in enumerate(labels_list) if label != labels_list[a]]
        if others and negatives:
            squares = [
                (x[a] - x[i]).square().sum()
                for i in (max(others, key=row.__getitem__), min(negatives, key=row.__getitem__))
            ]
            far, near = (square.sqrt() if square > 0 else square for square in squares)
            terms.append(torch.relu(margin + far - near))
    return torch.stack(terms).mean() if terms else 0 * x.sum()


def upstream(dtype: torch.dtype) -> Tensor:
    return torch.tensor(1.75, dtype=dtype)


def entropy_oracle(logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    wide = logits.detach().double().requires_grad_()
    soft = target.double() if target.is_floating_point() else target
    loss = F.cross_entropy(wide, soft, None if weight is None else weight.double(), label_smoothing=smoothing)
    return loss.detach(), torch.autograd.grad(loss, wide, upstream(torch.float64))[0]
