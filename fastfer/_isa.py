# SPDX-License-Identifier: Apache-2.0
"""FASTFER_ISA, for the torch ops and for the runtime without torch."""

from __future__ import annotations

from typing import Any


def force(extension: Any, name: str) -> None:
    """Run the native kernels of ISA ``name``; ValueError for one that this build or CPU lacks."""
    try:
        extension.set_isa(name)
    except ValueError as error:
        raise ValueError(f"FASTFER_{error}") from None  # "ISA: expected ..."
