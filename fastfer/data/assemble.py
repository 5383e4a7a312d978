# SPDX-License-Identifier: Apache-2.0
"""From a manifest to splits: parts, labels, classes, subset; images only at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastfer.data import images
from fastfer.data.labels import CLASS_NAMES, class_list
from fastfer.data.layouts import Dataset
from fastfer.data.lazy import LazySplit
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.options import DataOptions, LabelMode
from fastfer.data.parts import divide
from fastfer.data.split import DataError, SoftMode
from fastfer.data.subset import read_subset
from fastfer.data.votes import EVERY_VOTE, SOFT, judge


@dataclass(frozen=True)
class Prepared:
    """A manifest cut to the classes asked for; ``strata`` is the class of each sample, -1 where votes name none."""

    dataset: Dataset
    manifest: Manifest
    names: tuple[str, ...]
    strata: NDArray[np.int64]


def prepare(dataset: Dataset, manifest: Manifest, options: DataOptions) -> Prepared:
    """Leave out images of other classes, which have no place in proportions either. DataError for unknown classes."""
    try:
        names = class_list(options.classes, manifest.names, manifest.seven)
    except ValueError as error:
        raise DataError(str(error)) from error
    mode = _common_mode(options)
    strata = np.array([_stratum(sample, names, mode) for sample in manifest.samples], np.int64)
    if any(sample.votes for sample in manifest.samples):
        return Prepared(dataset, manifest, names, strata)
    kept = np.flatnonzero(strata >= 0)
    samples = [manifest.samples[int(i)] for i in kept]
    return Prepared(dataset, replace(manifest, samples=samples), names, strata[kept])


def assemble(
    prepared: Prepared,
    options: DataOptions,
    parts: Sequence[str],
    transform: images.Transform | None = None,
    mixed_size: int | None = None,
) -> dict[str, LazySplit]:
    """The ``parts`` of the data set, in the form that ``options`` asks for. DataError for a part that it lacks.

    ``mixed_size`` is the side to resize to where the images differ in size and ``options`` give none.
    """
    dataset, manifest = prepared.dataset, prepared.manifest
    division = divide(
        manifest, prepared.strata, options, dataset.usual_split, dataset.by_subject, "validation" in parts
    )
    missing = [part for part in parts if part not in division.parts]
    if missing:
        raise DataError(
            f"{manifest.dataset} at {manifest.root}, {division.rule}: no {', '.join(missing)} set; "
            f"it has {', '.join(division.parts)}"
        )
    chosen = {part: [manifest.samples[int(i)] for i in division.parts[part]] for part in parts}
    every = [sample for part in parts for sample in chosen[part]]
    form = images.common_form(every, options.channels, options.size, transform, mixed_size)
    return {part: _split(part, chosen[part], prepared, division.rule, options, form) for part in parts}


def _split(
    part: str,
    samples: Sequence[Sample],
    prepared: Prepared,
    rule: str,
    options: DataOptions,
    form: images.Form,
) -> LazySplit:
    manifest, names = prepared.manifest, prepared.names
    notes = [f"{manifest.dataset} ({manifest.layout})", *manifest.notes, f"{part}: {rule}"]
    if options.subset is not None and part != "train":
        samples, note = read_subset(samples, Path(options.subset))
        notes.append(note)
    voted = any(sample.votes for sample in samples)
    mode = (options.label_mode or "majority") if part == "train" else _common_mode(options)
    soft = None
    if voted:
        notes.append(f"labels by {mode}")
        kept, labels, soft = _labels_of_votes(samples, mode, names)
        samples = [samples[i] for i in kept]
    else:
        labels = np.array([names.index(str(sample.label)) for sample in samples], np.int64)
    soft_mode: SoftMode = mode if mode in ("probability", "multi_target") else "crossentropy"
    if part != "train" or mode not in SOFT:
        soft = None
    if form.note:
        notes.append(form.note)
    return LazySplit(samples, labels, names, soft, soft_mode, "; ".join(notes), form)


def _common_mode(options: DataOptions) -> LabelMode:
    """The label mode of validation and test: by majority whatever the training labels are, as in the reference reader,
    but by argmax where training keeps every image too.
    """
    return "argmax" if options.label_mode in EVERY_VOTE else "majority"


def _stratum(sample: Sample, names: tuple[str, ...], mode: LabelMode) -> int:
    """Class of the sample among ``names``, by ``mode`` where it has votes; -1 where it has none."""
    if sample.votes is None:
        return names.index(sample.label) if sample.label in names else -1
    verdict = judge(sample.votes, mode)
    name = None if verdict is None else CLASS_NAMES[verdict.label]
    return names.index(name) if name in names else -1


def _labels_of_votes(
    samples: Sequence[Sample], mode: LabelMode, names: tuple[str, ...]
) -> tuple[list[int], NDArray[np.int64], NDArray[np.float32]]:
    """(indices kept, labels, distributions); classes outside ``names`` are cut off and the rest made to sum to 1."""
    columns = [CLASS_NAMES.index(name) for name in names]
    kept, labels, soft = [], [], []
    for index, sample in enumerate(samples):
        verdict = judge(sample.votes or (), mode)
        if verdict is None or verdict.label not in columns:
            continue
        among = verdict.probabilities[columns]
        kept.append(index)
        labels.append(columns.index(verdict.label))
        soft.append(among / among.sum())
    return kept, np.array(labels, np.int64), np.array(soft, np.float32).reshape(-1, len(names))
