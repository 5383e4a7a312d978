# SPDX-License-Identifier: Apache-2.0
"""FERPlus votes to labels: the four modes of Barsoum et al. 2016, by the rules of the reference reader, and two more.

Votes are ten numbers: the eight classes in canonical order, then unknown and no face. In the reference's modes single
votes count as noise. Many papers take the class with most votes and every image instead: 28,558 for training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fastfer.data.labels import CLASS_NAMES
from fastfer.data.options import LabelMode

CLASSES = len(CLASS_NAMES)
COLUMNS = CLASSES + 2  # and unknown, no face
EVERY_VOTE: frozenset[LabelMode] = frozenset({"argmax", "votes"})
"""Modes that count single votes. With them validation and test are by argmax, so that they have every image too."""
SOFT: frozenset[LabelMode] = frozenset({"votes", "crossentropy", "probability", "multi_target"})
"""Modes whose training labels are distributions."""


@dataclass(frozen=True)
class Verdict:
    """What votes say: the class with most of them, and probabilities (8,) that sum to 1."""

    label: int
    probabilities: NDArray[np.float32]


@lru_cache(maxsize=1 << 16)  # many images have the same votes
def judge(votes: tuple[int, ...], mode: LabelMode) -> Verdict | None:
    """Ten votes -> the verdict, or None where the rule drops the image.

    majority: the top class where it has more than half of the votes. crossentropy and probability: the top classes,
    at most three, until they hold 75 % of the votes; dropped where they hold half or less. multi_target: classes with
    30 % or more, all equal; dropped where they hold half or less. Dropped too: images whose top is unknown or no face.

    argmax: the class with most votes, the first of equals, whatever unknown and no face have, so that nothing is
    dropped; FERPlus has two training images without a vote for any class, and they are neutral, the first. votes: the
    same label, with the votes of the eight classes as probabilities; such images have none and are dropped.
    """
    counted = np.array(votes, np.int64)
    if mode == "argmax" and not counted[:CLASSES].any():
        counted[0] = 1
    kept = _RULES[mode](counted if mode in EVERY_VOTE else np.where(counted > 1, counted, 0))
    if kept is None or int(kept.argmax()) >= CLASSES:
        return None
    faces = kept[:CLASSES]
    weights: NDArray[np.float32] = (faces > 0 if mode == "multi_target" else faces).astype(np.float32)
    weights /= weights.sum()
    weights.setflags(write=False)
    return Verdict(int(faces.argmax()), weights)


def _eight(votes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    kept = np.where(np.arange(COLUMNS) < CLASSES, votes, 0)
    return kept if kept.any() else None


def _majority(votes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    top = int(votes.argmax())
    if 2 * votes[top] <= votes.sum():
        return None
    return np.where(np.arange(COLUMNS) == top, votes, 0)


def _top_classes(votes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Ties join together, which may make more than three (then the image is dropped); unknown ends the search."""
    total, left = votes.sum(), votes.copy()
    kept = np.zeros_like(votes)
    count, searching = 0, True
    while 4 * kept.sum() < 3 * total and count < 3 and searching:
        level = left.max()
        for column in np.flatnonzero(left == level):
            if column >= CLASSES:
                searching = False
                if kept.any():
                    break
            kept[column], left[column] = level, 0
            count += 1
            if not searching:
                break
    return None if 2 * kept.sum() <= total or count > 3 else kept


def _multi_target(votes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    kept = np.where(10 * votes >= 3 * votes.sum(), votes, 0)
    return None if 2 * kept.sum() <= votes.sum() else kept


_RULES: dict[LabelMode, Callable[[NDArray[np.int64]], NDArray[np.int64] | None]] = {
    "majority": _majority,
    "argmax": _eight,
    "votes": _eight,
    "crossentropy": _top_classes,
    "probability": _top_classes,
    "multi_target": _multi_target,
}
