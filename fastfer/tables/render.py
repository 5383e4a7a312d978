# SPDX-License-Identifier: Apache-2.0
"""A table with the published figures beside ours: for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table as RichTable

from fastfer.tables.table import Row, Table

if TYPE_CHECKING:
    from fastfer.tables.run import Cell

_NOTHING = "-"


def to_rich(table: Table, cells: Sequence[Cell]) -> RichTable:
    """For a terminal: "published / ours" in a column per data set, those without a run left out where there is one."""
    shown = RichTable(title=table.title, caption="published / ours")
    header, rows = _grid(table, cells)
    pairs = range(1, len(header), 2)
    used = [at for at in pairs if at == 1 or not cells or any(row[at + 1] != _NOTHING for row in rows)]
    shown.add_column(header[0])
    for at in used:
        shown.add_column(header[at].removesuffix(", published"), justify="right")
    for row in rows:
        shown.add_row(row[0], *(f"{row[at]} / {row[at + 1]}" for at in used))
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
    return "\n".join([*lines, *notes(cells), ""])


def notes(cells: Sequence[Cell]) -> list[str]:
    """How each figure of ours was measured."""
    if not cells:
        return []
    head = "Accuracy in %, ours after the best epoch on the images named below, which choose that epoch; after the last"
    lines = [f"{head} in parentheses."]
    for cell in cells:
        spread = "" if cell.sd is None else f", sd {100 * cell.sd:.2f}"
        lines.append(
            f"- {cell.row}, {cell.data}: {cell.images} images ({cell.protocol or 'the validation images'}){spread}; "
            f"{cell.epochs} epochs, seed {cell.seed}, macro-F1 {100 * cell.macro_f1:.2f}, {cell.seconds:.0f} s on "
            f"{cell.environment.get('device', 'cpu')}"
        )
    return lines


def _grid(table: Table, cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    sets = [*table.data, *sorted({cell.data for cell in cells} - set(table.data))]
    header = ["", "parameters, published", "ours"]
    for name in sets:
        header += [f"{name}, published", "ours"]
    return header, [[row.label, *_counts(row, cells), *_scores(row, sets, cells)] for row in table.rows]


def _counts(row: Row, cells: Sequence[Cell]) -> list[str]:
    ours = [f"{cell.parameters:,}" for cell in cells if cell.row == row.label]
    return [_NOTHING if row.parameters is None else f"{row.parameters:,}", ours[0] if ours else _NOTHING]


def _scores(row: Row, sets: Sequence[str], cells: Sequence[Cell]) -> Iterable[str]:
    for name in sets:
        yield f"{row.published[name]:.2f}" if name in row.published else _NOTHING
        found = [cell for cell in cells if (cell.row, cell.data) == (row.label, name)]
        yield f"{100 * found[0].best:.2f} ({100 * found[0].last:.2f})" if found else _NOTHING


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"
