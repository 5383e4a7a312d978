# SPDX-License-Identifier: Apache-2.0
"""Hand-optimised kernels and five lightweight facial-expression-recognition networks that run on them.

Names are imported when they are first used, so that ``fastfer.runtime`` runs without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastfer._version import __version__

if TYPE_CHECKING:
    from fastfer import backend, engine, models, nn, ops, runtime, step, weights
    from fastfer.backend import list_backends, use
    from fastfer.engine.compiler import compile
    from fastfer.models import create_model, list_models, load, model_info
    from fastfer.predict import Recognizer
    from fastfer.step import compile_step

_MODULES = ("backend", "engine", "models", "nn", "ops", "runtime", "step", "weights")
_NAMES = {
    "Recognizer": "fastfer.predict",
    "compile": "fastfer.engine.compiler",
    "compile_step": "fastfer.step",
    "create_model": "fastfer.models",
    "list_backends": "fastfer.backend",
    "list_models": "fastfer.models",
    "load": "fastfer.models",
    "model_info": "fastfer.models",
    "use": "fastfer.backend",
}

__all__ = [
    "Recognizer",
    "__version__",
    "backend",
    "compile",
    "compile_step",
    "create_model",
    "engine",
    "list_backends",
    "list_models",
    "load",
    "model_info",
    "models",
    "nn",
    "ops",
    "runtime",
    "step",
    "use",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value: Any = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastfer.{name}")
    else:
        raise AttributeError(f"module 'fastfer' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
