# SPDX-License-Identifier: Apache-2.0
"""Where a run stands: which stage is next, and whether one has stopped early. All follows from the history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastfer.train.options import EarlyStop, Stage
from fastfer.train.resolution import last_begins


def exhausted(scores: Sequence[float], stop: EarlyStop) -> bool:
    """Whether the last ``stop.patience`` of a stage's scores, higher better, brought no improvement (as Keras)."""
    best, waited = float("-inf"), 0
    for score in scores:
        if score > best + stop.min_delta:
            best, waited = score, 0
        else:
            waited += 1
    return 0 < stop.patience <= waited


def position(stages: Sequence[Stage], history: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """(number of the stage, from 0, its epochs done) of the next epoch after the rows ``history``; None at the end."""
    for number, stage in enumerate(stages):
        rows = [row for row in history if row["stage"] == number + 1]
        scores = [_score(row, stage.stop) for row in rows[last_begins(stage.phases) :]]  # a stop comes at the last size
        if len(rows) < stage.epochs and not exhausted(scores, stage.stop):
            return number, len(rows)
    return None


def _score(row: dict[str, Any], stop: EarlyStop) -> float:
    return -float(row["validation_loss"]) if stop.monitor == "loss" else float(row["accuracy"])
