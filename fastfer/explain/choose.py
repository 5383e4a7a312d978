# SPDX-License-Identifier: Apache-2.0
"""Which images an explanation shows: right predictions by lot, wrong ones by their confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """An image by its index in the split, its class, and what the network says with which probability."""

    index: int
    truth: int
    predicted: int
    confidence: float

    @property
    def right(self) -> bool:
        """Whether the prediction is the label's."""
        return self.truth == self.predicted


@dataclass(frozen=True)
class Row:
    """One class: some images that were recognised, and per class that it was taken for the most confident mistake."""

    right: tuple[Example, ...]
    wrong: tuple[Example | None, ...]

    def examples(self) -> list[Example]:
        """All of them, right ones first."""
        return [*self.right, *(example for example in self.wrong if example is not None)]


def choose(logits: Tensor, labels: Tensor, right: int = 5, seed: int = 0) -> list[Row]:
    """A row per class of logits (N, K): up to ``right`` hits drawn by ``seed``, the surest first, and K mistakes.

    A place is None where no image was mistaken so, and always for the class itself.
    """
    confidence, predicted = (t.tolist() for t in torch.softmax(logits.double(), 1).max(1))
    examples = [Example(i, *each) for i, each in enumerate(zip(labels.tolist(), predicted, confidence, strict=True))]
    classes, rows = logits.shape[1], []
    for truth in range(classes):
        hits = [e for e in examples if e.truth == truth and e.right]
        order = np.random.default_rng([seed, truth]).permutation(len(hits))[:right]
        shown = sorted((hits[i] for i in order), key=lambda e: -e.confidence)
        wrong = [
            max(
                (e for e in examples if e.truth == truth and e.predicted == other and not e.right),
                key=lambda e: e.confidence,
                default=None,
            )
            for other in range(classes)
        ]
        rows.append(Row(tuple(shown), tuple(wrong)))
    return rows
