# SPDX-License-Identifier: Apache-2.0
"""How far a network's probabilities may be believed: one temperature, and the reliability diagram.

Guo et al., "On calibration of modern neural networks", ICML 2017: logits are divided by a number before softmax, which
changes no answer, only how sure it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from fastfer.evaluate.metrics import BINS, measure

_RANGE = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """The temperature, fitted on ``fitted_on`` images, and the expected calibration error on ``images`` others."""

    temperature: float
    fitted_on: int
    images: int
    error_before: float
    error_after: float
    loss_before: float
    loss_after: float

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the least cross-entropy of logits (N, K) and labels (N,), by golden section on its logarithm.

    The cross-entropy is convex in 1/T, so the section cannot end in a wrong valley. ValueError without images.
    """
    if not len(labels):
        raise ValueError("labels: expected images to fit a temperature on, got none")
    logits = logits.double()
    low, high = (float(np.log(edge)) for edge in _RANGE)
    ratio = (5**0.5 - 1) / 2

    def loss(logarithm: float) -> float:
        return float(F.cross_entropy(logits / float(np.exp(logarithm)), labels))

    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return round(float(np.exp((low + high) / 2)), 4)


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit on every second image, measured on the others: no image says how well it was fitted itself."""
    classes = logits.shape[1]
    fitted, held = slice(0, None, 2), slice(1, None, 2)
    temperature = fit_temperature(logits[fitted], labels[fitted])
    before = measure(logits[held], labels[held], classes)
    after = measure(logits[held] / temperature, labels[held], classes)
    return Calibration(
        temperature=temperature,
        fitted_on=len(labels[fitted]),
        images=len(labels[held]),
        error_before=before.calibration_error,
        error_after=after.calibration_error,
        loss_before=round(before.loss, 6),
        loss_after=round(after.loss, 6),
    )


def reliability(logits: Tensor, labels: Tensor, temperature: float, title: str) -> Figure:
    """Confidence against accuracy in 15 bins, and how many images each bin has."""
    figure = Figure(figsize=(5, 5.4), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="as sure as it is right")
    edges = np.linspace(0, 1, BINS + 1)
    for name, scale, colour in (("as trained", 1.0, "tab:orange"), (f"T = {temperature:g}", temperature, "tab:blue")):
        confidence, predicted = torch.softmax(logits / scale, 1).max(1)
        right = (predicted == labels).numpy()
        values = confidence.numpy()
        bins = np.clip(np.digitize(values, edges) - 1, 0, BINS - 1)
        counts = np.bincount(bins, minlength=BINS)
        filled = counts > 0
        mean = np.bincount(bins, values, BINS)[filled] / counts[filled]
        share = np.bincount(bins, right, BINS)[filled] / counts[filled]
        upper.plot(mean, share, marker="o", markersize=3, color=colour, label=name)
        lower.step(edges, [*counts, counts[-1]], where="post", color=colour)
    upper.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), title=title)
    upper.legend()
    lower.set(xlabel="confidence", ylabel="images")
    return figure
