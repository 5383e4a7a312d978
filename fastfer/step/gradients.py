# SPDX-License-Identifier: Apache-2.0
"""A function of batches and the gradients of what it returns, recorded for each shape of batch and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from fastfer import _C, _environment, backend
from fastfer.step.covered import Watch, require_covered, require_native
from fastfer.step.errors import StepError
from fastfer.step.plan import Plan
from fastfer.step.record import Recorder

Function = Callable[..., Sequence[Tensor | None]]
Results = list[Tensor | None]


class _Recorded:
    """A step for one shape of batch."""

    def __init__(self, inputs: list[Tensor], threads: int) -> None:
        self.inputs, self.threads = inputs, threads
        self.watch: Watch
        self.plan: Plan
        self.results: Results = []
        self.gradients: list[tuple[Tensor, Tensor | None]] = []


class Gradients:
    """``function(*inputs)`` returns a loss (), and whatever else of tensors or None is wanted, computed by ``modules``.

    A call returns the same and leaves the loss's gradients in ``.grad`` of ``parameters``, which held others before or
    none: those are gone. The first call with inputs of a shape, and one after ``modules`` changed, is done as ever and
    recorded; the others are replayed. At most ``plans`` shapes are kept; all compute in one arena. StepError where
    something is not covered (`fastfer.step.covered`), before anything is computed, or with the results where the step
    came upon it.
    """

    def __init__(
        self,
        function: Function,
        modules: Sequence[nn.Module],
        parameters: Sequence[Tensor],
        *,
        trusted: Sequence[type[nn.Module]] = (),
        plans: int = 4,
    ) -> None:
        if plans < 1:
            raise ValueError(f"plans: expected 1 or more, got {plans}")
        self._function, self._roots, self._parameters = function, list(modules), list(parameters)
        self._trusted, self._most = tuple(trusted), plans
        self._kept: dict[Any, _Recorded] = {}
        self._arena: torch.UntypedStorage | None = None
        self._places: dict[Tensor, Tensor] = {}  # the gradient of each parameter, for all plans
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Results:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("step: expected one call at a time, got one while another runs")
        try:
            return self._call(inputs)
        finally:
            self._lock.release()

    def check(self) -> None:
        """StepError for what can be refused before a step."""
        require_native()
        require_covered(self._modules(), self._trusted)

    def plans(self) -> list[Plan]:
        """Those that are kept, the one used last at the end."""
        return [recorded.plan for recorded in self._kept.values()]

    def _call(self, inputs: tuple[Tensor, ...]) -> Results:
        require_native()
        key = tuple((t.shape, t.stride(), t.dtype) for t in inputs)
        recorded = self._kept.pop(key, None)
        if recorded is None or recorded.threads != backend.num_threads() or not recorded.watch.unchanged():
            recorded = self._record(inputs)
            results = recorded.results
        else:
            results = _replayed(recorded, inputs)
        self._kept[key] = recorded
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
        return [None if t is None else t.clone() for t in results]

    def _modules(self) -> list[nn.Module]:
        return list(dict.fromkeys(module for root in self._roots for module in root.modules()))

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recorded:
        modules = self._modules()
        require_covered(modules, self._trusted)
        for t in inputs:
            if t.device.type != "cpu" or t.requires_grad:
                raise StepError(f"inputs: expected tensors on the CPU that want no gradient, got {t.device}")
        recorded = _Recorded([_copy(t) for t in inputs], backend.num_threads())
        recorder, threads = Recorder(), recorded.threads
        for p in self._parameters:
            p.grad = None
        recorded.results = recorder.run(lambda: self._computed(recorded.inputs))
        if recorder.refused is not None:
            recorder.refused.results = recorded.results
            raise recorder.refused
        recorder.settle()
        self._keep_gradients(recorded, recorder)
        _C.release_memory()  # what the recorded step used is free for the arena
        recorded.plan = Plan(recorder.calls, recorder.memories, threads)
        self._bind(recorded.plan)
        recorded.watch = Watch(modules)
        return recorded

    def _computed(self, inputs: list[Tensor]) -> Results:
        results = self._function(*inputs)
        loss = results[0]
        if loss is None or loss.dim() or loss.grad_fn is None:
            raise StepError("loss: expected a tensor () with a gradient")
        loss.backward()  # type: ignore[no-untyped-call]
        return [None if t is None else t.detach() for t in results]

    def _keep_gradients(self, recorded: _Recorded, recorder: Recorder) -> None:
        """All plans leave a parameter's gradient in the same memory, where they lay it out alike."""
        for p in self._parameters:
            grad = p.grad
            if grad is not None:
                place = self._places.setdefault(p, grad)
                if place is not grad and recorder.moved(grad, place):
                    place.copy_(grad)
                    grad = p.grad = place
            recorded.gradients.append((p, grad))

    def _bind(self, plan: Plan) -> None:
        if self._arena is None or self._arena.nbytes() < plan.arena_bytes:
            self._arena = None
            self._arena = _memory(plan.arena_bytes)
            for other in self._kept.values():
                other.plan.bind(self._arena)
        plan.bind(self._arena)


def _replayed(recorded: _Recorded, inputs: tuple[Tensor, ...]) -> Results:
    with torch.no_grad():
        for place, t in zip(recorded.inputs, inputs, strict=True):
            place.copy_(t)
        recorded.plan.run()
        for p, grad in recorded.gradients:
            if p.grad is not grad:
                p.grad = grad
    return recorded.results


def _copy(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t)


def _memory(size: int) -> torch.UntypedStorage:
    if (_environment.variable("FASTFER_HUGE_PAGES") or "1") != "1":
        return torch.empty(size, dtype=torch.uint8).untyped_storage()
    made: Tensor = from_dlpack(_C.huge_empty(False, [-(-size // 4)], [1]))
    return made.untyped_storage()
