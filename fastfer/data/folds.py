# SPDX-License-Identifier: Apache-2.0
"""Dividing images into folds and parts: by subject where subjects are known, else evenly per class.

Everything follows from the labels or subjects and the seed alone, so a fold is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def group_folds(subjects: Sequence[str], folds: int) -> NDArray[np.int64]:
    """Fold (0 to folds - 1) of each image: no subject is in two folds.

    The subjects in ascending order are dealt out one by one, which is the usual 10-fold protocol of CK+ (sorted by
    id, every tenth: Liu et al. 2014). As many folds as subjects leave one subject out at a time.
    ValueError for fewer than two folds or fewer subjects than folds.
    """
    ordered = sorted(set(subjects))
    _check_folds(folds, len(ordered), "subjects")
    fold_of = {subject: position % folds for position, subject in enumerate(ordered)}
    return np.array([fold_of[subject] for subject in subjects], np.int64)


def stratified_folds(labels: Sequence[int] | NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold (0 to folds - 1) of each image: per class, the folds' sizes differ by at most one; so do the totals.

    ValueError for fewer than two folds or fewer images than folds.
    """
    labels = np.asarray(labels, np.int64)
    _check_folds(folds, len(labels), "images")
    fold_of = np.empty(len(labels), np.int64)
    dealt = 0
    for label in np.unique(labels):
        members = _shuffled(np.flatnonzero(labels == label), seed, int(label) + 2)
        fold_of[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return fold_of


def fraction_parts(
    labels: Sequence[int] | NDArray[np.int64], weights: Sequence[float], seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Part (0 to len(weights) - 1) of each image, in the proportions ``weights`` (8, 1, 1), at random by ``seed``.

    Without ``groups`` per class, with them (one name per image) by whole groups: a group never comes to two parts.
    ValueError for weights that are not positive, or where a part would be empty.
    """
    if len(weights) < 2 or not all(0 < weight < np.inf for weight in weights):
        raise ValueError(f"weights: expected two or more positive numbers, got {tuple(weights)}")
    labels = np.asarray(labels, np.int64)
    part_of = np.empty(len(labels), np.int64)
    if groups is None:
        for label in np.unique(labels):
            members = _shuffled(np.flatnonzero(labels == label), seed, int(label) + 2)
            part_of[members] = _cut(len(members), weights)
    else:
        ordered = sorted(set(groups))
        shuffled = _shuffled(np.arange(len(ordered)), seed, 0)
        part_of_group = dict(zip([ordered[i] for i in shuffled], _cut(len(ordered), weights), strict=True))
        part_of[:] = [part_of_group[group] for group in groups]
    empty = [part for part in range(len(weights)) if not (part_of == part).any()]
    if empty:
        raise ValueError(f"weights {tuple(weights)}: part {empty[0] + 1} of {len(weights)} would get no image")
    return part_of


def draw_per_class(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Indices, ascending, of ``count`` images at random: of each class its share, and one where there is room for all.

    Shares are rounded so that the greatest remainders round up. ValueError for more images than there are.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"count: expected 0 to {len(labels)}, got {count}")
    classes, sizes = np.unique(labels, return_counts=True)
    least = np.full(len(classes), int(count >= len(classes)))
    due = sizes * (count / max(len(labels), 1))
    taken = np.maximum(np.floor(due).astype(np.int64), least)
    while taken.sum() != count:  # a few steps: each class is off by less than two
        step = 1 if taken.sum() < count else -1
        free = (taken < sizes) if step > 0 else (taken > least)
        taken[np.argmax(np.where(free, (due - taken) * step, -np.inf))] += step
    chosen = [
        _shuffled(np.flatnonzero(labels == label), seed, int(label) + 2)[:number]
        for label, number in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def _shuffled(indices: NDArray[np.int64], seed: int, stream: int) -> NDArray[np.int64]:
    """``indices`` in a random order: by raw PCG64 words, whose sequence no release of numpy changes.

    Each class has a stream of its own, so that one class's images do not move those of another.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(len(indices))
    return indices[np.argsort(words, kind="stable")]


def _cut(count: int, weights: Sequence[float]) -> NDArray[np.int64]:
    """Part of each of ``count`` places in order; the boundaries are rounded, so every part is within one of its due."""
    edges = np.rint(np.cumsum(weights) / np.sum(weights) * count).astype(np.int64)
    return np.searchsorted(edges, np.arange(count), side="right").astype(np.int64)


def _check_folds(folds: int, available: int, what: str) -> None:
    if not 2 <= folds <= available:
        raise ValueError(f"folds: expected 2 to {available} (the number of {what}), got {folds}")
