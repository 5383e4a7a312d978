# SPDX-License-Identifier: Apache-2.0
"""A backend's functions called with torch's flat arguments instead of a signature: cases are lists of tensors."""

from __future__ import annotations

from typing import Any

from fastfer import _library
from fastfer import ops as _registers_ops  # noqa: F401


class Flat:
    """``Flat(module).name(*args)`` is ``module.name(signature of args)`` for the ops, others as they are."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        if name not in _library.registered():
            return function
        return lambda *args: function(_library.op_of(name).signature.unflatten(*args))
