# SPDX-License-Identifier: Apache-2.0
"""FER2013 from its csv: ``fer2013.csv`` (emotion,pixels,Usage) or ``icml_face_data.csv`` (emotion, Usage, pixels).

48x48 grey faces as 2,304 space-separated integers. Usage is Training, PublicTest (used for validation) or PrivateTest.
Columns are found by name and codes mapped by name. Every complaint says the line and the column.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastfer.data.labels import BASIC_NAMES, FER2013_CODES, class_index
from fastfer.data.split import DataError, Split

SIDE = 48
PIXELS = SIDE * SIDE
USAGES: tuple[str, ...] = ("Training", "PublicTest", "PrivateTest")
FILE_NAMES: tuple[str, ...] = ("fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv", "fer2013/icml_face_data.csv")

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_COLUMNS = ("emotion", "pixels", "usage")
_LABEL_OF_CODE = {str(code): class_index(name) for code, name in enumerate(FER2013_CODES)}


def find_csv(root: str | Path) -> Path:
    """The csv itself, or the one in the folder ``root`` (see FILE_NAMES). DataError naming all that was looked for."""
    root = Path(root)
    if root.is_file():
        return root
    candidates = [root / name for name in FILE_NAMES]
    for path in candidates:
        if path.is_file():
            return path
    reason = "holds none of" if root.is_dir() else "does not exist; looked for"
    raise DataError(f"fer2013: {root} {reason}: {', '.join(str(path) for path in candidates)}")


def load(root: str | Path, usages: Sequence[str] = ("Training", "PublicTest")) -> dict[str, Split]:
    """Read the splits ``usages``: {usage: Split of (N, 48, 48) images}. Pixels of other rows are not looked at.

    DataError: file missing, not text, a Git-LFS pointer, truncated; a column, field, code or Usage unknown or missing;
    wrong pixel count, a pixel that is no integer or not in 0..255; a split that is empty or lacks a class.
    """
    unknown = [usage for usage in usages if usage not in USAGES]
    if unknown:
        raise ValueError(f"usages: expected some of {', '.join(USAGES)}, got {', '.join(unknown)}")
    path = find_csv(root)
    images: dict[str, list[NDArray[np.uint8]]] = {usage: [] for usage in usages}
    labels: dict[str, list[int]] = {usage: [] for usage in usages}
    present: Counter[str] = Counter()
    for where, emotion, pixels, usage in _rows(path):
        if usage not in USAGES:
            raise DataError(f"{where}, column 'Usage': unknown value {usage!r}; expected one of {', '.join(USAGES)}")
        if emotion not in _LABEL_OF_CODE:
            codes = ", ".join(f"{code} {name}" for code, name in enumerate(FER2013_CODES))
            raise DataError(f"{where}, column 'emotion': unknown code {emotion!r}; expected {codes}")
        present[usage] += 1
        if usage in images:
            images[usage].append(_parse_pixels(pixels, where))
            labels[usage].append(_LABEL_OF_CODE[emotion])
    splits = {}
    for usage in usages:
        if not images[usage]:
            raise DataError(f"{path}: no row with Usage {usage}; rows per Usage: {dict(present)}")
        splits[usage] = Split(np.stack(images[usage]), np.array(labels[usage], np.int64), BASIC_NAMES)
        splits[usage].require_every_class(f"{path}, Usage {usage}")
    return splits


def _rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(place, emotion, pixels, usage) of each row, stripped; place says file, line and row for messages."""
    try:
        with path.open("rb") as raw:
            if raw.read(40).startswith(b"version https://git-lfs"):
                raise DataError(f"{path} is a Git-LFS pointer, not the data: run `git lfs pull` where it came from")
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            emotion_at, pixels_at, usage_at = _find_columns(path, next(reader, None))
            width = max(emotion_at, pixels_at, usage_at) + 1
            for number, fields in enumerate(reader, start=1):
                where = f"{path}, line {reader.line_num} (row {number} of data)"
                if not fields:
                    continue
                if len(fields) < width:
                    raise DataError(f"{where}: {len(fields)} fields, expected {width}; the file seems to be truncated")
                yield where, fields[emotion_at].strip(), fields[pixels_at], fields[usage_at].strip()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable csv file: {error}") from error


def _find_columns(path: Path, header: list[str] | None) -> list[int]:
    """Position of each of emotion, pixels, Usage; names are compared stripped and without case."""
    if header is None:
        raise DataError(f"{path} is empty: expected a header with emotion, pixels, Usage")
    names = [name.strip().lower() for name in header]
    missing = [column for column in _COLUMNS if column not in names]
    if missing:
        shown = ", ".join(name[:30] for name in names[:8])
        raise DataError(f"{path}, line 1: no column {', '.join(missing)}; the header has: {shown}")
    return [names.index(column) for column in _COLUMNS]


def _parse_pixels(text: str, where: str) -> NDArray[np.uint8]:
    """(48, 48) image of one field."""
    try:
        with warnings.catch_warnings():  # older numpy warns where newer ones raise
            warnings.simplefilter("error", DeprecationWarning)
            values = np.fromstring(text, dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        values = _parse_slowly(text, where)
    if values.size != PIXELS:
        hint = "; the file seems to be truncated" if values.size < PIXELS else ""
        raise DataError(f"{where}, column 'pixels': {values.size} values, expected {PIXELS}{hint}")
    if values.min() < 0 or values.max() > 255:
        at = int(np.flatnonzero((values < 0) | (values > 255))[0])
        raise DataError(f"{where}, column 'pixels': value {at + 1} is {values[at]}, expected 0 to 255")
    return values.astype(np.uint8).reshape(SIDE, SIDE)


def _parse_slowly(text: str, where: str) -> NDArray[np.int64]:
    """Value by value, to name the one that is no integer."""
    words = text.split()
    for at, word in enumerate(words, start=1):
        if not _INTEGER.fullmatch(word):
            raise DataError(f"{where}, column 'pixels': value {at} is {word[:20]!r}, expected an integer")
    return np.array([int(word) for word in words], np.int64)
