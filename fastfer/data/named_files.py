# SPDX-License-Identifier: Apache-2.0
"""Data sets whose file names say whom and what an image shows, however the files are sorted into folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os.path import commonpath
from pathlib import Path

from fastfer.data.labels import canonical_name
from fastfer.data.layouts import SPLIT_FOLDERS, Request, is_expression, is_part
from fastfer.data.manifest import Sample
from fastfer.data.split import DataError
from fastfer.data.tree import Tree

CK_PLUS = re.compile(r"(?P<subject>S[0-9]{3})_(?P<sequence>[0-9]{3})_(?P<frame>[0-9]{8})", re.IGNORECASE)

# ``KA.AN1.39.tiff`` is subject KA, anger, and the 39th image; re-uploads change the extension.
JAFFE = re.compile(r"^(?P<subject>[A-Z]{2})\.(?P<expression>AN|DI|FE|HA|NE|SA|SU)[0-9]+\.[0-9]+(?=\.)", re.IGNORECASE)

# Names may carry prefixes (cropped_...); "Kid" stands where the ethnicity is, left and right are gazes.
RAFD = re.compile(
    r"Rafd(?P<camera>[0-9]{3})_(?P<subject>[0-9]{2})_(?:Caucasian|Moroccan|Kid)_(?:female|male)_"
    r"(?P<expression>angry|contemptuous|disgusted|fearful|happy|neutral|sad|surprised)_(?P<gaze>left|frontal|right)",
    re.IGNORECASE,
)

_SEARCH_DEPTH = 4
_SEARCH_ENTRIES = 300_000  # far more than any of these sets has


def place_of(tree: Tree, pattern: re.Pattern[str]) -> list[Path]:
    """The innermost folder that holds every image whose name matches; empty without any.

    Never that of one class or one part, whose other folders may hold differently named images.
    """
    folders = []
    for folder, listing in tree.walk(tree.root, _SEARCH_DEPTH):
        if any(pattern.search(path.name) for path in listing.images):
            folders.append(folder)
        if tree.entries > _SEARCH_ENTRIES:
            break
    if not folders:
        return []
    place = Path(commonpath(folders)) if len(folders) > 1 else folders[0]
    while place != tree.root and is_part(place):
        place = place.parent
    return [place]


def named_images(tree: Tree, place: Path, pattern: re.Pattern[str]) -> dict[str, tuple[Path, re.Match[str]]]:
    """{matched part of the name: (file, match)} of the images in ``place`` and below, in order of the names.

    DataError where two files have the same matched part: a set that lies there twice, in two formats or crops.
    """
    found: dict[str, tuple[Path, re.Match[str]]] = {}
    spelt: dict[str, str] = {}
    for path in tree.images_below(place):
        match = pattern.search(path.name)
        if match is None:
            continue
        if match[0].lower() in spelt:
            other = found[spelt[match[0].lower()]][0]
            raise DataError(f"{place} holds {match[0]} twice: {other} and {path}; keep one of the two sets")
        spelt[match[0].lower()] = match[0]
        found[match[0]] = path, match
    return dict(sorted(found.items()))


def named_samples(
    place: Path, found: Iterable[tuple[str, tuple[Path, re.Match[str]]]], request: Request
) -> list[Sample]:
    """Samples by the groups ``subject`` and ``expression`` of the matches; folders must not say another expression."""
    samples = []
    for name, (path, match) in found:
        label = canonical_name(match["expression"])
        above = path.relative_to(place).parts[:-1]
        told = {canonical_name(folder) for folder in above if is_expression(folder)}
        if told - {label}:
            request.problems.add(f"{path} lies in the folder of {', '.join(told)}, but its name says {label}", path)
            continue
        part = next((SPLIT_FOLDERS[folder.lower()] for folder in above if folder.lower() in SPLIT_FOLDERS), None)
        samples.append(Sample(path, label, name, part, subject=match["subject"].upper()))
    return samples


def keep_split_by_person(samples: Sequence[Sample]) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples, without the split of their folders where a person is in two parts of it; and a note of that.

    Somebody's random split of such a set shows the faces that are tested in training.
    """
    if not (shared := persons_in_several_parts(samples)):
        return [*samples], ()
    note = f"the split of the folders is not used: {shared} persons are in more than one part"
    return [replace(sample, split=None) for sample in samples], (note,)


def persons_in_several_parts(samples: Sequence[Sample]) -> str:
    """How many of the persons, as "3 of 10"; empty for none."""
    parts: dict[str | None, set[str | None]] = {}
    for sample in samples:
        parts.setdefault(sample.subject, set()).add(sample.split)
    shared = sum(len(found) > 1 for found in parts.values())
    return f"{shared} of {len(parts)}" if shared else ""


def subject_of(name: str) -> str | None:
    """The person that a file name of one of these sets names; None for any other name."""
    match = CK_PLUS.match(name) or JAFFE.search(name) or RAFD.search(name)
    return None if match is None else match["subject"].upper()
