# SPDX-License-Identifier: Apache-2.0
"""What `compile` works on, whether it came from a module or from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fastfer.engine.program import Program


@dataclass(frozen=True)
class Subject:
    """A network for images of ``size``; ``known`` are entries of the metadata that it brings along.

    ``traced`` gives its program, ``in_torch`` the one for torch on the CPU where that is another, ``in_onnxruntime`` an
    engine that runs it in ONNX Runtime, of the metadata and a number of threads; None where that is not possible.
    """

    name: str
    size: tuple[int, ...]
    traced: Callable[[], Program]
    known: dict[str, Any] = field(default_factory=dict)
    in_torch: Callable[[], Program] | None = None
    in_onnxruntime: Callable[[dict[str, Any], int | None], Any] | None = None

    @cached_property
    def program(self) -> Program:
        """Traced once. Raises UncoveredError where an operator of a file is not known."""
        return self.traced()
