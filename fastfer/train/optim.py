# SPDX-License-Identifier: Apache-2.0
"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from fastfer import backend
from fastfer import step as _step
from fastfer.train.options import Monitor, OptimizerName, Stage

_PER_STEP = ("onecycle", "cosine")


def make_optimizer(
    name: OptimizerName, parameters: Sequence[Tensor], lr: float, weight_decay: float, momentum: float
) -> Optimizer:
    """AdamW, Adam or SGD with Nesterov momentum (plain without), in torch's fused form."""
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=True
        )
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(parameters, lr, weight_decay=weight_decay, fused=True)


def make_update(optimizer: Optimizer, prepared: Optimizer, device: torch.device) -> Callable[[], object]:
    """What a step ends with: ``optimizer.step()``, on the CPU without torch's search for tensors, which took 0.7 to
    2.3 ms a step, with the same bits and state; elsewhere ``prepared``, the optimiser as accelerate has it.
    """
    if device.type != "cpu" or not backend.list_backends()["native"].available:
        return prepared.step
    return _step.Update(optimizer)


class Schedule:
    """The learning rate of one stage: hears of each step and of each epoch's validation scores."""

    def __init__(self, optimizer: Optimizer, stage: Stage, steps_per_epoch: int) -> None:
        self._per_step = stage.schedule in _PER_STEP
        self._monitor: Monitor = stage.plateau.monitor
        self._scheduler = _scheduler(optimizer, stage, stage.epochs * steps_per_epoch)

    def step(self) -> None:
        """After each step, skipped ones included."""
        if self._per_step:
            self._scheduler.step()

    def end_epoch(self, loss: float, accuracy: float) -> None:
        """After each epoch, with the scores on the validation images."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(loss if self._monitor == "loss" else accuracy)
        elif not self._per_step:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dict(self._scheduler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._scheduler.load_state_dict(state)


def _scheduler(optimizer: Optimizer, stage: Stage, steps: int) -> LRScheduler:
    if stage.schedule == "onecycle":
        rise = 0.25 if steps != 4 else 0.375  # torch divides by rise · steps - 1
        return OneCycleLR(optimizer, stage.lr, total_steps=steps, pct_start=rise)
    if stage.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    if stage.schedule == "plateau":
        plateau = stage.plateau
        return ReduceLROnPlateau(
            optimizer,
            mode="min" if plateau.monitor == "loss" else "max",
            factor=plateau.factor,
            patience=plateau.patience - 1,  # torch bears this many and acts at the next
            threshold=plateau.min_delta,
            threshold_mode="abs",
            min_lr=plateau.min_lr,
        )
    if stage.schedule == "inverse_time":
        decay = stage.inverse_time
        return LambdaLR(optimizer, lambda epoch: 1 / (1 + decay.rate * epoch / decay.epochs))
    return LambdaLR(optimizer, lambda epoch: 1.0)
