# SPDX-License-Identifier: Apache-2.0
"""Figures of tables: the weight of the centre loss, and accuracy against size and time, with the papers' points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fastfer.figures.figure import FigureError
from fastfer.figures.scores import read_json
from fastfer.tables.run import RESULTS_FILE, Cell, read_cells
from fastfer.tables.table import ACCURACY, Table, load_table


def sweep(folders: Sequence[Path]) -> Figure:
    """A line a data set; the paper's figure is its best point, which is all that it gives in numbers."""
    (folder,) = _one(folders)
    table, cells = _table(folder)
    points = [(float(row.label.rpartition(" ")[2]), row) for row in table.rows if row.label.startswith("lambda ")]
    if not points:
        raise FigureError(f"{folder}: expected the table mobilenetv3-lambda, got {table.name}")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, data in enumerate(dict.fromkeys([*table.data, *(cell.data for cell in cells)])):
        mine = {cell.row: cell for cell in cells if cell.data == data}
        ours = [(weight, 100 * _score(mine[row.label])) for weight, row in points if row.label in mine]
        published = [
            (weight, row.published[data, ACCURACY]) for weight, row in points if (data, ACCURACY) in row.published
        ]
        if ours:
            axes.plot(*zip(*ours, strict=True), "o-", color=f"C{number}", label=f"{data}, ours")
        if published:
            axes.plot(
                *zip(*published, strict=True), "*", color=f"C{number}", markersize=12, label=f"{data}, paper's best"
            )
    axes.set_xlabel("weight of the centre loss, λ")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def size(folders: Sequence[Path]) -> Figure:
    """Accuracy against parameters (and seconds an image where a table has them): filled ours, hollow published."""
    points = [point for folder in folders for point in _points(*_table(folder))]
    axes_of = [fact for fact in ("parameters", "seconds") if any(fact in point["facts"] for point in points)]
    if not points or not axes_of:
        raise FigureError("sources: expected tables with parameters and accuracies, got none")
    figure = Figure(figsize=(6.6 * len(axes_of), 4.8), layout="constrained")
    grid = figure.subplots(1, len(axes_of), squeeze=False)[0]
    colours = {data: f"C{n}" for n, data in enumerate(dict.fromkeys(point["data"] for point in points))}
    for axes, fact in zip(grid, axes_of, strict=True):
        for point in points:
            if fact in point["facts"]:
                style = {"facecolors": colours[point["data"]] if point["ours"] else "none"}
                at = point["facts"][fact], point["accuracy"]
                axes.scatter(*at, edgecolors=colours[point["data"]], **style)
                axes.annotate(point["label"], at, fontsize=7, xytext=(4, 3), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xlabel(fact if fact == "parameters" else "seconds an image")
        axes.set_ylabel("accuracy, %")
        axes.grid(alpha=0.3, which="both")
        for data, colour in colours.items():
            axes.scatter([], [], color=colour, label=data)
        axes.scatter([], [], facecolors="none", edgecolors="black", label="published")
        axes.legend(fontsize=8)
    return figure


def _points(table: Table, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        for data in table.data:
            if (data, ACCURACY) in row.published and row.facts:
                accuracy = row.published[data, ACCURACY]
                yield {"label": row.label, "data": data, "accuracy": accuracy, "facts": row.facts, "ours": False}
    for cell in cells:
        yield {
            "label": f"{cell.row}, ours",
            "data": cell.data,
            "accuracy": 100 * _score(cell),
            "facts": cell.facts,
            "ours": True,
        }


def _score(cell: Cell) -> float:
    """On the part that the paper measured on; where the data set has none, the last epoch's validation score."""
    return cell.tested.scores.get(ACCURACY, cell.last)


def _table(folder: Path) -> tuple[Table, list[Cell]]:
    name = read_json(folder / RESULTS_FILE).get("table")
    try:
        return load_table(str(name)), read_cells(folder)
    except ValueError as error:
        raise FigureError(f"{folder / RESULTS_FILE}: {error}") from error


def _one(folders: Sequence[Path]) -> Sequence[Path]:
    if len(folders) != 1:
        raise FigureError(f"sources: expected one, got {len(folders)}")
    return folders
