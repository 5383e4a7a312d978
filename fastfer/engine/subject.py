# SPDX-License-Identifier: Apache-2.0
"""What `compile` works on, whether it came from a module or from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastfer.engine.program import Program

Size = tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A network, at first for images of ``size``; ``known`` are entries of the metadata that it brings along.

    ``traced`` gives its program at a size; ``in_torch`` makes of that the one for torch on the CPU, where it is
    another; ``in_onnxruntime`` gives an engine that runs it in ONNX Runtime, of the metadata, a size and a number of
    threads.
    """

    name: str
    size: Size
    traced: Callable[[Size], Program]
    known: dict[str, Any] = field(default_factory=dict)
    in_torch: Callable[[Program, Size], Program] | None = None
    in_onnxruntime: Callable[[dict[str, Any], Size, int | None], Any] | None = None
    is_quantised: bool = False
    """Whether the file says ranges of its values."""
