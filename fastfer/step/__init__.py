# SPDX-License-Identifier: Apache-2.0
"""Training steps that are recorded once and replayed: see `compile_step`. What needs the extension is imported when it
is first used, as this package installs without it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastfer import backend
from fastfer.step.covered import repeatable
from fastfer.step.errors import StepError

if TYPE_CHECKING:
    from fastfer.step.compiled import CompiledStep, compile_step
    from fastfer.step.gradients import Gradients
    from fastfer.step.update import Update

_NAMES = {"CompiledStep": "compiled", "Gradients": "gradients", "Update": "update", "compile_step": "compiled"}

__all__ = ["CompiledStep", "Gradients", "StepError", "Update", "compile_step", "repeatable"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'fastfer.step' has no attribute {name!r}")
    native = backend.list_backends()["native"]
    if not native.available:
        raise StepError(f"{name}: expected the native kernels, which are not available: {native.reason}")
    value: Any = getattr(importlib.import_module(f"fastfer.step.{_NAMES[name]}"), name)
    globals()[name] = value
    return value
