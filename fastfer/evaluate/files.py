# SPDX-License-Identifier: Apache-2.0
"""The files of an evaluation: report.json, model_card.md, confusion.png and confusion.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fastfer
from fastfer.data import Preprocess
from fastfer.data.files import write_text
from fastfer.evaluate.card import model_card
from fastfer.evaluate.cost import Cost
from fastfer.evaluate.report import (
    CONFUSION_FILE,
    CONFUSION_TABLE,
    REPORT_FILE,
    environment,
    write_confusion,
    write_confusion_table,
    write_report,
)
from fastfer.evaluate.run import Evaluation
from fastfer.evaluate.source import Weights
from fastfer.models.info import published_accuracies

CARD_FILE = "model_card.md"
_TRAINED = ("data", "protocol", "split", "epoch", "validation", "config", "start")
"""Entries of a weight file's header that say how it came about."""


def content(weights: Weights, evaluation: Evaluation, cost: Cost, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What report.json holds.

    ``protocol`` has "data", "split", "protocol", "notes", "image_shape", "flip" and "batch_size".
    """
    model, metadata = weights.model, weights.metadata
    groups = {name: {g: asdict(m) for g, m in found.items()} for name, found in evaluation.groups.items()}
    return {
        "model": model.name,
        "options": dict(model.options),
        "weights": weights.path.name,
        **protocol,
        "classes": list(evaluation.classes),
        "metrics": asdict(evaluation.metrics),
        "trained_on": evaluation.trained_on,
        "duplicates": evaluation.duplicates,
        "without_duplicates": evaluation.without_duplicates and asdict(evaluation.without_duplicates),
        "groups": groups,
        "images_per_second": round(evaluation.images_per_second, 1),
        "cost": asdict(cost),
        "published": published_accuracies(model),
        "preprocess": settings(weights.preprocess),
        "trained": {key: metadata[key] for key in _TRAINED if key in metadata},
        "licence": metadata.get("licence"),
        "backends": fastfer.backend.plan(),
        "environment": environment(),
    }


def settings(preprocess: Preprocess) -> dict[str, Any]:
    """The preprocessing as JSON values, without what is switched off."""
    return {key: value for key, value in asdict(preprocess).items() if value not in (None, False)}


def write(out: Path, report: dict[str, Any]) -> list[Path]:
    """Write the four files into ``out``, which is made where it is missing; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    metrics, names = report["metrics"], report["classes"]
    write_report(out, report)
    write_confusion_table(out, metrics["confusion"], names)
    title = f"{report['model']} on {report['data']}, {report['split']}: {metrics['accuracy']:.1%}"
    write_confusion(out, metrics["confusion"], names, title)
    write_text(out / CARD_FILE, model_card(report))
    return [out / name for name in (REPORT_FILE, CARD_FILE, CONFUSION_FILE, CONFUSION_TABLE)]
