# SPDX-License-Identifier: Apache-2.0
"""The environment variables of the kernels, for the torch ops and for the runtime without torch.

A variable that is set to nothing counts as not set: a shell script or a container file clears one that way.
"""

from __future__ import annotations

import os
from typing import Any


def variable(name: str) -> str | None:
    """The value of an environment variable; None where it is missing or empty."""
    return os.environ.get(name) or None


def num_threads() -> int | None:
    """FASTFER_NUM_THREADS; None where it is not set. Raises ValueError but for an integer of 1 to `most_threads`."""
    asked = variable("FASTFER_NUM_THREADS")
    if asked is None:
        return None
    most = most_threads()
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10 and 1 <= int(asked) <= most):
        raise ValueError(f"FASTFER_NUM_THREADS: expected an integer of 1 to {most}, got {asked!r}")
    return int(asked)


def most_threads() -> int:
    """As many threads as anything takes: four for each CPU of the process, or 64."""
    return max(64, 4 * cpus())


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def force_isa(extension: Any, name: str) -> None:
    """Run the native kernels of ISA ``name``; ValueError for one that this build or CPU lacks."""
    try:
        extension.set_isa(name)
    except ValueError as error:
        raise ValueError(f"FASTFER_{error}") from None  # "ISA: expected ..."
