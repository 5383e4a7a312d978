# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself: rows of metrics.csv, header of the weights, report.json."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

import fastfer
from fastfer.data import Preprocess, Split
from fastfer.data.split_record import SplitRecord
from fastfer.models import FerModel
from fastfer.train import report
from fastfer.train.config import TrainConfig
from fastfer.train.evaluate import Scores
from fastfer.train.feed import Source, class_counts, image_shape
from fastfer.train.loop import EpochResult, Trainer
from fastfer.train.options import Stage
from fastfer.train.placement import Placement
from fastfer.train.start import Start


class Run(Protocol):
    """What is read of a run."""

    config: TrainConfig
    public: dict[str, Any]
    model: FerModel
    placement: Placement
    preprocess: Preprocess
    data: str
    source: Source
    names: tuple[str, ...]
    validation_split: Split
    fingerprints: dict[str, str]
    stages: tuple[Stage, ...]
    start: Start
    trainer: Trainer
    history: list[dict[str, Any]]
    best: dict[str, Any]
    last: dict[str, Any]


def row(epoch: int, stage: int, result: EpochResult, scores: Scores, names: Sequence[str]) -> dict[str, Any]:
    """The epoch's line of metrics.csv."""
    return {
        "epoch": epoch,
        "stage": stage,
        "lr": result.lr,
        "loss": result.loss,
        "validation_loss": scores.loss,
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        **{f"recall_{name}": value for name, value in zip(names, scores.recall, strict=True)},
        "skipped_steps": result.skipped,
        "images_per_second": round(result.images_per_second, 1),
        "evaluation_images_per_second": round(scores.images_per_second, 1),
    }


def metadata(run: Run) -> dict[str, Any]:
    """Header of the weight files: what a user of the weights has to know."""
    stored = image_shape(run.source)
    return {
        "classes": list(run.names),
        "preprocess": run.preprocess.to_json(),
        "stored": list(stored),
        "input": list(run.preprocess.size or stored[1:]),
        "data": run.data,
        "protocol": run.source.protocol,
        "split": split_record(run).to_json(),
        "epoch": run.last["epoch"],
        "validation": {key: run.last[key] for key in ("accuracy", "macro_f1")},
        "config": run.public,
    }


def split_record(run: Run) -> SplitRecord:
    """Which images the run trains and is validated on."""
    train = run.source if isinstance(run.source, Split) else len(run.source)
    parts: dict[str, Split | int] = {"train": train, "validation": run.validation_split}
    return SplitRecord.of(run.data, run.config.data_options, parts, run.config.train_images)


def content(run: Run) -> dict[str, Any]:
    """report.json."""
    config, names, history = run.config, run.names, run.history
    return {
        "model": config.model,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "data": run.data,
        "classes": list(names),
        "images": {"train": class_counts(run.source), "validation": run.validation_split.counts()},
        "protocol": {"train": run.source.protocol, "validation": run.validation_split.protocol},
        "epochs": {"done": len(history), "planned": sum(stage.epochs for stage in run.stages)},
        "best": _named(run.best, names),
        "last": _named(run.last, names),
        "images_per_second": {
            "training": statistics.median([row["images_per_second"] for row in history]),
            "evaluation": statistics.median([row["evaluation_images_per_second"] for row in history]),
        },
        "start": run.start.source or "fresh weights",
        "recipe": config.recipe,
        "loss": str(config.loss),
        "backends": fastfer.backend.plan(),
        "seed": config.seed,
        "preprocess": run.preprocess.to_json(),
        "split": split_record(run).to_json(),
        "fingerprints": run.fingerprints,
        "config": run.public,
        "environment": {
            **report.environment(),
            "device": run.placement.device.type,
            "processes": run.placement.processes,
            "precision": run.placement.precision,
            "resident": run.trainer.resident,
        },
    }


def write(out: Path, content: dict[str, Any], history: Sequence[dict[str, Any]], new_best: bool) -> None:
    """metrics.csv, report.json and, where the best epoch is new or the picture missing, confusion.png."""
    report.write_metrics(out, history)
    report.write_report(out, content)
    if new_best or not (out / report.CONFUSION_FILE).exists():
        best = content["best"]
        title = f"{content['model']} on {content['data']}, epoch {best['epoch']}: {best['accuracy']:.1%}"
        report.write_confusion(out, best["confusion"], content["classes"], title)


def resources(placement: Placement) -> str:
    """ "2 threads, backend native", or with several processes or devices what there is of each."""
    used = [f"{torch.get_num_threads()} threads"]
    if placement.processes > 1:
        used.insert(0, f"{placement.processes} processes")
    if placement.device.type != "cpu":
        used.append(torch.cuda.get_device_name(placement.device))
    if placement.precision != "fp32":
        used.append(placement.precision)
    return ", ".join([*used, _backends()])


def _backends() -> str:
    """ "backend native" or, where families differ, "backends native (elementwise, pool), reference (norm)"."""
    families: dict[str, list[str]] = {}
    for family, name in fastfer.backend.plan().items():
        families.setdefault(name, []).append(family)
    if len(families) == 1:
        return f"backend {next(iter(families))}"
    return "backends " + ", ".join(f"{name} ({', '.join(members)})" for name, members in families.items())


def _named(scores: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {**scores, "recall": dict(zip(names, scores["recall"], strict=True))}
