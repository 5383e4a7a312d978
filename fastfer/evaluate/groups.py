# SPDX-License-Identifier: Apache-2.0
"""Groups of people or of views that an evaluation is reported for: what RaFD's and RAF-DB's files say, or any csv."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fastfer.data import DataError

Groups = dict[str, list[str]]
"""Attribute -> group of each image, "" where it is not known."""

_RAFD = re.compile(
    r"Rafd(?P<camera>[0-9]{3})_[0-9]{2}_(?P<people>Caucasian|Moroccan|Kid)_(?P<sex>female|male)_[a-z]+_(?P<gaze>[a-z]+)"
)
_RAF_DB_FOLDERS = ("Annotation/manual", "Annotation/auto")
_RAF_DB: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sex", ("male", "female", "")),
    ("race", ("Caucasian", "African-American", "Asian")),
    ("age", ("0-3", "4-19", "20-39", "40-69", "70+")),
)
"""Attributes in the lines after the five landmarks of an annotation file, with the names of their codes."""


def groups_of(data: str, root: Path | None, ids: Sequence[str] | None) -> Groups:
    """Attributes that the data set's own files give for the images ``ids``; empty where it has none."""
    readers: dict[str, Callable[[Path | None, Sequence[str]], Groups]] = {"rafd": _rafd, "raf_db": _raf_db}
    reader = readers.get(re.sub("[^a-z]", "_", data.lower()))
    return {} if reader is None or ids is None else reader(root, ids)


def read_groups(path: Path, ids: Sequence[str] | None) -> Groups:
    """Groups from a csv with a column "id" and one a attribute. DataError where it or its names do not fit the images.

    Images that the file does not list have no group; a file that lists none of them is refused.
    """
    if ids is None:
        raise DataError(f"groups: {path} goes by the names of images, and this data set has none")
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            attributes = [name for name in reader.fieldnames or [] if name != "id"]
            if "id" not in (reader.fieldnames or []) or not attributes:
                raise DataError(f"groups: {path}: expected columns id and an attribute, got {reader.fieldnames}")
            rows = {row["id"]: row for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"groups: cannot read {path}: {error}") from error
    if not rows.keys() & set(ids):
        raise DataError(f"groups: {path}: none of its {len(rows)} ids is an image of the split, such as {ids[0]!r}")
    return {name: [(rows[i][name] or "").strip() if i in rows else "" for i in ids] for name in attributes}


def _rafd(root: Path | None, ids: Sequence[str]) -> Groups:
    matches = [_RAFD.search(each) for each in ids]
    names = ("camera", "people", "sex", "gaze")
    return {name: [match[name] if match else "" for match in matches] for name in names}


def _raf_db(root: Path | None, ids: Sequence[str]) -> Groups:
    """From the annotation files beside the images; empty where they are not there."""
    if root is None:
        return {}
    folders = [base / name for base in (root, root / "basic") for name in _RAF_DB_FOLDERS]
    folder = next((each for each in folders if each.is_dir()), None)
    if folder is None:
        return {}
    files = {path.name[: path.name.index("_", path.name.index("_") + 1)]: path for path in folder.glob("t*_*_*.txt")}
    found: Groups = {name: [] for name, _ in _RAF_DB}
    for each in ids:
        stem = each.removesuffix("_aligned")
        codes = _codes(files[stem]) if stem in files else []
        for place, (name, values) in enumerate(_RAF_DB):
            code = codes[place] if place < len(codes) else -1
            found[name].append(values[code] if 0 <= code < len(values) else "")
    return found


def _codes(path: Path) -> list[int]:
    """The single numbers of an annotation file: sex, race, age. DataError for anything else."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        return [int(fields[0]) for fields in lines if len(fields) == 1]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} is not an annotation of RAF-DB: {error}") from error
