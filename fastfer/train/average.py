# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a network's weights, which is evaluated and kept in place of the last step's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fastfer.models import FerModel


class WeightAverage:
    """``model`` becomes d · itself + (1 - d) · the trained network after step t; d = min(decay, (1 + t) / (10 + t)).

    The ramp keeps the first steps' random weights out of the average. Running statistics are averaged alike; counters
    are copied.
    """

    def __init__(self, trained: FerModel, decay: float) -> None:
        self.model = copy.deepcopy(trained)
        self.decay = decay
        self._pairs = _tensors(self.model, trained)

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Follow the trained network after step ``steps`` (from 1)."""
        weight = 1 - min(self.decay, (1 + steps) / (10 + steps))
        for own, trained in self._pairs:
            if own.is_floating_point():
                own.lerp_(trained, weight)
            else:
                own.copy_(trained)


def _tensors(own: FerModel, trained: FerModel) -> list[tuple[Tensor, Tensor]]:
    mine, theirs = own.state_dict(keep_vars=True), trained.state_dict(keep_vars=True)
    return [(mine[name].detach(), theirs[name].detach()) for name in mine]
