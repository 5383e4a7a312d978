# SPDX-License-Identifier: Apache-2.0
"""RAF-DB, basic expressions (Li et al. 2017): faces from the web, 12,271 for training and 3,068 for test.

Codes are 1 to 7, and file names say the split. The compound release has the same file names with codes 1 to 11, and
RAF-CE uses 0 to 13; both are refused, since their codes would pass for other expressions.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from os.path import isfile
from pathlib import Path

from fastfer.data.class_folders import class_folders, class_images, split_folders
from fastfer.data.labels import CLASS_NAMES, RAF_DB_CODES
from fastfer.data.layouts import Layout, Request, search
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.split import DataError
from fastfer.data.tree import Tree

NAMES: tuple[str, ...] = CLASS_NAMES[:7]
LABEL_FILES = (
    "EmoLabel/list_patition_label.txt",
    "EmoLabel/list_partition_label.txt",
)  # the first is RAF-DB's spelling
LABEL_CSVS = {"train": "train_labels.csv", "test": "test_labels.csv"}

_IMAGE_NAME = re.compile(r"(train|test)_([0-9]+)(_aligned)?\.[a-z]+")
_CODES = {str(code): name for code, name in enumerate(RAF_DB_CODES, start=1)}


def class_of(code: str, where: str) -> str:
    """Class of a code 1 to 7. DataError for the codes of other releases."""
    if code not in _CODES:
        known = ", ".join(f"{code} {name}" for code, name in _CODES.items())
        raise DataError(
            f"{where}: code {code[:20]!r}, expected {known}. Compound expressions (1 to 11) and RAF-CE (0 to 13) are "
            "other sets with the same file names"
        )
    return _CODES[code]


def part_of(name: str, where: str) -> str:
    """train or test by the prefix of an image's name. DataError for another name, or that of a compound image."""
    match = _IMAGE_NAME.fullmatch(name.lower())
    if match is None:
        raise DataError(f"{where}: expected a name such as train_00001.jpg, got {name!r}")
    if match[1] == "train" and len(match[2]) != 5:
        raise DataError(
            f"{where}: {name!r} has {len(match[2])} digits, basic training images have 5: is this the compound release?"
        )
    return match[1]


def _find_official(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: any(isfile(folder / name) for name in LABEL_FILES))


def _read_official(root: Path, request: Request) -> Manifest:
    aligned = request.options.aligned is not False
    label_file = next(root / name for name in LABEL_FILES if isfile(root / name))
    samples, longer = [], 0
    for where, fields in _lines(label_file):
        name, code = fields[:2]
        part, label = part_of(name, where), class_of(code, where)
        longer += len(fields) > 2
        stem, suffix = name.rsplit(".", 1)
        folder = root / "Image" / ("aligned" if aligned else "original")
        candidates = [folder / name, folder / f"{stem}_aligned.{suffix}"][:: -1 if aligned else 1]
        path = next((path for path in candidates if isfile(path)), None)
        if path is None:
            if part in request.wanted:
                request.problems.add(f"{candidates[0]} is missing")
        elif request.wants(part, path):
            samples.append(Sample(path, label, stem, part))
    other = root / "Image" / ("original" if aligned else "aligned")
    if images := request.tree.images(other):
        request.leave_out("original photographs" if aligned else "aligned faces", *images)
    notes = ["aligned faces" if aligned else "original photographs"]
    if longer:
        notes.append(f"{longer} lines of {label_file.name} have more than name and code; the rest was ignored")
    return Manifest("raf_db", "official", root, samples, NAMES, tuple(notes), sources=(label_file,))


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(place, fields) of each line that is not blank; fields are parted by blanks or tabs."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) == 1:
            raise DataError(f"{path}, line {number}: expected a name and a code, got {line[:40]!r}")
        if fields:
            yield f"{path}, line {number}", fields


def _find_kaggle(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: _is_kaggle(tree, folder))


def _is_kaggle(tree: Tree, root: Path) -> bool:
    """Split folders with numbered class folders, in which an image has RAF-DB's name; AffectNet's are numbered too."""
    numbered = [each for part in split_folders(tree, root).values() for each in tree.folders(part)]
    return any(
        each.name.isdigit() and any(_IMAGE_NAME.fullmatch(path.name.lower()) for path in tree.images_below(each))
        for each in numbered
    )


def _read_kaggle(root: Path, request: Request) -> Manifest:
    """Folders 1 to 7; where the csv files are there, they must say the same. The split is that of the file names."""
    csvs = {part: path for part in LABEL_CSVS if (path := _label_csv(root, part)) is not None}
    listed = {part: _labels_of_csv(path) for part, path in csvs.items()}
    folders = class_folders(request.tree, root)
    samples, moved = [], 0
    for each in class_images(request.tree, folders, root):
        label = class_of(each.label, str(each.path.parent))
        part = part_of(each.path.name, str(each.path))
        moved += part != each.part
        code = listed.get(part, {}).pop(each.path.name, each.label)
        if code != each.label:
            request.problems.add(f"{each.path}: folder {each.label}, but {code} in {LABEL_CSVS[part]}", each.path)
        elif request.wants(part, each.path):
            samples.append(Sample(each.path, label, each.path.stem.removesuffix("_aligned"), part))
    for part, rest in listed.items():
        for name in rest:
            request.problems.add(f"{root / part / rest[name] / name} is missing")
    notes = ["aligned faces"]
    if moved:
        notes.append(f"split by file name: {moved} images lie in another part's folder")
    classes, sources = tuple(folder.path for folder in folders), tuple(csvs.values())
    return Manifest("raf_db", "kaggle", root, samples, NAMES, tuple(notes), classes=classes, sources=sources)


def _label_csv(root: Path, part: str) -> Path | None:
    candidates = [root / LABEL_CSVS[part], root.parent / LABEL_CSVS[part]]
    return next((path for path in candidates if isfile(path)), None)


def _labels_of_csv(path: Path) -> dict[str, str]:
    """{image name: code} of a csv with the columns image and label."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable csv file: {error}") from error
    if rows and not {"image", "label"} <= rows[0].keys():
        raise DataError(f"{path}: expected the columns image and label, got {', '.join(map(str, rows[0]))}")
    return {str(row["image"]).strip(): str(row["label"]).strip() for row in rows}


LAYOUTS: tuple[Layout, ...] = (
    Layout("official", f"ROOT/[basic/]{LABEL_FILES[0]} and ROOT/[basic/]Image/", _find_official, _read_official),
    Layout("kaggle", "ROOT/[DATASET/]{train,test|valid}/{1..7}/*_aligned.jpg", _find_kaggle, _read_kaggle),
)
