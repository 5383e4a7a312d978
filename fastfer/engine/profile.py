# SPDX-License-Identifier: Apache-2.0
"""What a plan's steps take: a table and a figure. Needs no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastfer.engine.tables import table

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A step of a plan on one image: seconds, multiply-adds, bytes of maps and weights read and written once.

    ``node`` is its number in the graph, ``tasks`` the parts of it that may run at once.
    """

    name: str
    node: int
    seconds: float
    macs: float
    bytes: float
    tasks: int


@dataclass(frozen=True)
class Profile:
    """The steps in the order in which they run; ``peak`` multiply-adds a second are the ceiling of their threads."""

    steps: tuple[Step, ...]
    title: str
    threads: int
    peak: float

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]], model: str | None, threads: int) -> Profile:
        """From the rows of the native plan; measures the ceiling."""
        return cls(tuple(Step(*row) for row in rows), model or "network", threads, measured_peak(threads))

    @property
    def seconds(self) -> float:
        """Of all steps, one after the other."""
        return sum(step.seconds for step in self.steps)

    def ceiling(self, step: Step) -> float:
        """Percent of the ceiling that a step's arithmetic reaches."""
        return 100 * step.macs / step.seconds / self.peak if step.seconds > 0 else 0.0

    def __str__(self) -> str:
        total = sum(step.macs for step in self.steps)
        whole = Step("all", -1, self.seconds, total, sum(step.bytes for step in self.steps), 0)
        rows = [
            [
                step.name, f"{1e6 * step.seconds:.1f}", f"{100 * step.seconds / max(self.seconds, 1e-12):.1f}",
                f"{step.macs / 1e6:.3f}", f"{step.macs / max(step.seconds, 1e-12) / 1e9:.1f}",
                f"{self.ceiling(step):.0f}", f"{step.bytes / 1024:.0f}", str(step.tasks) if step.tasks else "",
            ]
            for step in (*self.steps, whole)
        ]  # fmt: skip
        header = ("step", "µs", "% of time", "MMAC", "GMAC/s", "% of ceiling", "KiB", "tasks")
        title = f"{self.title}, one image, {self.threads} threads; ceiling {self.peak / 1e9:.0f} GMAC/s"
        return table(title, header, rows)

    def plot(self, path: str | Path) -> None:
        """Write a figure: a bar for each step's time, its colour the share of the ceiling.

        Raises ImportError naming the extra where matplotlib is missing.
        """
        try:
            from matplotlib.cm import ScalarMappable
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(f"{error}; a figure needs matplotlib: pip install 'fastfer[plot]'") from None
        import numpy as np

        colours = ScalarMappable(cmap="viridis")
        colours.set_clim(0, 100)
        shares = np.array([self.ceiling(step) for step in self.steps])
        figure = Figure(figsize=(8, 1.5 + 0.2 * len(self.steps)), layout="constrained")
        axes = figure.add_subplot()
        times = [1e6 * step.seconds for step in self.steps]
        axes.barh(range(len(times)), times, color=colours.to_rgba(shares))
        axes.set_yticks(range(len(times)), [step.name for step in self.steps], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("µs")
        axes.set_title(f"{self.title}: {1e6 * self.seconds:.0f} µs, {self.threads} threads")
        figure.colorbar(colours, ax=axes, label="% of the arithmetic ceiling")
        from fastfer._files import replace_atomically

        with replace_atomically(path) as temporary:
            suffix = os.path.splitext(path)[1].lstrip(".") or "png"
            figure.savefig(temporary, format=suffix)


def steps_table(rows: Sequence[tuple[Any, ...]], title: str, memory: dict[str, int]) -> str:
    """The rows of the native plan without their times, which do not repeat."""
    steps = [Step(*row) for row in rows]
    cells = [[s.name, str(s.node) if s.node >= 0 else "", f"{s.macs / 1e6:.3f}", f"{s.bytes / 1024:.0f}", str(s.tasks)]
             for s in steps]  # fmt: skip
    macs, moved = sum(s.macs for s in steps), sum(s.bytes for s in steps)
    cells.append(["all", "", f"{macs / 1e6:.3f}", f"{moved / 1024:.0f}", ""])
    sizes = ", ".join(f"{name} {count / 1024:.0f} KiB" for name, count in memory.items())
    return table(f"{title}; {sizes}", ("step", "node", "MMAC", "KiB", "tasks"), cells)


def measured_peak(threads: int, size: int = 768, seconds: float = 0.03) -> float:
    """float32 multiply-adds a second of ``threads``, from the best of numpy's matrix products, which use all CPUs."""
    import numpy as np

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    a = np.ones((size, size), np.float32)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        start = time.perf_counter()
        np.matmul(a, a)
        best = min(best, time.perf_counter() - start)
    return float(size) ** 3 / best * min(threads, cpus) / cpus
