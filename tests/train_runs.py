# SPDX-License-Identifier: Apache-2.0
"""Small training runs, and what their folders hold; the tests of the trainer share them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fastfer.data import BASIC_NAMES, FER2013_CODES, canonical_name, drawn
from fastfer.models import read_metadata
from fastfer.train import TrainConfig, train
from fastfer.train.progress import Display

FILES = {"config.yaml", "metrics.csv", "report.json", "confusion.png", "best.safetensors", "last"}
STATE_FILES = {"weights.safetensors", "optimizer.safetensors", "state.json"}


def tiny(out: Path, **options: Any) -> TrainConfig:
    """Three steps an epoch, the last one of half a batch."""
    values: dict[str, Any] = {"epochs": 3, "batch_size": 8, "train_images": 20, "validation_images": 14, "threads": 1}
    return TrainConfig(out=str(out), **{**values, **options})


def arguments(out: Path, *more: str) -> list[str]:
    sizes = ["--train-images", "20", "--validation-images", "14", "--batch-size", "8", "--threads", "1"]
    return ["--out", str(out), "--epochs", "2", *sizes, *more]


class InterruptedDisplay(Display):
    """Ctrl-C in step ``step`` of epoch ``epoch``, counted over this display's life."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(Console(quiet=True))
        self.at = (epoch, step)
        self.epochs = 0

    @contextmanager
    def epoch(self, title: str, steps: int) -> Iterator[Callable[[float], None]]:
        self.epochs += 1
        done = 0

        def on_step(loss: float) -> None:
            nonlocal done
            done += 1
            if (self.epochs, done) == self.at:
                raise KeyboardInterrupt

        yield on_step


def interrupt(config: TrainConfig, epoch: int, step: int = 2) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, display=InterruptedDisplay(epoch, step))


def read_metrics(out: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without the speeds, which no two runs share."""
    with (out / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if "per_second" not in k} for row in csv.DictReader(file)]


def assert_same_run(a: Path, b: Path) -> None:
    """Equal bits in every tensor (the order of a safetensors header is not fixed), equal numbers in the other files."""
    for name in ("best.safetensors", "last/weights.safetensors"):
        headers = [read_metadata(out / name) for out in (a, b)]
        for header in headers:
            header["config"].pop("epochs")  # may grow under the plateau schedule
        assert headers[0] == headers[1]
    for name in ("best.safetensors", "last/weights.safetensors", "last/optimizer.safetensors"):
        first, second = load_file(a / name), load_file(b / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), f"{name}: {key}"
    assert read_metrics(a) == read_metrics(b)
    states = [json.loads((out / "last" / "state.json").read_text()) for out in (a, b)]
    assert states[0]["scheduler"] == states[1]["scheduler"]
    assert states[0]["groups"] == states[1]["groups"]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def write_fer2013(folder: Path, train_images: int, validation_images: int) -> Path:
    """fer2013.csv of drawn faces."""
    splits = drawn.load(train_images, validation_images)
    codes = [FER2013_CODES.index(alias) for alias in map(_alias, BASIC_NAMES)]
    rows = [
        f"{codes[label]},{' '.join(map(str, face.ravel()))},{usage}"
        for part, usage in (("train", "Training"), ("validation", "PublicTest"))
        for face, label in zip(splits[part].images, splits[part].labels, strict=True)
    ]
    path = folder / "fer2013.csv"
    path.write_text("\n".join(["emotion,pixels,Usage", *rows]))
    return path


def _alias(name: str) -> str:
    return next(code for code in FER2013_CODES if canonical_name(code) == name)
