# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it works: a bar over the steps of an epoch, and one line per epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastfer.data.files import terminal


class Display:
    """Writes to ``console``; a bar appears only on a terminal, and only on it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def line(self, text: str) -> None:
        """One line of plain text."""
        self.console.print(terminal(text), markup=False, soft_wrap=True)

    @contextmanager
    def epoch(self, title: str, steps: int) -> Iterator[Callable[[float], None]]:
        """Context in which the yielded function, called with each step's loss, moves the bar."""
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with progress:
            task = progress.add_task(title, total=steps, loss=float("nan"))
            yield lambda loss: progress.update(task, advance=1, loss=loss)


class Silent(Display):
    """Shows nothing."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
