# SPDX-License-Identifier: Apache-2.0
"""The inference engine: a trained network becomes one native call.

``compile`` traces a model (`trace`, `record`), makes a graph of it (`convert`), folds norms into it (`fuse`) and writes
it as bytes (`file`); the native plan does the rest, and `fastfer.runtime` runs it without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfer.engine.compiler import compile
    from fastfer.engine.convert import UncoveredError
    from fastfer.runtime import Engine, load

__all__ = ["Engine", "UncoveredError", "compile", "load"]

_NAMES = {
    "Engine": "fastfer.runtime",
    "UncoveredError": "fastfer.engine.convert",
    "compile": "fastfer.engine.compiler",
    "load": "fastfer.runtime",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _NAMES:
        raise AttributeError(f"module 'fastfer.engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
