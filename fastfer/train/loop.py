# SPDX-License-Identifier: Apache-2.0
"""One epoch of training.

Order, augmentation, drawn labels and dropout of epoch e follow from (seed, e) alone: an epoch that was cut short can be
done again from its start, and a resumed run meets the same random numbers as an uninterrupted one. With several
processes the order and the labels are the same in all; augmentation and dropout follow from (seed, e, process).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastfer.data import Augment, Preprocess, Shards, Split
from fastfer.models import FerModel
from fastfer.train.average import WeightAverage
from fastfer.train.compiled import CompiledPasses, Computed
from fastfer.train.config import TrainConfig
from fastfer.train.features import FeatureFeed, FrozenFeatures, as_input, entered_at
from fastfer.train.feed import Portion, Source, class_counts, derived_seed, generator, make_feed, soft_mode
from fastfer.train.freezing import StageModes
from fastfer.train.graph import StepGraph, require_capturable
from fastfer.train.objective import Objective, Targets, WithEmbedding
from fastfer.train.optim import Schedule, make_optimizer, make_update
from fastfer.train.options import Stage
from fastfer.train.placement import Placement
from fastfer.train.quantise import Quantised
from fastfer.train.resolution import at_epoch
from fastfer.train.teacher import Teacher


class NonFiniteError(RuntimeError):
    """Training met a loss or weights that are NaN or infinite."""


@dataclass(frozen=True)
class EpochResult:
    """Mean loss over the epoch's images, steps left out (--on-nan skip), speed, learning rate at the end."""

    loss: float
    skipped: int
    images_per_second: float
    lr: float


