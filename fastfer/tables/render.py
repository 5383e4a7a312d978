# SPDX-License-Identifier: Apache-2.0
"""A table with the published figures beside ours: for the terminal and as Markdown.

Published and ours stand side by side for the same part of the data alone, the test part or the part held out. The
validation score that chose the epoch is a column of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table as RichTable

from fastfer.tables.table import ACCURACY, FACTS, Row, Table

if TYPE_CHECKING:
    from fastfer.tables.run import Cell

_NOTHING = "-"
_FORMATS = {"parameters": "{:,.0f}", "gmac": "{:.3g}", "size_mb": "{:.2f}", "seconds": "{:.4f}"}


def to_rich(table: Table, cells: Sequence[Cell]) -> RichTable:
    """For a terminal; empty columns are left out, and where there are runs the data sets without one."""
    shown = RichTable(title=table.title)
    sets = tuple(dict.fromkeys(cell.data for cell in cells)) or table.data
    header, rows = _grid(replace(table, data=sets), cells)
    used = [at for at, name in enumerate(header) if at == 0 or any(row[at] != _NOTHING for row in rows)]
    for at in used:
        shown.add_column(header[at], justify="left" if at == 0 else "right")
    for row in rows:
        shown.add_row(*(row[at] for at in used))
    return shown


def to_markdown(table: Table, cells: Sequence[Cell]) -> str:
    """With the protocols below."""
    header, rows = _grid(table, cells)
    lines = [
        f"# {table.title}",
        "",
        _line(header),
        _line(["---", *("---:" for _ in header[1:])]),
        *map(_line, rows),
        "",
    ]
    return "\n".join([*lines, *notes(cells), *why_not(table), ""])


def notes(cells: Sequence[Cell]) -> list[str]:
    """How each figure of ours was measured."""
    if not cells:
        return []
    lines = [
        "In %. Validation: accuracy after the best epoch, on the images that chose it; after the last in parentheses."
    ]
    for cell in cells:
        spread = "" if cell.sd is None else f", sd {100 * cell.sd:.2f}"
        test = cell.tested.why or f"{cell.tested.images} images of {cell.tested.part}"
        lines.append(
            f"- {cell.row}, {cell.data}: {test}; validation {cell.images} images "
            f"({cell.protocol or 'the validation images'}){spread}; {cell.epochs} epochs, seed {cell.seed}, macro-F1 "
            f"{100 * cell.macro_f1:.2f}, {cell.seconds:.0f} s on {cell.environment.get('device', 'cpu')}"
        )
    return lines


def why_not(table: Table) -> list[str]:
    """The rows that cannot be run here, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in table.rows:
        if row.obstacle:
            reasons.setdefault(row.obstacle, []).append(row.label)
    return [f"- not run here: {', '.join(labels)}: {reason}" for reason, labels in reasons.items()]


def _grid(table: Table, cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    sets = [*table.data, *sorted({cell.data for cell in cells} - set(table.data))]
    header = [""]
    for fact in table.facts:
        header += [f"{FACTS[fact]}, published", "ours"]
    for name in sets:
        for column in table.columns:
            shown = name if column == ACCURACY else f"{name} {column}"
            header += [f"{shown}, published", "ours"]
        header.append(f"{name}, ours, validation")
    return header, [[row.label, *_facts(table, row, cells), *_scores(table, row, sets, cells)] for row in table.rows]


def _facts(table: Table, row: Row, cells: Sequence[Cell]) -> list[str]:
    own = next((cell.facts for cell in cells if cell.row == row.label), {})
    return [
        _FORMATS[fact].format(figures[fact]) if fact in figures else _NOTHING
        for fact in table.facts
        for figures in (row.facts, own)
    ]


def _scores(table: Table, row: Row, sets: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    shown = []
    for name in sets:
        cell = next((cell for cell in cells if (cell.row, cell.data) == (row.label, name)), None)
        scores = cell.tested.scores if cell else {}
        for column in table.columns:
            published = row.published.get((name, column))
            shown.append(_NOTHING if published is None else f"{published:.2f}")
            shown.append(f"{100 * scores[column]:.2f}" if column in scores else _NOTHING)
        shown.append(f"{100 * cell.best:.2f} ({100 * cell.last:.2f})" if cell else _NOTHING)
    return shown


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"
