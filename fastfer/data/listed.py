# SPDX-License-Identifier: Apache-2.0
"""Images with their labels in a list: labels.csv, metadata.csv as Hugging Face writes it, or lines of name and label.

A list has a header with a column for the file and one for the label, in any order and beside others, or no header and
two fields in a line. Names are paths from the folder of the list, or from a folder images beside it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from os.path import isfile
from pathlib import Path

from fastfer.data.files import file_inside, refuse_lfs_pointer
from fastfer.data.layouts import PART_WORDS, SPLIT_FOLDERS, Request, search
from fastfer.data.split import DataError
from fastfer.data.tree import Tree

COLUMNS: dict[str, tuple[str, ...]] = {
    "file": ("file_name", "filename", "file", "image", "image_name", "image_path", "img", "path", "pth", "name"),
    "label": ("label", "labels", "class", "emotion", "expression", "category", "class_name"),
    "part": ("split", "usage", "part", "set", "subset"),
    "subject": ("subject", "person", "subject_id", "person_id", "identity"),
}
"""Names that a column may have, the first that is there counts; compared without case, with _ for blanks."""
SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
_LONGEST = 4096  # letters in a line that is looked at to recognise a list
_MOST = 50  # more tables and texts in one folder are one for each image, and not looked into


@dataclass(frozen=True)
class Row:
    """A line of a list; ``where`` says file and line, ``id`` is the image's path below the root."""

    where: str
    path: Path
    id: str
    label: str
    part: str | None
    subject: str | None


@dataclass(frozen=True)
class Lists:
    """Rows of all lists of a folder, and the lists."""

    rows: tuple[Row, ...]
    sources: tuple[Path, ...]


def find_lists(tree: Tree) -> list[Path]:
    """Folders with a list, in themselves or in their split folders."""
    return search(tree, lambda folder: bool(_lists(tree, folder)))


def read_lists(root: Path, request: Request) -> Lists:
    """The rows of all lists in ``root`` and its split folders.

    A list's own name (train.csv) or folder says the part where it has no column for it. DataError for several lists
    that do not divide the images so, and for an image that is listed twice with different labels.
    """
    lists = _lists(request.tree, root)
    parts = [_part_of_list(path, root) for path in lists]
    if len(lists) > 1 and (None in parts or len(set(parts)) < len(parts)):
        raise DataError(f"{root} holds several lists of images: {', '.join(path.name for path in lists)}; keep one")
    found: dict[str, Row] = {}
    for path, part in zip(lists, parts, strict=True):
        for row in _rows(path, root, part, request):
            other = found.setdefault(row.id, row)
            if other.label != row.label:
                raise DataError(f"{row.where}: {row.id} is {row.label}, and {other.label} at {other.where}")
    rows = tuple(found.values())
    if len({row.part is None for row in rows}) > 1:
        raise DataError(f"{root}: some images have a part and some have none, such as {_without_part(rows)}")
    return Lists(rows, tuple(lists))


def _without_part(rows: Sequence[Row]) -> str:
    return next(row.where for row in rows if row.part is None)


def _lists(tree: Tree, folder: Path) -> list[Path]:
    folders = [folder, *(child for child in tree.folders(folder) if child.name.lower() in SPLIT_FOLDERS)]
    files = [path for each in folders for path in tree.listing(each).others if path.suffix.lower() in SUFFIXES]
    return [path for path in files if _is_list(path)] if len(files) <= _MOST else []


def _is_list(path: Path) -> bool:
    """Whether the first image that the file names is there."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            lines = [line for line in (text.readline(_LONGEST) for _ in range(2)) if line.strip()]
        columns = _columns(lines[0], path) if lines else None
        if columns is None:
            fields = _words(lines[0], path)
            return len(fields) == 2 and isfile(_file(path, fields[0], ""))
        fields = next(csv.reader([lines[1]], delimiter=_delimiter(lines[0], path)))
        return isfile(_file(path, fields[columns["file"]], ""))
    except (OSError, UnicodeDecodeError, csv.Error, DataError, IndexError, StopIteration):
        return False


def _columns(line: str, path: Path) -> dict[str, int] | None:
    """{what: position} of a header line; None for a line that is none."""
    names = [name.strip().lower().replace(" ", "_") for name in _words(line, path)]
    found = {}
    for what, candidates in COLUMNS.items():
        name = next((name for name in candidates if name in names), None)
        if name is not None:
            found[what] = names.index(name)
    return found if {"file", "label"} <= found.keys() else None


def _delimiter(line: str, path: Path) -> str:
    if path.suffix.lower() == ".tsv" or ("\t" in line and "," not in line):
        return "\t"
    return ";" if ";" in line and "," not in line else "," if "," in line else " "


def _words(line: str, path: Path) -> list[str]:
    """Fields of a line. Where blanks part them, the label is the last, so that a name may have blanks."""
    delimiter = _delimiter(line, path)
    if delimiter == " ":
        return line.strip().rsplit(maxsplit=1)
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter))]


def _file(path: Path, name: str, where: str) -> Path:
    """The image of that name, from the list's folder or from images beside the list."""
    plain = file_inside(path.parent, name.strip(), where)
    beside = file_inside(path.parent / "images", name.strip(), where)
    return beside if not isfile(plain) and isfile(beside) else plain


def _rows(path: Path, root: Path, part: str | None, request: Request) -> Iterator[Row]:
    refuse_lfs_pointer(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            first = next(iter(islice(text, 1)), "")
            columns = _columns(first, path)
            text.seek(0)
            yield from _parsed(path, root, part, columns or {"file": 0, "label": 1}, first, text, request)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable list: {error}") from error


def _parsed(
    path: Path, root: Path, part: str | None, columns: dict[str, int], first: str, text: Iterator[str], request: Request
) -> Iterator[Row]:
    delimiter = _delimiter(first, path)
    lines = (_words(line, path) for line in text) if delimiter == " " else csv.reader(text, delimiter=delimiter)
    header = _columns(first, path) is not None
    for number, fields in enumerate(lines, start=1):
        if not any(field.strip() for field in fields) or (header and number == 1):
            continue
        where = f"{path}, line {number}"
        row = request.problems.attempt(partial(_row, path, root, columns, fields, where))
        if row is None:
            continue
        if not isfile(row.path):
            request.problems.add(f"{row.path} is missing, listed at {where}")
            continue
        yield row if row.part is not None else replace(row, part=part)


def _row(path: Path, root: Path, columns: dict[str, int], fields: Sequence[str], where: str) -> Row:
    if len(fields) <= max(columns["file"], columns["label"]):
        raise DataError(f"{where}: {len(fields)} fields, expected a file's name and a label")
    values = {what: fields[at].strip() if at < len(fields) else "" for what, at in columns.items()}
    file = _file(path, values["file"], where)
    usage = values.get("part", "").lower()
    if usage and usage not in PART_WORDS:
        raise DataError(f"{where}: unknown part {usage!r}; expected one of {', '.join(PART_WORDS)}")
    part, subject = PART_WORDS[usage] if usage else None, values.get("subject") or None
    return Row(where, file, file.relative_to(root).as_posix(), values["label"], part, subject)


def _part_of_list(path: Path, root: Path) -> str | None:
    """train of train.csv, train_labels.txt or train/metadata.csv; None where neither name says one."""
    words = path.stem.lower().replace("-", "_").split("_")
    names = [path.parent.name.lower()] if path.parent != root else []
    return next((SPLIT_FOLDERS[word] for word in (*names, *words) if word in SPLIT_FOLDERS), None)
