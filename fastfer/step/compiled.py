# SPDX-License-Identifier: Apache-2.0
"""`compile_step`: a training step that is recorded once and replayed without Python, autograd or the allocator."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fastfer.step.errors import StepError
from fastfer.step.gradients import Gradients
from fastfer.step.plan import Plan
from fastfer.step.update import Update

Loss = Callable[..., Tensor]


class CompiledStep:
    """What `compile_step` gives: called with images and what the loss takes beside the logits, returns the loss ()."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        *,
        clip_norm: float | None = None,
        trusted: Sequence[type[nn.Module]] = (),
        fallback: bool = False,
        plans: int = 4,
    ) -> None:
        _check(model, loss, optimizer, clip_norm)
        self.model, self.loss, self.optimizer, self.clip_norm = model, loss, optimizer, clip_norm
        self._trained: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        everything = list(dict.fromkeys([*self._trained, *model.parameters()]))
        modules = [model, loss] if isinstance(loss, nn.Module) else [model]
        self._gradients = Gradients(self._computed, modules, everything, trusted=trusted, plans=plans)
        self._update = Update(optimizer)
        self._everything, self._fallback, self.refused = everything, fallback, ""

    def __call__(self, x: Tensor, *targets: Tensor) -> Tensor:
        """One step on a batch: gradients, their norm cut where that is asked for, update."""
        for t in (x, *targets):
            if not isinstance(t, Tensor):
                raise TypeError(f"compile_step: expected tensors, got {type(t).__name__}")
        loss = self._loss(x, *targets)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.clip_norm)
        self._update()
        return loss

    def plans(self) -> list[Plan]:
        """What is recorded, the plan used last at the end."""
        return self._gradients.plans()

    def _loss(self, x: Tensor, *targets: Tensor) -> Tensor:
        """The loss, its gradients left in ``.grad``."""
        if not self.refused:
            try:
                loss = self._gradients(x, *targets)[0]
                assert loss is not None
                return loss
            except StepError as error:
                if not self._fallback:
                    raise
                self.refused = str(error)
                warnings.warn(f"compile_step: not recorded: {error}", stacklevel=3)
                if error.results is not None and error.results[0] is not None:
                    return error.results[0]
        for p in self._everything:
            p.grad = None
        (eager,) = self._computed(x, *targets)
        eager.backward()  # type: ignore[no-untyped-call]
        return eager.detach()

    def _computed(self, x: Tensor, *targets: Tensor) -> tuple[Tensor]:
        return (self.loss(self.model(x), *targets),)


def compile_step(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    *,
    clip_norm: float | None = None,
    trusted: Sequence[type[nn.Module]] = (),
    fallback: bool = False,
    plans: int = 4,
) -> CompiledStep:
    """A training step on the CPU's native kernels: ``step(x, *targets)`` returns ``loss(model(x), *targets)``.

    It does what ``zero_grad``, forward, ``backward`` and ``optimizer.step()`` would, to the bit, on the same
    parameters, buffers, random numbers and optimiser state. The first step with a batch of a shape is computed as ever
    and recorded; later ones are replayed: no Python, autograd or allocator between the kernels, and all activations in
    one arena. At most ``plans`` shapes are kept. Modes, options and hooks of modules, and the optimiser's rate, are
    looked at in each call.

    What a replay would leave out is refused by name, with a StepError: modules that are neither fastfer's nor plain
    ones of torch (``trusted`` classes aside), hooks, a loss that is neither such a module nor a function of
    ``torch.nn.functional`` or ``fastfer.ops``, values read in Python, autocast, devices other than the CPU, kernels
    other than the native ones. With ``fallback`` such steps are computed as ever, and a warning says so once.

    Args:
        model: a network in training mode
        loss: takes the logits and the targets, returns a mean ()
        optimizer: of ``model``'s parameters; fused AdamW, Adam and SGD are one call, others run as they are
        clip_norm: gradients together longer than this are cut down to it
        trusted: classes of modules that only compute with tensors, the same in each call
        fallback: compute steps that are refused without recording
        plans: shapes of batches that are kept

    Example:
        >>> step = fastfer.compile_step(model, fastfer.nn.CrossEntropyLoss(), optimizer)
        >>> for images, labels in batches:
        ...     loss = step(images, labels)
    """
    return CompiledStep(model, loss, optimizer, clip_norm=clip_norm, trusted=trusted, fallback=fallback, plans=plans)


def _check(model: Any, loss: Any, optimizer: Any, clip_norm: float | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"compile_step: model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"compile_step: optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not callable(loss):
        raise TypeError(f"compile_step: loss: expected a module or a function, got {type(loss).__name__}")
    known = inspect.isfunction(loss) and loss.__module__.startswith(("torch.nn.functional", "fastfer.ops."))
    if not isinstance(loss, nn.Module) and not known:
        raise StepError(
            f"loss: expected a module, or a function of torch.nn.functional or fastfer.ops, got "
            f"{getattr(loss, '__qualname__', type(loss).__name__)}"
        )
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"compile_step: clip_norm: expected a positive number, got {clip_norm}")
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p not in trained]
    if missing:
        raise ValueError(f"compile_step: optimizer: expected all trained parameters, got none of {missing[0]}")
