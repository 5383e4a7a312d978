# SPDX-License-Identifier: Apache-2.0
"""report.json, confusion.png and confusion.csv, each written whole; what a report says of the machine."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

import fastfer
from fastfer.data.files import printable, replace_atomically, write_text
from fastfer.evaluate.fonts import shown
from fastfer.info import cpu_model

REPORT_FILE, CONFUSION_FILE, CONFUSION_TABLE = "report.json", "confusion.png", "confusion.csv"


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Strict JSON: a number that is not finite becomes null."""
    write_text(out / REPORT_FILE, json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_confusion(out: Path, confusion: Sequence[Sequence[int]], names: Sequence[str], title: str) -> None:
    """Heat map of the confusion matrix: colour and first number are the share of the true class, below it the count.

    Names whose letters no installed font has are numbers, and a line below says so.
    """
    labels = shown(names)
    font = FontProperties() if labels.path is None else FontProperties(fname=labels.path)
    text: dict[str, Any] = {"fontproperties": font, "parse_math": False}  # a name may hold dollar signs
    counts = np.asarray(confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 1.6 + 0.85 * len(names)
    figure = Figure(figsize=(size + 0.8, size), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    rows = [f"{name} ({row.sum()})" for name, row in zip(labels.names, counts, strict=True)]
    axes.set_xticks(range(len(names)), labels.names, rotation=35, ha="right", **text)
    axes.set_yticks(range(len(names)), rows, **text)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (images)")
    axes.set_title(printable(title), parse_math=False)
    if labels.note:
        figure.supxlabel(labels.note, fontsize=8)
    for (row, column), value in np.ndenumerate(share):
        axes.text(
            column,
            row,
            f"{value:.1%}\n{counts[row, column]}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if value > 0.55 else "black",
        )
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    with replace_atomically(out / CONFUSION_FILE) as temporary:
        figure.savefig(temporary, format="png")


def write_confusion_table(out: Path, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """The counts as csv: a row per true class, a column per predicted one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    plain = [csv_text(name) for name in names]
    writer.writerow(["true \\ predicted", *plain])
    writer.writerows([name, *row] for name, row in zip(plain, confusion, strict=True))
    write_text(out / CONFUSION_TABLE, text.getvalue())


def csv_text(text: str) -> str:
    """A name that no spreadsheet takes for a formula, nor a terminal for a command."""
    return f"'{printable(text)}" if text.lstrip()[:1] in ("=", "+", "-", "@") else printable(text)


def environment() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "fastfer": fastfer.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
