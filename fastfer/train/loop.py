# SPDX-License-Identifier: Apache-2.0
"""One epoch of training.

Order, augmentation and dropout of epoch e follow from (seed, e) alone: an epoch that was cut short can be done again
from its start, and a resumed run meets the same random numbers as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfer.data import Augment, Preprocess, Split
from fastfer.models import FerModel
from fastfer.train.average import WeightAverage
from fastfer.train.config import TrainConfig
from fastfer.train.optim import Schedule, make_optimizer

_STREAMS = {"weights": 0, "order": 1, "augment": 2, "dropout": 3}


class NonFiniteError(RuntimeError):
    """Training met a loss or weights that are NaN or infinite."""


@dataclass(frozen=True)
class EpochResult:
    """Mean loss over the epoch's images, steps left out (--on-nan skip), speed, learning rate at the end."""

    loss: float
    skipped: int
    images_per_second: float
    lr: float


def derived_seed(seed: int, stream: str, epoch: int = 0) -> int:
    """A 63-bit seed for one purpose in one epoch."""
    words = np.random.SeedSequence([seed, _STREAMS[stream], epoch]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _generator(seed: int, stream: str, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, stream, epoch))


class Trainer:
    """Model, optimiser and learning-rate schedule; cross-entropy loss; channels_last throughout."""

    def __init__(self, model: FerModel, split: Split, preprocess: Preprocess, config: TrainConfig) -> None:
        if config.lr is None or config.epochs is None:
            raise ValueError("config: expected a resolved one, got lr or epochs None")
        channels_last: Any = {"memory_format": torch.channels_last}  # torch's stubs lack this overload
        self.model: FerModel = model.to(**channels_last)
        self.config = config
        self.augment: Augment = config.augment
        self.preprocess = preprocess
        self._images = torch.from_numpy(split.images)
        self._labels = torch.from_numpy(split.labels)
        self.steps_per_epoch = math.ceil(len(split) / config.batch_size)
        stage = config.stages()[0]
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config.optimizer, self._trained, stage.lr, config.weight_decay, config.momentum)
        self.schedule = Schedule(self.optimizer, stage, self.steps_per_epoch)
        self.average = WeightAverage(self.model, config.ema) if config.ema else None

    @property
    def evaluated(self) -> FerModel:
        """The network to evaluate and keep: the average of the weights where the run keeps one."""
        return self.average.model if self.average else self.model

    def train_epoch(self, epoch: int, on_step: Callable[[float], None] = lambda loss: None) -> EpochResult:
        """Train on every image once. ``on_step`` hears the loss of each step.

        Raises NonFiniteError at the first loss that is not finite, unless the run was told to skip such steps.
        """
        seed = self.config.seed
        torch.manual_seed(derived_seed(seed, "dropout", epoch))
        order = torch.randperm(len(self._labels), generator=_generator(seed, "order", epoch))
        augment = _generator(seed, "augment", epoch)
        self.model.train()
        total, seen, skipped = 0.0, 0, 0
        start = time.perf_counter()
        for step, chosen in enumerate(torch.split(order, self.config.batch_size), start=1):
            x = self.augment(self.preprocess(self._images[chosen]), augment)
            loss = self._step(x, self._labels[chosen], f"epoch {epoch}, step {step} of {self.steps_per_epoch}")
            if loss is None:
                skipped += 1
            else:
                total += loss * len(chosen)
                seen += len(chosen)
                on_step(loss)
                if self.average:
                    self.average.update((epoch - 1) * self.steps_per_epoch + step)
            self.schedule.step()
        seconds = time.perf_counter() - start
        self._require_finite_weights(epoch)
        return EpochResult(
            loss=total / seen if seen else math.nan,
            skipped=skipped,
            images_per_second=len(order) / seconds,
            lr=float(self.optimizer.param_groups[0]["lr"]),
        )

    def _step(self, x: Tensor, labels: Tensor, where: str) -> float | None:
        """Loss of the batch after one update; None where it was skipped and left no trace."""
        skipping = self.config.on_nan == "skip"
        # A forward pass has already moved the running statistics when its loss turns out to be NaN.
        kept = [buffer.clone() for buffer in self.model.buffers()] if skipping else []
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(x), labels, label_smoothing=self.config.label_smoothing)
        value = loss.item()
        if math.isfinite(value):
            torch.autograd.backward(loss)
            if not skipping or self._finite_gradients():
                if self.config.clip_norm:
                    nn.utils.clip_grad_norm_(self._trained, self.config.clip_norm)
                self.optimizer.step()
                return value
        elif not skipping:
            raise NonFiniteError(
                f"the loss is {value} at {where}: try a lower --lr (now {self.config.lr:g}), or --on-nan skip"
            )
        for buffer, before in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(before)
        return None

    def _finite_gradients(self) -> bool:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return bool(torch.isfinite(nn.utils.get_total_norm(gradients)))

    def _require_finite_weights(self, epoch: int) -> None:
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(f"{name} is not finite after epoch {epoch}: try a lower --lr")
