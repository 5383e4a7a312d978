# SPDX-License-Identifier: Apache-2.0
"""From a manifest to splits: parts, labels, classes, subset; images only at the end."""

from __future__ import annotations

import re
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
from fastfer.data.votes import judge

_LISTED = re.compile(r"(?:train|test)_[0-9]+|fer[0-9]+")


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
        names = class_list(options.classes, manifest.names, dataset.seven)
    except ValueError as error:
        raise DataError(str(error)) from error
    strata = np.array([_stratum(sample, names) for sample in manifest.samples], np.int64)
    if any(sample.votes for sample in manifest.samples):
        return Prepared(dataset, manifest, names, strata)
    kept = np.flatnonzero(strata >= 0)
    samples = [manifest.samples[int(i)] for i in kept]
    return Prepared(dataset, replace(manifest, samples=samples), names, strata[kept])


def assemble(
    prepared: Prepared, options: DataOptions, parts: Sequence[str], transform: images.Transform | None = None
) -> dict[str, LazySplit]:
    """The ``parts`` of the data set, in the form that ``options`` asks for. DataError for a part that it lacks."""
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
    channels, shape = images.common_form(
        [sample for part in parts for sample in chosen[part]], options.channels, options.size, transform is not None
    )
    form = (channels, shape, options.size, transform)
    return {part: _split(part, chosen[part], prepared, division.rule, options, form) for part in parts}


def _split(
    part: str,
    samples: Sequence[Sample],
    prepared: Prepared,
    rule: str,
    options: DataOptions,
    form: tuple[int, tuple[int, int] | None, int | None, images.Transform | None],
) -> LazySplit:
    manifest, names = prepared.manifest, prepared.names
    notes = [f"{manifest.dataset} ({manifest.layout})", *manifest.notes, f"{part}: {rule}"]
    if options.subset is not None and part != "train":
        samples, note = _subset(samples, Path(options.subset))
        notes.append(note)
    voted = any(sample.votes for sample in samples)
    # Validation and test are by majority whatever the training labels are, as in the reference reader.
    mode: LabelMode = (options.label_mode or "majority") if part == "train" else "majority"
    soft = None
    if voted:
        notes.append(f"labels by {mode}")
        kept, labels, soft = _labels_of_votes(samples, mode, names)
        samples = [samples[i] for i in kept]
    else:
        labels = np.array([names.index(str(sample.label)) for sample in samples], np.int64)
    soft_mode: SoftMode = "crossentropy" if mode == "majority" else mode
    if mode == "majority":
        soft = None
    return LazySplit(samples, labels, names, soft, soft_mode, "; ".join(notes), *form)


def _stratum(sample: Sample, names: tuple[str, ...]) -> int:
    """Class of the sample among ``names``, by majority where it has votes; -1 where it has none."""
    if sample.votes is None:
        return names.index(sample.label) if sample.label in names else -1
    verdict = judge(sample.votes, "majority")
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


def _subset(samples: Sequence[Sample], path: Path) -> tuple[list[Sample], str]:
    """The samples that the list names, and a note of how many of its names were there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"subset: cannot read {path} ({error})") from error
    listed = {_listed_name(line) for line in lines if line.strip()}
    chosen = [sample for sample in samples if _listed_name(sample.id) in listed]
    if not chosen:
        raise DataError(f"subset: none of the {len(listed)} names of {path} is among the {len(samples)} images")
    return chosen, f"subset {path.name}: {len(chosen)} of {len(listed)} listed images"


def _listed_name(text: str) -> str:
    """What a line of a list and an image's name have in common: ``4/test_0006_aligned.jpg 4 3`` -> ``test_0006``.

    The published lists spell one name in four ways, with class folder, class prefix, suffix or labels around it.
    """
    name = text.split()[0].replace("\\", "/").rsplit("/", 1)[-1]
    match = _LISTED.search(name)
    return match[0] if match else Path(name).stem
