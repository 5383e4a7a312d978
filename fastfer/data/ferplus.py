# SPDX-License-Identifier: Apache-2.0
"""FERPlus: ten votes per FER2013 image (Barsoum et al. 2016), by its two label files, or as class folders.

The repository's label files disagree for 1,601 of 35,710 images, all of them exact duplicates: ``fer2013new.csv``
gives the copies of an image the same votes, the ``label.csv`` of each folder keeps them apart. The reference trainer
reads label.csv, so it is the default where both lie there.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import partial
from os.path import isdir, isfile
from pathlib import Path

from fastfer.data import fer2013, pixel_csv
from fastfer.data.class_folders import class_folders, class_images, image_names, is_class_tree
from fastfer.data.files import file_inside, refuse_lfs_pointer
from fastfer.data.labels import CLASS_NAMES
from fastfer.data.layouts import Layout, Request, search
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.pixel_csv import PART_OF_USAGE
from fastfer.data.split import DataError
from fastfer.data.tree import Tree
from fastfer.data.votes import COLUMNS

VOTES_NAME = "fer2013new.csv"
FOLDERS = {"FER2013Train": "train", "FER2013Valid": "validation", "FER2013Test": "test"}
VOTE_NAMES: tuple[str, ...] = (*CLASS_NAMES, "unknown", "NF")

_IMAGE_NAME = re.compile(r"fer[0-9]{7}")


def read_votes(path: Path) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """(place, Usage, image name, votes) of each row of fer2013new.csv; the name is blank where no face was agreed on.

    Columns are found by name. DataError naming file, line and column.
    """
    rows = _csv_rows(path)
    where, names = next(rows, ("", []))
    plain = [name.strip().lower() for name in names]
    wanted = ["usage", "image name", *(name.lower() for name in VOTE_NAMES)]
    missing = [name for name in wanted if name not in plain]
    if missing:
        raise DataError(f"{path}, line 1: no column {', '.join(missing)}; the header has: {', '.join(plain[:12])}")
    columns = [plain.index(name) for name in wanted]
    for where, fields in rows:
        if len(fields) <= max(columns):
            raise DataError(f"{where}: {len(fields)} fields, expected {len(names)}; the file seems to be truncated")
        usage, name, *votes = (fields[at].strip() for at in columns)
        yield where, usage, name, _votes(votes, where)


def _read_label_csv(path: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(place, image name, votes) of each row of a folder's label.csv, which has no header: name, box, ten votes."""
    for where, fields in _csv_rows(path):
        if len(fields) != 2 + COLUMNS:
            raise DataError(f"{where}: {len(fields)} fields, expected {2 + COLUMNS}: image, box and {COLUMNS} votes")
        yield where, fields[0].strip(), _votes(fields[2:], where)


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    refuse_lfs_pointer(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            for fields in reader:
                if fields:
                    yield f"{path}, line {reader.line_num}", fields
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable csv file: {error}") from error


def _votes(fields: list[str], where: str) -> tuple[int, ...]:
    for name, text in zip(VOTE_NAMES, fields, strict=True):
        if not re.fullmatch(r"[0-9]{1,3}", text.strip()):
            raise DataError(f"{where}, column {name!r}: expected a number of votes, got {text[:20]!r}")
    return tuple(int(text) for text in fields)


def _find_folders(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: any(isfile(folder / name / "label.csv") for name in FOLDERS))


def _read_folders(root: Path, request: Request) -> Manifest:
    """The reference layout; votes by label.csv, or by name from fer2013new.csv beside the folders or above them."""
    source = request.options.label_source or "label.csv"
    sources = []
    by_name = {}
    if source == VOTES_NAME:
        sources.append(_votes_file(root))
        by_name = {name: votes for _, _, name, votes in read_votes(sources[0]) if name}
    samples = []
    for name, part in FOLDERS.items():
        folder = root / name
        if not isdir(folder):
            continue
        if part not in request.wanted:
            request.leave_out(f"{part} images, which were not asked for", *request.tree.images(folder))
            continue
        sources.append(folder / "label.csv")
        rows = {image: (where, votes) for where, image, votes in _read_label_csv(folder / "label.csv")}
        for image, (where, votes) in rows.items():  # of a repeated name the last row counts: it made the file
            if by_name and image not in by_name:
                raise DataError(f"{where}: {image} is not named in {VOTES_NAME}")
            path = file_inside(folder, image, where)
            if not isfile(path):
                request.problems.add(f"{path} is missing")
                continue
            samples.append(Sample(path, None, image, part, votes=by_name.get(image, votes)))
    return Manifest("ferplus", "folders", root, samples, CLASS_NAMES, (f"votes of {source}",), sources=tuple(sources))


def _votes_file(root: Path) -> Path:
    candidates = [root / VOTES_NAME, root.parent / VOTES_NAME]
    path = next((path for path in candidates if isfile(path)), None)
    if path is None:
        raise DataError(f"label_source: no {VOTES_NAME} at {candidates[0]} or {candidates[1]}")
    return path


def _find_csvs(tree: Tree) -> list[Path]:
    """Folders with fer2013new.csv and FER2013's csv beside it or one folder below."""
    return search(tree, lambda folder: isfile(folder / VOTES_NAME) and bool(fer2013.find_csvs(Tree(folder))))


def _read_csvs(root: Path, request: Request) -> Manifest:
    """Row k of one file is row k of the other; the number in an image's name is not the row's."""
    if request.options.label_source == "label.csv":
        raise DataError(f"label_source: layout csv has the votes of {VOTES_NAME} only")
    csvs = fer2013.find_csvs(Tree(root))
    if len(csvs) > 1:
        raise DataError(f"{root}: expected one csv of faces beside {VOTES_NAME}, found {', '.join(map(str, csvs))}")
    faces, labels = pixel_csv.read_rows(csvs[0]), read_votes(root / VOTES_NAME)
    samples = []
    for row in faces:
        where, usage, name, votes = next(labels, ("", "", "", ()))
        if usage != row.usage or usage not in PART_OF_USAGE:
            found = f"Usage {usage!r} at {where}" if where else f"the end of {VOTES_NAME}"
            raise DataError(
                f"{row.where}: Usage {row.usage!r}, but {found}; the two files must have the same rows in the same "
                "order"
            )
        if name and PART_OF_USAGE[usage] in request.wanted:
            face = request.problems.attempt(partial(pixel_csv.parse_pixels, row.pixels, row.where))
            if face is not None:
                # Four names occur twice, so the row makes the id unique.
                samples.append(Sample(face, None, f"{name} row {row.number}", PART_OF_USAGE[usage], votes=votes))
    if (extra := next(labels, None)) is not None:
        raise DataError(f"{extra[0]}: more rows than {csvs[0]}; the two files must have the same rows")
    sources = (csvs[0], root / VOTES_NAME)
    notes = (f"votes of {VOTES_NAME}, joined by row",)
    return Manifest("ferplus", "csv", root, samples, CLASS_NAMES, notes, sources=sources)


def _find_class_folders(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: _is_class_layout(tree, folder), depth=3)


def _is_class_layout(tree: Tree, root: Path) -> bool:
    return is_class_tree(tree, root) and any(map(_IMAGE_NAME.match, image_names(tree, root)))


def _read_class_folders(root: Path, request: Request) -> Manifest:
    options = request.options
    if options.label_source is not None or options.label_mode not in (None, "majority"):
        raise DataError("label_mode, label_source: class folders hold labels without votes; give neither")
    folders = class_folders(request.tree, root)
    found = class_images(request.tree, folders, root)
    samples = [Sample(each.path, each.expression(), each.id, each.part) for each in found]
    notes, classes = ("labels by folder, votes unknown",), tuple(folder.path for folder in folders)
    return Manifest("ferplus", "class-folders", root, samples, CLASS_NAMES, notes, classes=classes)


LAYOUTS: tuple[Layout, ...] = (
    Layout("folders", f"ROOT/{{{','.join(FOLDERS)}}}/label.csv with its images", _find_folders, _read_folders),
    Layout("csv", f"ROOT/{VOTES_NAME} beside fer2013.csv", _find_csvs, _read_csvs),
    Layout("class-folders", "ROOT/{train,test}/CLASS/fer*.png", _find_class_folders, _read_class_folders),
)
