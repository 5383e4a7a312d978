# SPDX-License-Identifier: Apache-2.0
"""Drawings of a machine's file (`bench.machine_file`), as SVG whose letters are text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.compare import Ratio
from bench.layers import NETWORKS
from bench.machine_file import Row, is_disturbed

_COLOURS = dict(zip(NETWORKS, ("C0", "C1", "C2", "C3", "C4"), strict=True))
_MARKS = {"float32": "o", "bfloat16": "s", "int8": "^"}
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "fastfer", "font.size": 9}
_UNITS = {
    "pixels": "side of an image, pixels",
    "batch": "images a call",
    "threads": "threads, 32 images",
    "classes": "classes",
}


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with mpl.rc_context(_SETTINGS):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _label(row: Row) -> str:
    return f"{row['network']}, {row['batch']}{' (disturbed)' if is_disturbed(row) else ''}"


def speedups(content: dict[str, Any], path: Path) -> None:
    """Ratio to each peer, a bar for each network and batch, with the spread over rounds; pale where disturbed."""
    most = max(row["threads"] for row in content["ratios"])
    rows = [row for row in content["ratios"] if row["threads"] == most and row["dtype"] == "float32"]
    rows.sort(key=lambda row: (list(NETWORKS).index(row["network"]), row["batch"]))
    peers = list(dict.fromkeys(peer["name"] for row in rows for peer in row["timings"][1:]))
    figure = Figure(figsize=(7.5, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes, height = figure.add_subplot(), 0.8 / max(1, len(peers))
    for number, name in enumerate(peers):
        for place, row in enumerate(rows):
            own = row["timings"][0]["rounds"]
            for peer in row["timings"][1:]:
                if peer["name"] == name:
                    spread = [theirs / ours for theirs, ours in zip(peer["rounds"], own, strict=True)]
                    value = Ratio.of(row, peer).value
                    axes.barh(
                        place + (number - (len(peers) - 1) / 2) * height, value - 1, height, left=1,
                        color=f"C{number}", alpha=0.3 if is_disturbed(row) else 1.0, label=name if place == 0 else None,
                        xerr=[[value - min(spread)], [max(spread) - value]], error_kw={"lw": 0.8},
                    )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 3, 4, 5, 8], ["1", "2", "3", "4", "5", "8"])
    axes.set_xticks([], minor=True)
    axes.axvline(1, color="black", lw=0.8)
    axes.set(xlabel="time of the peer over time of the engine")
    axes.set_title(f"network, images a call; {most} threads, float32")
    axes.legend()
    _save(figure, path)


def roofline(content: dict[str, Any], path: Path) -> None:
    """Each step of each network: multiply-adds a second against multiply-adds a byte, under the ceilings."""
    rows = [row for row in content["steps"] if row["threads"] == 1 and row["dtype"] == "float32"]
    peak = content["ceilings"]["1"]
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        steps = [step for step in row["steps"] if step[2] > 0 and step[3] > 0 and step[1] > 0]
        intensity = [step[2] / step[3] for step in steps]
        rate = [step[2] / step[1] / 1e3 for step in steps]
        share = [max(6.0, 900 * step[1] / sum(other[1] for other in row["steps"])) for step in steps]
        axes.scatter(intensity, rate, share, alpha=0.6, color=_COLOURS[row["network"]], label=row["network"])
    for kind, style in (("cache", "-"), ("memory", ":")):
        knee = peak["gmacs"] / peak[kind]
        axes.plot([0.01, knee, 300], [0.01 * peak[kind], peak["gmacs"], peak["gmacs"]], style, color="0.3", lw=1)
        axes.annotate(
            f"{kind}, {peak[kind]:.0f} GB/s", (0.012, 0.0135 * peak[kind]), rotation=33, fontsize=8, color="0.3"
        )
    axes.annotate(f"{peak['gmacs']:.0f} GMAC/s", (100, 1.06 * peak["gmacs"]), fontsize=8, color="0.3")
    axes.set(
        xscale="log", yscale="log", xlabel="multiply-adds a byte", ylabel="GMAC/s", xlim=(0.01, 300), ylim=(0.05, None)
    )
    axes.set_title("steps of one image on one thread; a dot's area is its share of the network's time")
    legend = axes.legend(loc="lower right")
    for handle in legend.legend_handles:
        handle.set_sizes([40])  # type: ignore[union-attr]
    _save(figure, path)


def accuracies(page: Path) -> dict[tuple[str, str], float]:
    """Percent by network and precision, from the table of ``bench.engine_faces``: of the most faces."""
    rows = re.findall(r"^\| (\w+) \| (\w+) \| \w+ \| (\d+) \| ([\d.]+)% ", page.read_text(), re.MULTILINE)
    rows.sort(key=lambda row: int(row[2]))
    return {(network, dtype): float(value) for network, dtype, _, value in rows}


def accuracy(content: dict[str, Any], page: Path, path: Path) -> bool:
    """Accuracy on FER2013's PublicTest against the time of one face on one thread; False where times are missing."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes, known, drawn = figure.add_subplot(), accuracies(page), False
    for row in content["ratios"]:
        value = known.get((row["network"], row["dtype"]))
        if value is not None and row["batch"] == 1 and row["threads"] == 1:
            time = 1e3 * row["timings"][0]["median"]
            axes.scatter(time, value, 45, color=_COLOURS[row["network"]], marker=_MARKS[row["dtype"]])
            axes.annotate(
                f"{row['network']} {row['dtype']}", (time, value), (6, 4), textcoords="offset points", fontsize=8
            )
            drawn = True
    axes.set(xlabel="ms a face, one thread", ylabel="accuracy on PublicTest, %", xlim=(0, None))
    axes.margins(x=0.25, y=0.25)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if drawn:
        _save(figure, path)
    return drawn


def growth(rows: Sequence[Row], axes_names: Sequence[str], path: Path) -> None:
    """Time and memory of each curve, an axis of growth a column."""
    figure = Figure(figsize=(3.1 * len(axes_names), 5.2), layout="constrained")
    panels = figure.subplots(2, len(axes_names), squeeze=False)
    kinds: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("ms a call", lambda row: 1e3 * row["median"]),
        ("MiB", lambda row: row["mib"]),
    )
    for column, name in enumerate(axes_names):
        for line, (label, value) in enumerate(kinds):
            axes = panels[line][column]
            for network in dict.fromkeys(row["network"] for row in rows):
                points = sorted(
                    (row["value"], value(row)) for row in rows if (row["axis"], row["network"]) == (name, network)
                )
                if points:
                    axes.plot(*zip(*points, strict=True), ".-", color=_COLOURS[network], label=network, lw=1)
            axes.set(xscale="log", yscale="log", xlabel=_UNITS[name], ylabel=label)
            ticks = sorted({row["value"] for row in rows if row["axis"] == name})[:: 1 if name != "pixels" else 2]
            axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
            axes.set_xticks([], minor=True)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, high / 20), high * 1.5)  # what hardly grows looks so
            axes.yaxis.set_major_formatter(lambda number, _: f"{number:g}")
            axes.yaxis.set_minor_formatter("")
            axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=7)
    _save(figure, path)
