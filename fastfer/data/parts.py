# SPDX-License-Identifier: Apache-2.0
"""Which image belongs to which part: official splits, folds, and random proportions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastfer.data.folds import fraction_parts, group_folds, stratified_folds
from fastfer.data.manifest import PARTS, Manifest
from fastfer.data.options import DataOptions, SplitRule, parse_split
from fastfer.data.split import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """Sample indices of each part, in the order of the manifest, and the rule in words."""

    parts: Mapping[str, Indices]
    rule: str


def divide(
    manifest: Manifest, strata: Indices, options: DataOptions, usual: str | None, by_subject: bool, validate: bool
) -> Division:
    """Divide the samples by ``options.split``, or by the data set's ``usual`` rule.

    strata holds a class number per sample (-1 where it has none). by_subject: refuse to part a subject's images
    unless ``options.by_image``. validate: a validation set is asked for, so make one where the official split has none.
    """
    own = {sample.split for sample in manifest.samples}
    text = options.split or usual or ("official" if own - {None} else None)
    if text is None:
        raise DataError(
            f"split: {manifest.dataset} at {manifest.root} has no split of its own; choose 10-fold or proportions such "
            "as 8-1-1"
        )
    rule = parse_split(text)
    if rule.kind != "folds" and options.fold:
        raise DataError(f"fold: split {text} has no folds, got {options.fold}")
    if rule.kind != "official" and options.validation != "auto":
        raise DataError(f"validation: split {text} has a validation set, got {options.validation!r}")
    try:
        if rule.kind == "official":
            return _official(manifest, strata, options, validate)
        grouped = _by_subject(manifest, options, by_subject, text)
        pool = _pool(manifest, rule, by_subject)
        inner = replace(manifest, samples=[manifest.samples[int(i)] for i in pool.images])
        make = _folds if rule.kind == "folds" else _fractions
        division = make(inner, strata[pool.images], options, rule, grouped, text)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"split {text}: {error}") from error
    parts = {part: pool.images[chosen] for part, chosen in division.parts.items()}
    if len(pool.test):
        parts["test"] = pool.test
    return Division(parts, "; ".join(filter(None, [division.rule, pool.note, _mixing(manifest, parts)])))


@dataclass(frozen=True)
class _Pool:
    """The images that folds or proportions divide, those kept out of it as the test set, and a note."""

    images: Indices
    test: Indices
    note: str = ""


def _pool(manifest: Manifest, rule: SplitRule, by_subject: bool) -> _Pool:
    """All images but those of the set's own test part, where the rule makes no test part itself.

    A set that is divided by subject has no test part of its own: what its files say is somebody's division.
    """
    own = np.array([sample.split or "" for sample in manifest.samples])
    every, test = np.arange(len(own)), np.flatnonzero(own == "test")
    makes_test = len(rule.weights) == len(PARTS)
    if not len(test) or len(test) == len(own) or by_subject or makes_test:
        return _Pool(every, test[:0])
    note = f"the set's own {len(test)} test images are kept out of it, and are the test set"
    return _Pool(np.flatnonzero(own != "test"), test, note)


def _mixing(manifest: Manifest, parts: Mapping[str, Indices]) -> str:
    """Says where images of the set's own test part are trained on, so that scores are not those of its protocol."""
    trained = [manifest.samples[int(i)].split for i in parts.get("train", ())]
    mixed, total = trained.count("test"), [sample.split for sample in manifest.samples].count("test")
    return f"{mixed} of the set's own {total} test images are in training" if mixed else ""


def fold_count(manifest: Manifest, options: DataOptions, usual: str | None, by_subject: bool) -> int:
    """How many folds the split rule has. DataError where it is no k-fold rule."""
    text = options.split or usual or "official"
    rule = parse_split(text)
    if rule.kind != "folds":
        raise DataError(f"split: expected N-fold or leave-one-subject-out, got {text}")
    subjects = {sample.subject for sample in manifest.samples if by_subject or sample.split != "test"}
    return rule.folds or len(subjects)


def _official(manifest: Manifest, strata: Indices, options: DataOptions, validate: bool) -> Division:
    splits = np.array([sample.split or "" for sample in manifest.samples])
    parts = {part: np.flatnonzero(splits == part) for part in PARTS if (splits == part).any()}
    if not parts:
        raise DataError(f"split: {manifest.dataset} at {manifest.root} has no official split; choose another rule")
    if "validation" in parts and options.validation != "auto":
        raise DataError(f"validation: {manifest.dataset} at {manifest.root} has a validation set of its own")
    if "validation" in parts or not validate:
        return Division(parts, "official split")
    fraction = options.holdout()
    if fraction is None:
        if "test" not in parts:
            raise DataError(f"validation: {manifest.dataset} at {manifest.root} has no test set")
        return Division({**parts, "validation": parts["test"]}, "official split, validation on the test set")
    train = parts.get("train")
    if train is None:
        raise DataError(f"validation: {manifest.dataset} at {manifest.root} has no training set to hold images out of")
    subjects = [manifest.samples[int(i)].subject for i in train]
    groups = [name for name in subjects if name is not None]
    held = fraction_parts(
        strata[train], (1 - fraction, fraction), options.seed, groups if len(groups) == len(subjects) else None
    )
    kept = {"train": train[held == 0], "validation": train[held == 1]}
    rule = f"official split, {fraction:.0%} of training held out for validation (seed {options.seed})"
    return Division({**parts, **kept}, rule)


def _by_subject(manifest: Manifest, options: DataOptions, by_subject: bool, text: str) -> bool:
    """Whether to group by subject; DataError where that is needed and the subjects are unknown."""
    known = all(sample.subject is not None for sample in manifest.samples)
    if options.by_image:
        if text == "leave-one-subject-out":
            raise DataError("by_image: leave-one-subject-out is by subject")
        return False
    if not known and (by_subject or text == "leave-one-subject-out"):
        raise DataError(
            f"split {text}: {manifest.dataset} must be split by subject, and its layout {manifest.layout} does not say "
            "whose the images are; by_image splits at random, so that the same faces are trained on and tested"
        )
    return known


def _folds(
    manifest: Manifest, strata: Indices, options: DataOptions, rule: SplitRule, grouped: bool, text: str
) -> Division:
    subjects = [str(sample.subject) for sample in manifest.samples]
    count = rule.folds or len(set(subjects))
    if options.fold >= count:
        raise DataError(f"fold: expected 0 to {count - 1}, got {options.fold}")
    fold_of = group_folds(subjects, count) if grouped else stratified_folds(strata, count, options.seed)
    held = fold_of == options.fold
    how = "by subject" if grouped else f"by image, seed {options.seed}"
    rule_text = f"fold {options.fold} of {count} {how}"
    return Division({"train": np.flatnonzero(~held), "validation": np.flatnonzero(held)}, rule_text)


def _fractions(
    manifest: Manifest, strata: Indices, options: DataOptions, rule: SplitRule, grouped: bool, text: str
) -> Division:
    subjects: Sequence[str] | None = [str(sample.subject) for sample in manifest.samples] if grouped else None
    part_of = fraction_parts(strata, rule.weights, options.seed, subjects)
    parts = {part: np.flatnonzero(part_of == number) for number, part in enumerate(PARTS[: len(rule.weights)])}
    how = "by subject" if grouped else "by image"
    return Division(parts, f"{text} {how}, seed {options.seed}")
