# SPDX-License-Identifier: Apache-2.0
"""Scores from logits and labels, the same for training, evaluation and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15
"""Bins of equal width for the calibration error (Guo et al. 2017)."""


@dataclass(frozen=True)
class Metrics:
    """Scores of one set of images. precision, recall, f1 and the rows of confusion are in the order of the classes.

    confusion[t][p] counts images of class t taken for class p. A ratio without cases is 0: precision of a class that
    was never predicted, recall of one without images; macro_f1 leaves out classes that are neither there nor predicted.
    accuracy_interval is Wilson's for 95 %; loss the mean cross-entropy; calibration_error the mean distance between
    confidence and accuracy over `BINS` bins.
    """

    images: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    calibration_error: float
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]


def require_torchmetrics() -> Any:
    """torchmetrics' functions for classification. ImportError, saying why, where they cannot be had."""
    try:
        import torchmetrics.functional.classification as functions
    except (ImportError, RuntimeError) as error:  # RuntimeError: an installed torchvision does not fit torch
        raise ImportError(f"cannot import torchmetrics ({error})") from error
    return functions


def measure(logits: Tensor, labels: Tensor, classes: int) -> Metrics:
    """`Metrics` of logits (N, classes) against labels (N,), N >= 1.

    ValueError for shapes that do not fit, ImportError without torchmetrics.
    """
    if logits.ndim != 2 or logits.shape[1] != classes or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits and labels: expected shapes (N, {classes}) and (N,), N >= 1, "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    functions = require_torchmetrics()
    logits = logits.float()
    predicted = logits.argmax(1)
    correct = int((predicted == labels).sum())
    per_class = {
        name: tuple(round(value, 6) for value in score(predicted, labels, classes, average="none").tolist())
        for name, score in (
            ("precision", functions.multiclass_precision),
            ("recall", functions.multiclass_recall),
            ("f1", functions.multiclass_f1_score),
        )
    }
    return Metrics(
        images=len(labels),
        loss=float(F.cross_entropy(logits, labels)),
        accuracy=correct / len(labels),
        accuracy_interval=wilson(correct, len(labels)),
        macro_f1=round(float(functions.multiclass_f1_score(predicted, labels, classes, average="macro")), 6),
        calibration_error=_calibration_error(logits, labels, classes, functions),
        confusion=tuple(map(tuple, functions.multiclass_confusion_matrix(predicted, labels, classes).tolist())),
        **per_class,
    )


def _calibration_error(logits: Tensor, labels: Tensor, classes: int, functions: Any) -> float:
    if not bool(logits.isfinite().all()):
        return math.nan
    error = functions.multiclass_calibration_error(torch.softmax(logits, 1), labels, classes, n_bins=BINS, norm="l1")
    return round(float(error), 6)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, rounded to 6 digits."""
    z = 1.959964
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return round(max(0.0, centre - half), 6), round(min(1.0, centre + half), 6)
