# SPDX-License-Identifier: Apache-2.0
"""Figures of run folders: confusion matrices, scores by class, learning curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastfer.figures.figure import FigureError

Counts = NDArray[np.int64]


def confusion(folders: Sequence[Path]) -> Figure:
    """A heat map a run: the share of the true class, of the best epoch or of the evaluation that the report is of."""
    figure = Figure(figsize=(5.6 * len(folders), 5.2), layout="constrained")
    grid = figure.subplots(1, len(folders), squeeze=False)[0]
    for axes, folder in zip(grid, folders, strict=True):
        names, counts = _counts(folder)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"{_title(folder)}: {np.trace(counts) / max(counts.sum(), 1):.1%}", fontsize=10)
        for (row, column), value in np.ndenumerate(share):
            colour = "white" if value > 0.55 else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    return figure


def per_class(folders: Sequence[Path]) -> Figure:
    """Precision, recall and F1 of each class; a ratio without cases is 0."""
    figure = Figure(figsize=(9, 2.9 * len(folders)), layout="constrained")
    grid = figure.subplots(len(folders), 1, squeeze=False)[:, 0]
    for axes, folder in zip(grid, folders, strict=True):
        names, counts = _counts(folder)
        scores = class_scores(counts)
        places = np.arange(len(names))
        for at, (label, values) in enumerate(scores.items()):
            axes.bar(places + 0.27 * (at - 1), values, 0.25, label=label)
        axes.set_xticks(places, [f"{name}\n{n}" for name, n in zip(names, counts.sum(axis=1), strict=True)])
        axes.set_ylim(0, 1)
        axes.set_title(_title(folder), fontsize=10)
        axes.legend(ncols=3, fontsize=8)
        axes.grid(axis="y", alpha=0.3)
    return figure


def class_scores(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """precision, recall and F1 by class of a confusion matrix [true][predicted]."""
    hits = np.diag(counts).astype(float)
    precision = hits / np.maximum(counts.sum(axis=0), 1)
    recall = hits / np.maximum(counts.sum(axis=1), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return {"precision": precision, "recall": recall, "F1": f1}


def curves(folders: Sequence[Path]) -> Figure:
    """Loss in training and validation, and accuracy, by epoch; a line a run, a mark where a stage begins."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for number, folder in enumerate(folders):
        rows = _history(folder)
        epochs, colour = [int(row["epoch"]) for row in rows], f"C{number}"
        label = _title(folder)
        losses.plot(
            epochs, [float(row["loss"]) for row in rows], color=colour, linestyle="--", label=f"{label}, training"
        )
        losses.plot(epochs, [float(row["validation_loss"]) for row in rows], color=colour, label=f"{label}, validation")
        accuracies.plot(epochs, [100 * float(row["accuracy"]) for row in rows], color=colour, label=label)
        stages = [row["stage"] for row in rows]
        for before, after, epoch in zip(stages, stages[1:], epochs[1:], strict=False):
            if before != after:
                accuracies.axvline(epoch - 0.5, color=colour, alpha=0.4, linestyle=":")
    losses.set_ylabel("loss")
    accuracies.set_ylabel("accuracy on the validation images, %")
    for axes in (losses, accuracies):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def read_json(path: Path) -> dict[str, Any]:
    """An object of a file. FigureError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FigureError(f"{path}: expected a report, got {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise FigureError(f"{path}: expected a report, got {type(content).__name__}")
    return content


def _counts(folder: Path) -> tuple[list[str], Counts]:
    report = read_json(folder / "report.json")
    classes = report.get("classes")
    confusion = (
        report.get("confusion")
        or _dict(report.get("best")).get("confusion")
        or _dict(report.get("metrics")).get("confusion")
    )
    try:
        counts = np.asarray(confusion, np.int64)
    except (TypeError, ValueError, OverflowError):
        counts = np.zeros(0, np.int64)
    if not isinstance(classes, list) or counts.shape != (len(classes), len(classes)):
        raise FigureError(f"{folder / 'report.json'}: expected classes and their confusion matrix, got neither")
    return [str(name) for name in classes], counts


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _title(folder: Path) -> str:
    report = read_json(folder / "report.json")
    return f"{report.get('model', folder.name)} on {report.get('data', '?')}"


def _history(folder: Path) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    wanted = {"epoch", "stage", "loss", "validation_loss", "accuracy"}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FigureError(f"{path}: expected the epochs of a run, got {type(error).__name__}: {error}") from error
    if not rows or not wanted <= set(rows[0]):
        raise FigureError(f"{path}: expected the epochs of a run with {', '.join(sorted(wanted))}, got none")
    return rows
