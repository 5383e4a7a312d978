# SPDX-License-Identifier: Apache-2.0
"""The loss family at the training batches of the networks against eager PyTorch: forward, and with gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases import Case, parametrize
from bench.contenders import Problem, seeded
from bench.formulas import CONTENDERS, Formula, problem
from fastfer import ops

_CLASSES, _FEATURES = 7, 640  # of mobilenetv3_cpsca, which has all three losses
_BATCHES = (8, 64)


def _hardest(x: Tensor, labels: Tensor) -> Tensor:
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None]
    others = same & ~torch.eye(len(labels), dtype=torch.bool)
    far = distances.masked_fill(~others, -1).amax(1)
    near = distances.masked_fill(same, torch.inf).amin(1)
    return F.relu(0.3 + far - near).mean()


def _pair(loss: str, batch: int) -> tuple[Formula, Formula, int]:
    """Ours, stock, and the features a sample."""
    labels, weight = torch.arange(batch) % (_CLASSES if loss != "triplet_loss" else 4), torch.linspace(0.5, 2, _CLASSES)
    centers = torch.randn(_CLASSES, _FEATURES, generator=seeded())
    if loss == "center_loss":
        return (
            lambda x: ops.center_loss(x, labels, centers.to(x.dtype)),
            lambda x: 0.5 * (x - centers[labels]).square().sum(),
            _FEATURES,
        )
    if loss == "triplet_loss":
        return lambda x: ops.triplet_loss(x, labels), lambda x: _hardest(x, labels), _FEATURES
    if loss == "cross_entropy":
        return lambda x: ops.cross_entropy(x, labels), lambda x: F.cross_entropy(x, labels), _CLASSES
    return (
        lambda x: ops.cross_entropy(x, labels, weight=weight.to(x.dtype), label_smoothing=0.1),
        lambda x: F.cross_entropy(x, labels, weight=weight, label_smoothing=0.1),
        _CLASSES,
    )


def _problem(loss: str, batch: int, training: bool) -> Problem:
    ours, stock, features = _pair(loss, batch)
    leaf = torch.randn(batch, features, generator=seeded())
    pairs = batch if loss == "triplet_loss" else 1
    return problem(
        ours, stock, [leaf], torch.ones(()) if training else None, batch * features * pairs, batch * features
    )


def _cases() -> list[Case]:
    return [
        Case(
            f"loss {'training' if training else 'forward'}",
            "mobilenetv3_cpsca",
            loss.replace("_", " "),
            batch,
            1,
            partial(_problem, loss, batch, training),
            CONTENDERS,
        )
        for training in (False, True)
        for loss in ("center_loss", "triplet_loss", "cross_entropy", "cross_entropy_weighted_smoothed")
        for batch in _BATCHES
    ]


@parametrize(_cases(), keep=8)
def test_loss(case: Case, contender: str, compare: Callable[[Case, str], None]) -> None:
    compare(case, contender)
