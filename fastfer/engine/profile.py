# SPDX-License-Identifier: Apache-2.0
"""What a plan's steps take: a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Step:
    """A step of a plan on one image: seconds, multiply-adds, bytes read and written, parts that may run at once."""

    name: str
    node: int
    seconds: float
    macs: float
    bytes: float
    tasks: int


@dataclass(frozen=True)
class Profile:
    """Steps in the order in which they run, ``peak`` multiply-adds a second that the threads reach at most."""

    steps: tuple[Step, ...]
    title: str
    threads: int
    peak: float

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]], model: str | None, threads: int) -> Profile:
        """From the rows of the native plan."""
        return cls(tuple(Step(*row) for row in rows), model or "network", threads, 0.0)
