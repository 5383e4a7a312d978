# SPDX-License-Identifier: Apache-2.0
"""A training step as one CUDA graph: forward, loss, backward and update, recorded once and replayed.

A replay computes with the numbers and addresses of the recording. Hence images and targets are copied to fixed buffers,
the learning rate is read from the device, and whatever decides on the host within a step is refused beforehand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastfer import backend
from fastfer.train.config import TrainConfig
from fastfer.train.objective import Targets
from fastfer.train.placement import Placement

WARM_UP = 3
"""Steps before the recording, on a stream of their own: they compile kernels, fill caches and start the moments."""

Step = Callable[[Tensor, Targets], Tensor]


def require_capturable(config: TrainConfig, placement: Placement, images: int) -> None:
    """ValueError where the steps of a run on so many images cannot be recorded, with what stands in the way."""
    if placement.device.type != "cuda":
        raise ValueError(f"cuda_graph: expected device cuda, got {placement.device.type}")
    refused = {
        "precision fp16, whose loss scale decides on the host": config.precision == "fp16",
        "on_nan skip, which looks at each loss on the host": config.on_nan == "skip",
        "schedule onecycle, which moves the momentum, a constant of the recording": "onecycle"
        in [stage.schedule for stage in config.stages()],
        f"{placement.processes} processes, which exchange gradients within a step": placement.processes > 1,
        f"{images} images, which fill no batch of {config.batch_size}": images < config.batch_size,
    }
    found = [reason for reason, applies in refused.items() if applies]
    if found:
        raise ValueError(f"cuda_graph: expected a step that can be recorded, got {'; '.join(found)}")
    plain = [family for family, name in backend.plan("cuda").items() if name == "reference"]
    if plain:
        raise ValueError(
            f"cuda_graph: expected the CUDA kernels, got plain torch for {', '.join(plain)}, which waits for the device"
        )


class StepGraph:
    """``step`` for batches of one shape: called for the first `WARM_UP` of them, recorded and replayed from then on.

    ``step`` takes images (N, C, H, W) and their targets on the device, updates with ``optimizer`` and returns its loss
    (). Batches of another shape are for the caller to compute without this. RuntimeError where the recording fails.
    """

    def __init__(self, step: Step, optimizer: Optimizer) -> None:
        self._step, self._optimizer = step, optimizer
        self._rates: list[Tensor] = []
        self._calls = 0
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, x: Tensor, targets: Targets) -> Tensor:
        """The loss () of one step; memory of its own, which later steps leave alone."""
        if self._calls < WARM_UP:
            self._calls += 1
            return aside(lambda: self._step(x, targets))
        if self._replay is None:
            self._replay = self._recorded(x, targets)
        self._x.copy_(x)
        self._targets.copy_(targets)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        return self._replay().clone()

    def _recorded(self, x: Tensor, targets: Targets) -> Callable[[], Tensor]:
        self._x, self._targets = x.clone(), targets.clone()
        self._rates = [torch.zeros((), device=x.device) for _ in self._optimizer.param_groups]

        def call() -> Tensor:
            with self._rates_on_the_device():
                return self._step(self._x, self._targets)

        try:
            return record(call)
        except RuntimeError as error:
            raise RuntimeError(f"cuda_graph: the step cannot be recorded: {error}") from error

    @contextmanager
    def _rates_on_the_device(self) -> Iterator[None]:
        """The optimiser reads its learning rates from tensors, and Adam knows that it is recorded."""
        groups = self._optimizer.param_groups
        changed = [
            {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
            for rate, group in zip(self._rates, groups, strict=True)
        ]
        before = [{key: group[key] for key in change} for group, change in zip(groups, changed, strict=True)]
        try:
            for group, change in zip(groups, changed, strict=True):
                group.update(change)
            yield
        finally:
            for group, old in zip(groups, before, strict=True):
                group.update(old)


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all steps: memory that is freed on a stream is reused on that stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def aside(call: Callable[[], Tensor]) -> Tensor:
    """``call`` on a stream of its own, in order with the current one: nothing of it is bound to the default stream."""
    current, side = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
    side.wait_stream(current)
    with torch.cuda.stream(side):
        result = call()
    current.wait_stream(side)
    return result


def record(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record ``call`` without computing; what it gives computes, and returns the recorded result's tensor."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's threads pin memory meanwhile
        result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