class Trainer:
    """One stage of a run: model, loss, optimiser and schedule; channels_last throughout.

    ``begins`` is the number of epochs before this stage. Raises ValueError where the stage does not fit the network or
    the loss the targets.
    """

    def __init__(
        self,
        model: FerModel,
        source: Source,
        preprocess: Preprocess,
        config: TrainConfig,
        stage: Stage | None = None,
        begins: int = 0,
        *,
        placement: Placement | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        if config.lr is None or config.epochs is None:
            raise ValueError("config: expected a resolved one, got lr or epochs None")
        self.config, self.preprocess = config, preprocess
        self.augment: Augment = config.augment
        self.placement = placement or Placement(config.device, config.precision)
        self.stage = stage or config.stages()[0]
        self._begins, self._teacher = begins, teacher
        channels_last: Any = {"memory_format": torch.channels_last}  # torch's stubs lack this overload
        self.model: FerModel = model.to(self.placement.device, **channels_last)
        self.modes = StageModes(model, self.stage)
        self.objective = Objective(
            config.loss, class_counts(source), model.embedding_dim, config.label_smoothing, soft_mode(source)
        ).to(self.placement.device)
        if config.cuda_graph:
            require_capturable(config, self.placement, len(source))
        self.features = self._frozen_features(source)
        self._feed = make_feed(source, config, self.placement)
        if self.features is not None and isinstance(source, Split):
            self._feed = FeatureFeed(source, config, self.placement, self.features)
        self.steps_per_epoch = self._feed.steps
        if model.options.get("attention") == "batch" and self._feed.last_batch < 2 * self.placement.processes:
            raise ValueError("batch_size: expected another one, whose last batch gives each process two images or more")
        self._trained: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(
            config.optimizer, self._trained, self.stage.lr, config.weight_decay, config.momentum
        )
        self.schedule = Schedule(self.optimizer, self.stage, self.steps_per_epoch)
        self._network, prepared = self.placement.prepare(
            WithEmbedding(self.model, self.objective.needs_embedding, config.loss.softmax_trains), self.optimizer
        )
        self.take_step = make_update(self.optimizer, prepared, self.placement.device)
        self._quantised: Quantised | None = None
        if config.quantize == "int8":
            if self.placement.processes > 1 or self.objective.needs_embedding or config.loss.softmax_trains == "head":
                raise ValueError("quantize: expected one process and a loss of the logits alone")
            size = preprocess.size or model.input_size
            self._quantised = Quantised(self.model, (model.in_chans, *size))
        self.average = WeightAverage(self.model, config.ema) if config.ema else None
        # Waiting for each loss would let a GPU run dry: there it is looked at when the next step is under way.
        self._deferred = self.placement.device.type == "cuda" and config.on_nan == "stop"
        self.graph = StepGraph(self._whole_step, self.optimizer) if config.cuda_graph else None
        self.compiled: CompiledPasses | None = None
        if config.compile:
            self.compiled = CompiledPasses(self._computed, self._network, self.objective, config, self.placement)

    @property
    def resident(self) -> bool:
        """Whether the training images lie on the device."""
        return self._feed.resident

    @property
    def evaluated(self) -> FerModel:
        """The network to evaluate and keep: the average of the weights where the run keeps one."""
        return self.average.model if self.average else self.model

    def train_epoch(self, epoch: int, on_step: Callable[[float], None] = lambda loss: None) -> EpochResult:
        """Train on every image once; epochs count through all stages, from 1. ``on_step`` hears the loss of each step.

        Raises NonFiniteError at the first loss that is not finite, unless the run was told to skip such steps.
        """
        seed, rank, device = self.config.seed, self.placement.rank, self.placement.device
        torch.manual_seed(derived_seed(seed, "dropout", epoch, rank))
        augment = generator(seed, "augment", epoch, rank)
        preprocess = self._preprocess_of(epoch)
        self.modes.train()
        losses = _Losses(on_step)
        start = time.perf_counter()
        for step, portion in enumerate(self._feed.portions(epoch), start=1):
            where = f"epoch {epoch}, step {step} of {self.steps_per_epoch}"
            images = portion.images.to(device, non_blocking=True)
            x = self.augment(preprocess(images), augment) if self.features is None else as_input(images)
            with self._entered():
                loss = self._loss(x, portion, where)
            self._require_finite(losses.add(loss, portion.batch, where, self._deferred))
            if loss is not None and self.average:
                self.average.update((epoch - self._begins - 1) * self.steps_per_epoch + step)
            self.schedule.step()
        self._require_finite(losses.settle())
        self._require_progress(losses, epoch)
        if self._quantised is not None:
            self._quantised.freeze()  # after an epoch of fewer steps than are observed, too: its weights are kept
        seconds = time.perf_counter() - start
        self._require_finite_weights(epoch)
        return EpochResult(
            loss=losses.mean(),
            skipped=losses.skipped,
            images_per_second=len(self._feed) / seconds,
            lr=float(self.optimizer.param_groups[0]["lr"]),
        )

    def _frozen_features(self, source: Source) -> FrozenFeatures | None:
        copies, processes = self.stage.feature_copies, self.placement.processes
        if not copies or isinstance(source, Shards):
            return None
        if processes > 1:
            raise ValueError(f"feature_copies: expected one process, got {processes}")
        return FrozenFeatures(self.model, source, self.preprocess, self.config, copies, self.placement.device)

    def _entered(self) -> AbstractContextManager[None]:
        """Inside, the network takes features where the stage has them."""
        return nullcontext() if self.features is None else entered_at(self.model, self.features.blocks)

    def _loss(self, x: Tensor, portion: Portion, where: str) -> Tensor | None:
        targets = portion.targets.to(self.placement.device)
        if self.graph is not None and portion.batch == self.config.batch_size:
            return self.graph(x, targets)
        return self._step(x, targets, where, portion.batch)

    def _preprocess_of(self, epoch: int) -> Preprocess:
        """The conversion at the epoch's size; where that is a new one, a recorded step is of no use any more."""
        done = epoch - self._begins - 1
        now, before = (at_epoch(self.preprocess, self.stage.phases, n) for n in (done, done - 1))
        if self.graph is not None and now != before:
            self.graph = StepGraph(self._whole_step, self.optimizer)
        return now

    def _step(self, x: Tensor, targets: Targets, where: str, batch: int | None = None) -> Tensor | None:
        """Loss of the whole batch after one update, on the device; None where it was skipped and left no trace.

        ``x`` and ``targets`` are this process's part of the ``batch`` images.
        """
        skipping = self.config.on_nan == "skip"
        # A forward pass has already moved the running statistics when its loss turns out to be NaN.
        kept = [buffer.clone() for buffer in self.model.buffers()] if skipping else []
        taught = None if self._teacher is None else self._teacher(x)
        if self.compiled is None:
            self.optimizer.zero_grad(set_to_none=True)
            loss, logits, embedding = self._computed(x, targets, taught, batch)
        else:
            loss, logits, embedding = self.compiled(x, targets, taught)
        share = len(x) / (batch or len(x))
        whole = self.placement.total(loss.detach() * share)
        if self._deferred or math.isfinite(whole.item()):
            # Gradients are averaged over the processes, so that each one's loss counts by its share of the batch.
            if self.compiled is None:
                self.placement.backward(loss * (share * self.placement.processes))
            if not skipping or self.config.precision == "fp16" or self._finite_gradients():  # its scaler skips itself
                self._update(logits, embedding, targets)
                return whole
        elif not skipping:
            self._require_finite((whole.item(), where))
        for buffer, before in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(before)
        return None

    def _computed(self, x: Tensor, targets: Targets, taught: Tensor | None, batch: int | None = None) -> Computed:
        logits, embedding = (self._quantised or self._network)(x)
        loss = self.objective(logits, embedding, targets, batch)
        if self._teacher is not None and taught is not None:
            loss = self._teacher.mixed(loss, logits, taught)
        return Computed(loss, logits, embedding)

    def _whole_step(self, x: Tensor, targets: Targets) -> Tensor:
        """`_step` where no step is skipped."""
        loss = self._step(x, targets, "a recorded step")
        if loss is None:
            raise RuntimeError("on_nan: expected stop, got skip")
        return loss

    def _update(self, logits: Tensor, embedding: Tensor | None, targets: Targets) -> None:
        if self.config.clip_norm:
            self.placement.clip(self._trained, self.config.clip_norm)
        self.take_step()
        if self.objective.centers is not None:
            gathered = self.placement.gathered
            features = None if embedding is None else gathered(embedding.detach())
            self.objective.learn_centers(gathered(logits.detach()), features, gathered(targets.labels))

    def _finite_gradients(self) -> bool:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return bool(torch.isfinite(nn.utils.get_total_norm(gradients)))

    def _require_finite(self, loss: tuple[float, str] | None) -> None:
        if loss is not None and not math.isfinite(loss[0]):
            raise NonFiniteError(
                f"the loss is {loss[0]} at {loss[1]}: try a lower --lr (now {self.stage.lr:g}), or --on-nan skip"
            )

    def _require_progress(self, losses: _Losses, epoch: int) -> None:
        """NonFiniteError where the epoch ended in nothing but skipped steps: what made them so will not go away."""
        if (
            losses.in_a_row > 1 and 2 * losses.in_a_row >= self.steps_per_epoch
        ) or losses.skipped == self.steps_per_epoch:
            raise NonFiniteError(
                f"the last {losses.in_a_row} of {self.steps_per_epoch} steps of epoch {epoch} were skipped, because "
                f"loss or gradients were not finite: try a lower --lr (now {self.stage.lr:g})"
            )

    def _require_finite_weights(self, epoch: int) -> None:
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(f"{name} is not finite after epoch {epoch}: try a lower --lr")


class _Losses:
    """The losses of an epoch; where they are deferred each is read from the device after the next step has begun."""

    def __init__(self, on_step: Callable[[float], None]) -> None:
        self._on_step = on_step
        self._total, self._seen = 0.0, 0
        self._pending: tuple[Tensor, int, str] | None = None
        self.skipped, self.in_a_row = 0, 0  # steps; the latter up to now

    def add(self, loss: Tensor | None, images: int, where: str, deferred: bool) -> tuple[float, str] | None:
        """Take note of a step's loss, None for a skipped one; returns the value that became known, and its place."""
        if loss is None:
            self.skipped += 1
            self.in_a_row += 1
            return None
        self.in_a_row = 0
        known = self.settle()
        self._pending = (loss, images, where)
        return known if deferred else self.settle()

    def settle(self) -> tuple[float, str] | None:
        """Read what is pending."""
        if self._pending is None:
            return None
        (loss, images, where), self._pending = self._pending, None
        value = loss.item()
        self._total += value * images
        self._seen += images
        self._on_step(value)
        return value, where

    def mean(self) -> float:
        """Mean over the images of the steps taken; NaN where there was none."""
        return self._total / self._seen if self._seen else math.nan
