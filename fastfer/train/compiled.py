# SPDX-License-Identifier: Apache-2.0
"""The trainer's steps on the CPU, recorded and replayed: `fastfer.step` around a run's network and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from fastfer import step
from fastfer.train.config import TrainConfig
from fastfer.train.objective import Objective, Targets, WithEmbedding
from fastfer.train.placement import Placement

if TYPE_CHECKING:
    from fastfer.step.plan import Plan


class Computed(NamedTuple):
    """What a step's forward pass gives: the loss (), logits, and the embedding where the losses look at it."""

    loss: Tensor
    logits: Tensor
    embedding: Tensor | None


Compute = Callable[[Tensor, Targets, Tensor | None], Computed]
"""Of images, targets and the teacher's logits."""


class CompiledPasses:
    """``compute`` with gradients, recorded for each shape of batch.

    ValueError where a run's steps cannot be recorded, with what stands in the way.
    """

    def __init__(
        self,
        compute: Compute,
        network: nn.Module,
        objective: Objective,
        config: TrainConfig,
        placement: Placement,
    ) -> None:
        _require_recordable(config, placement)
        self._compute = compute
        self._mode, self._has_soft = "crossentropy", False
        modules, trained, trusted = [network, objective], list(network.parameters()), (WithEmbedding, Objective)
        try:
            self._passes = step.Gradients(self._forward, modules, trained, trusted=trusted)
            self._passes.check()
        except step.StepError as error:
            raise ValueError(f"compile: {error}") from error

    def __call__(self, x: Tensor, targets: Targets, taught: Tensor | None) -> Computed:
        """The passes over one batch; gradients are left with the parameters."""
        self._mode, self._has_soft = targets.mode, targets.soft is not None
        inputs = (x, targets.labels, targets.soft, taught)
        loss, logits, embedding = self._passes(*(t for t in inputs if t is not None))
        assert loss is not None
        assert logits is not None
        return Computed(loss, logits, embedding)

    def plans(self) -> list[Plan]:
        """What is recorded, the plan used last at the end."""
        return self._passes.plans()

    def _forward(self, x: Tensor, labels: Tensor, *more: Tensor) -> Computed:
        soft = more[0] if self._has_soft else None
        taught = more[-1] if len(more) > self._has_soft else None
        return self._compute(x, Targets(labels, soft, self._mode), taught)


def _require_recordable(config: TrainConfig, placement: Placement) -> None:
    refused = {
        f"device {placement.device.type}": placement.device.type != "cpu",
        f"precision {config.precision}": config.precision != "fp32",
        f"{placement.processes} processes": placement.processes > 1,
    }
    found = [reason for reason, applies in refused.items() if applies]
    if found:
        raise ValueError(f"compile: expected one process on the CPU in fp32, got {'; '.join(found)}")
