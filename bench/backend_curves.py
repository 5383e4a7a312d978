# SPDX-License-Identifier: Apache-2.0
"""Losses of FGW-FER trained from one seed on each CPU backend: do they agree within what float32 ordering explains?

    python -m bench.backend_curves --root PATH/TO/FER2013 [--epochs 2] [--images N]

A fourth run bounds what ordering alone does: the reference with another number of threads, whose sums torch orders
otherwise. Without ``--root`` the drawn faces are used. Writes results/backend-curves.{png,json}.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import fastfer
from fastfer.data import Preprocess, load_dataset
from fastfer.train.config import TrainConfig
from fastfer.train.loop import Trainer, derived_seed

_RESULTS = Path(__file__).parent / "results"
_WINDOW = 25
"""Steps of the running mean that is drawn and compared."""


def losses(config: TrainConfig, split: Any, backend: str, threads: int) -> list[float]:
    """The loss of every step."""
    torch.set_num_threads(threads)
    with fastfer.use(backend):
        torch.manual_seed(derived_seed(config.seed, "weights"))
        model = fastfer.create_model(config.model, num_classes=len(split.names), in_chans=split.channels)
        trainer, found = Trainer(model, split, Preprocess.of(split), config), []
        for epoch in range(int(config.epochs or 0)):
            trainer.train_epoch(epoch, found.append)
    return found


def smooth(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).unfold(0, min(_WINDOW, len(values)), 1).mean(1)


def first_apart(values: list[float], others: list[float]) -> int | None:
    return next((step for step, (a, b) in enumerate(zip(values, others, strict=True)) if abs(a - b) > 1e-3), None)


def draw(curves: dict[str, list[float]], path: Path) -> None:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, values in curves.items():
        left.plot(smooth(values), label=name, linewidth=0.9)
    base = torch.tensor(curves["reference"])
    for name, values in curves.items():
        if name != "reference":
            right.semilogy((torch.tensor(values) - base).abs().clamp_min(1e-9), label=name, linewidth=0.5)
    left.set_title(f"training loss, mean of {_WINDOW} steps", fontsize=8)
    right.set_title("difference from the reference backend, each step", fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=7)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)
    figure.savefig(path.with_suffix(".partial"), format="png", dpi=110)
    os.replace(path.with_suffix(".partial"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int)
    given = parser.parse_args()
    data = "fer2013" if given.root else "drawn"
    config = TrainConfig(data=data, root=given.root, epochs=given.epochs, train_images=given.images).resolved()
    split = load_dataset(data, given.root, train_images=given.images)["train"]
    threads = torch.get_num_threads()
    runs = [(name, name, threads) for name in ("native", "numba", "reference")]
    runs.append(("reference, one thread", "reference", 1))
    curves = {label: losses(config, split, backend, count) for label, backend, count in runs}
    base = smooth(curves["reference"])
    report = {
        "data": data,
        "images": len(split),
        "epochs": given.epochs,
        "seed": config.seed,
        "threads": threads,
        "mean of the last 25 losses": {name: round(float(smooth(values)[-1]), 4) for name, values in curves.items()},
        "largest difference of the running means from the reference": {
            name: float((smooth(values) - base).abs().max()) for name, values in curves.items()
        },
        "steps until a loss differs by 1e-3": {name: first_apart(v, curves["reference"]) for name, v in curves.items()},
    }
    draw(curves, _RESULTS / "backend-curves.png")
    path = _RESULTS / "backend-curves.json"
    path.with_suffix(".partial").write_text(json.dumps(report, indent=2) + "\n")
    os.replace(path.with_suffix(".partial"), path)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
