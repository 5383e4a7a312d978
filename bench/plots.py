# SPDX-License-Identifier: Apache-2.0
"""Bar charts of the speed-up over the fastest stock PyTorch contender, shape by shape."""

from __future__ import annotations

import math
import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.layers import NETWORKS
from bench.results import Results, Row, geometric_mean

_COLOURS = dict(zip((*NETWORKS, "none"), ("C0", "C1", "C2", "C3", "C4", "C7"), strict=True))
_FIGURES = {  # file stem: works, one panel each
    "block-inference": ("block inference, batch 1", "block inference, batch 32"),
    "block-training": ("block training",),
    "depthwise-backward": ("depthwise backward",),
}
_TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)


def _panels(results: Results, works: tuple[str, ...]) -> list[tuple[str, str, list[Row]]]:
    """(work, title, rows) for each work and allocator that has results."""
    found = [(w, f"{w}, {a} allocator", results.of(w, a)) for w in works for a in results.allocators]
    return [(work, title, [r for r in rows if math.isfinite(r.speedup())]) for work, title, rows in found if rows]


def plot(results: Results, folder: Path, name: str, targets: dict[str, float]) -> list[Path]:
    """Write ``folder/name-<figure>.png``, those with results, and return their paths."""
    paths = []
    for stem, works in _FIGURES.items():
        panels = _panels(results, works)
        if not panels:
            continue
        tallest = max(len(rows) for _, _, rows in panels)
        figure = Figure(figsize=(5.2 * len(panels), 1.2 + 0.19 * tallest), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (work, title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            speeds = [row.speedup() for row in rows]
            places = range(len(rows))
            colours = [_COLOURS[row.network] for row in rows]
            axes.barh(places, [speed - 1 for speed in speeds], left=1, color=colours)
            axes.set_yticks(places, [f"{row.network} {row.shape}" for row in rows], fontsize=6)
            axes.invert_yaxis()
            axes.set_xscale("log")
            low, high = 0.8 * min(1, *speeds), 1.2 * max(targets[work], *speeds)
            axes.set_xlim(low, high)
            ticks = [tick for tick in _TICKS if low < tick < high]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
            axes.axvline(1, color="black", linewidth=0.8)
            axes.axvline(targets[work], color="black", linewidth=0.8, linestyle=":")
            axes.set_title(
                f"{title}\ngeometric mean {geometric_mean(speeds):.2f}×, target {targets[work]:g}×", fontsize=8
            )
            axes.set_xlabel("speed-up over the fastest stock PyTorch contender", fontsize=7)
            axes.tick_params(axis="x", labelsize=7)
        path = folder / f"{name}-{stem}.png"
        partial = path.with_suffix(".partial")
        figure.savefig(partial, format="png", dpi=110)
        os.replace(partial, path)
        paths.append(path)
    return paths
