# SPDX-License-Identifier: Apache-2.0
"""One page over all weights that ship: a table, and accuracy against parameters and time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastfer.data.files import replace_atomically, write_text
from fastfer.models import create_model
from fastfer.models.info import published_accuracies

PLOT_FILE, PAGE_FILE = "accuracy.svg", "README.md"


@dataclass(frozen=True)
class Point:
    """Somebody's figure on FER2013, percent; ``part`` says of which images."""

    name: str
    parameters: int
    accuracy: float
    part: str


FER_PACKAGE = Point("package fer", 58_423, 65.76, "PrivateTest")
"""The network of the package `fer` on the 3,589 PrivateTest faces, where figures are about 2.7 points higher."""


def write_overview(cards: Path) -> list[Path]:
    """Write README.md and accuracy.svg over the cards in ``cards``; returns their paths."""
    reports = [json.loads(path.read_text()) for path in sorted(cards.glob("*/report.json"))]
    page, plot = cards / PAGE_FILE, cards / PLOT_FILE
    with replace_atomically(plot) as temporary:
        figure = _plot(reports)
        FigureCanvasAgg(figure)
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    write_text(page, _page(reports))
    return [page, plot]


def _published() -> list[Point]:
    """What the papers say of their networks on FER2013, as they are by default."""
    points = []
    for name in ("fgw_fer", "sepconv_attention"):
        model = create_model(name)
        accuracy = published_accuracies(model).get("FER2013")
        if accuracy is not None:
            points.append(Point(name, sum(p.numel() for p in model.parameters()), accuracy, "its paper"))
    return points


def _plot(reports: Sequence[dict[str, Any]]) -> Figure:
    """Left accuracy against parameters with others' points, right against milliseconds an image."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ours = [report for report in reports if report["data"] == "fer2013"]
    for report in ours:
        accuracy = 100 * report["metrics"]["accuracy"]
        for axes, x in ((left, report["cost"]["parameters"]), (right, report["cost"]["latency_ms"].get("1"))):
            if x is not None:
                axes.plot(x, accuracy, "o", color="tab:blue")
                axes.annotate(report["model"], (x, accuracy), xytext=(6, -3), textcoords="offset points", fontsize=8)
    for point in (*_published(), FER_PACKAGE):
        left.plot(point.parameters, point.accuracy, "x", color="0.45")
        text = f"{point.name} ({point.part})"
        left.annotate(
            text,
            (point.parameters, point.accuracy),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=7,
            color="0.35",
        )
    left.set(
        xscale="log",
        xlabel="parameters",
        ylabel="accuracy on FER2013, %",
        title="● ours on PublicTest, one view; × others",
    )
    left.set_xlim(3e4, 2e7)
    right.set(
        xlabel="ms an image, batch 1", ylabel="accuracy on PublicTest, %", title="the torch network, CPU of the cards"
    )
    right.margins(x=0.25)  # room for the last name
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _page(reports: Sequence[dict[str, Any]]) -> str:
    head = ("weights", "data", "parameters", "MiB", "accuracy", "with mirror image", "without copies", "macro-F1")
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * 6]
    for report in reports:
        name = report["weights"].removesuffix(".safetensors")
        copies = report["without_duplicates"]
        cells = (
            f"[{name}]({name}/model_card.md)", report["data"], f"{report['cost']['parameters']:,}",
            f"{report['cost']['file_size'] / 2**20:.2f}", f"{report['metrics']['accuracy']:.2%}",
            f"{report['mirrored']['accuracy']:.2%}", "-" if copies is None else f"{copies['accuracy']:.2%}",
            f"{report['metrics']['macro_f1']:.4f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return (
        "# Weights that ship\n\nAccuracy of the files as they ship, in float16, one view an image, on the validation "
        "part of the data set (FER2013: PublicTest), which also chose the epoch. `python -m fastfer.weights` "
        "lists them, `python -m fastfer.publish RUN --root DATA` makes one of a training run.\n\n"
        + "\n".join(lines)
        + f"\n\n![Accuracy against parameters and time]({PLOT_FILE})\n\n"
        "The package `fer` reaches 65.76 % on PrivateTest, where figures are about 2.7 points above PublicTest's.\n"
    )
