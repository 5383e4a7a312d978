# SPDX-License-Identifier: Apache-2.0
"""Csv files of 48x48 grey faces: an ``emotion`` code, 2,304 space-separated ``pixels`` and a ``Usage`` per row.

Columns are found by name and codes mapped by name. Every complaint says the line and the column.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastfer.data.files import refuse_lfs_pointer
from fastfer.data.labels import canonical_name
from fastfer.data.manifest import Problems, Sample
from fastfer.data.split import DataError

SIDE = 48
PIXELS = SIDE * SIDE
PART_OF_USAGE = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
USAGES: tuple[str, ...] = tuple(PART_OF_USAGE)

_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Row:
    """One row; ``where`` says file, line and row for messages. ``usage`` is None where the file has no such column."""

    where: str
    number: int
    emotion: str
    pixels: str
    usage: str | None


def read_samples(
    path: Path, codes: Sequence[str], parts: Collection[str], problems: Problems, *, with_usage: bool = True
) -> tuple[list[Sample], Counter[str]]:
    """(samples, rows per Usage) of the csv; rows of other ``parts`` are counted, and their pixels not looked at.

    codes names each value of ``emotion``; without ``with_usage`` every row is of the training set. DataError: not
    text, a Git-LFS pointer, truncated; a column, field, code or Usage unknown or missing; wrong pixel count, a pixel
    that is no integer or not in 0..255.
    """
    names = {str(code): canonical_name(name) for code, name in enumerate(codes)}
    samples: list[Sample] = []
    present: Counter[str] = Counter()
    for row in read_rows(path, with_usage):
        sample = problems.attempt(partial(_sample, row, names, codes, parts, present))
        if sample is not None:
            samples.append(sample)
    return samples, present


def _sample(
    row: Row, names: dict[str, str], codes: Sequence[str], parts: Collection[str], present: Counter[str]
) -> Sample | None:
    usage = "Training" if row.usage is None else row.usage
    if usage not in PART_OF_USAGE:
        raise DataError(
            f"{row.where}, column 'Usage': unknown value {usage[:40]!r}; expected one of {', '.join(USAGES)}"
        )
    if row.emotion not in names:
        known = ", ".join(f"{code} {name}" for code, name in enumerate(codes))
        raise DataError(f"{row.where}, column 'emotion': unknown code {row.emotion[:40]!r}; expected {known}")
    present[usage] += 1
    part = PART_OF_USAGE[usage]
    if part not in parts:
        return None
    return Sample(parse_pixels(row.pixels, row.where), names[row.emotion], f"row {row.number}", part)


def header(path: Path) -> list[str] | None:
    """Column names, stripped and in lower case; None where the file cannot be read as a csv."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            first = next(csv.reader(text), None)
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    return None if first is None else [name.strip().lower() for name in first]


def read_rows(path: Path, with_usage: bool = True) -> Iterator[Row]:
    """The rows of the csv, fields stripped, blank lines left out."""
    refuse_lfs_pointer(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            columns = _find_columns(path, next(reader, None), with_usage)
            width = max(columns) + 1
            for number, fields in enumerate(reader, start=1):
                where = f"{path}, line {reader.line_num} (row {number} of data)"
                if not fields:
                    continue
                if len(fields) < width:
                    raise DataError(f"{where}: {len(fields)} fields, expected {width}; the file seems to be truncated")
                emotion, pixels, *usage = (fields[at] for at in columns)
                yield Row(where, number, emotion.strip(), pixels, usage[0].strip() if usage else None)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable csv file: {error}") from error


def _find_columns(path: Path, names: list[str] | None, with_usage: bool) -> list[int]:
    """Position of each of emotion, pixels, Usage; names are compared stripped and without case."""
    if names is None:
        raise DataError(f"{path} is empty: expected a header with emotion, pixels, Usage")
    names = [name.strip().lower() for name in names]
    wanted = ["emotion", "pixels", "usage"] if with_usage else ["emotion", "pixels"]
    missing = [column for column in wanted if column not in names]
    if missing:
        shown = ", ".join(name[:30] for name in names[:8])
        raise DataError(f"{path}, line 1: no column {', '.join(missing)}; the header has: {shown}")
    return [names.index(column) for column in wanted]


def parse_pixels(text: str, where: str) -> NDArray[np.uint8]:
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
