# SPDX-License-Identifier: Apache-2.0
"""What a recorded step may consist of, and whether that has changed since.

A replay repeats tensors' computations, no Python. So the modules are those of this package and a few of torch, which do
nothing else; others a caller vouches for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch

from fastfer import backend
from fastfer.step.errors import StepError

_OWN = ("fastfer.models.", "fastfer.nn.")
_TORCH = (
    nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Conv1d, nn.Conv2d, nn.CrossEntropyLoss,
    nn.Dropout, nn.Dropout2d, nn.Flatten, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Identity, nn.LayerNorm, nn.Linear,
    nn.MSELoss, nn.MaxPool2d, nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList, nn.ReLU, nn.ReLU6,
    nn.Sequential, nn.SiLU, nn.Sigmoid, nn.Softmax, nn.Tanh,
)  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_any_global_hook: Callable[[], bool] = _torch._has_any_global_hook


def repeatable(function: Any) -> Any:
    """Decorates a hook that only computes with tensors, the same in each call, so that it may be in a recorded step."""
    function.fastfer_repeatable = True
    return function


def require_covered(modules: Iterable[nn.Module], trusted: Sequence[type[nn.Module]]) -> None:
    """StepError for a module of another kind, and one with a hook."""
    if _any_global_hook():
        raise StepError("hooks: expected none on all modules")
    for module in modules:
        _require_plain(module, trusted)


def require_native() -> None:
    """StepError where a step as ever would not run the native kernels in the types of its tensors, with gradients."""
    others = sorted(set(backend.plan("cpu").values()) - {"native"})
    if others:
        raise StepError(f"backend: expected native for all families, got {', '.join(others)}")
    if torch.is_autocast_enabled("cpu"):
        raise StepError("autocast: expected none on the CPU")
    if not torch.is_grad_enabled():
        raise StepError("gradients: expected them enabled")


def _require_plain(module: nn.Module, trusted: Sequence[type[nn.Module]]) -> None:
    cls = type(module)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if cls not in _TORCH and cls not in trusted and not name.startswith(_OWN):
        raise StepError(
            f"{name}: expected modules of fastfer and plain ones of torch; trusted=({cls.__name__},) vouches that this "
            "one only computes with tensors, the same in each call"
        )
    state = module.__dict__
    if "forward" in state:
        raise StepError(f"{name}: forward: expected that of its class")
    for hooks in _HOOKS:
        for hook in state[hooks].values():
            if not getattr(hook, "fastfer_repeatable", False):
                raise StepError(f"{name}: expected no hooks, got {getattr(hook, '__qualname__', hook)}")
    loose = [key for key, value in state.items() if isinstance(value, Tensor)]
    if loose:
        raise StepError(f"{name}: {loose[0]}: expected a parameter or a buffer, got a tensor as an attribute")


class Watch:
    """The modules as they are at the moment; `unchanged` says whether they still are."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._states = [module.__dict__ for module in modules]
        self._values = self._look()

    def unchanged(self) -> bool:
        """Whether modes, options, hooks, and the places of parameters and buffers are the same."""
        try:
            return self._look() == self._values
        except RuntimeError:  # tensors that are compared
            return False

    def _look(self) -> list[Any]:
        looks: list[Any] = [_any_global_hook()]
        for state in self._states:
            looks.append(list(state.values()))
            for hooks in _HOOKS:
                if state[hooks]:
                    looks.append(tuple(state[hooks]))
            if state["_modules"]:
                looks.append([id(module) for module in state["_modules"].values()])
            for tensors in (state["_parameters"], state["_buffers"]):
                looks += [(t.data_ptr(), t.requires_grad) for t in tensors.values() if t is not None]
        return looks
