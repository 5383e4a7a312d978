# SPDX-License-Identifier: Apache-2.0
"""FER2013 and RAF-DB as Parquet files: the columns differ from upload to upload.

Images are encoded bytes, a struct of bytes and path, or 48x48 pixels as a list or text; labels are names or codes.
A usage column says the split, else the file's name does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfer.data.class_folders import SPLIT_FOLDERS
from fastfer.data.files import refuse_lfs_pointer
from fastfer.data.labels import BASIC_NAMES, FER2013_CODES, RAF_DB_CODES, canonical_name
from fastfer.data.layouts import Layout, Request, search
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.pixel_csv import PART_OF_USAGE, PIXELS, SIDE, parse_pixels
from fastfer.data.split import DataError

IMAGE_COLUMNS = ("image", "img_bytes", "image_bytes", "img", "pixels")
LABEL_COLUMNS = ("emotion_name", "label", "labels", "emotion")
USAGE_COLUMNS = ("usage", "split")
PARTS = {**{usage.lower(): part for usage, part in PART_OF_USAGE.items()}, **SPLIT_FOLDERS}

Label = int | str


@dataclass(frozen=True)
class Table:
    """What was read of one file; ``names`` are the class names that its metadata give to integer labels."""

    path: Path
    images: Sequence[Any]
    labels: Sequence[Label]
    usages: Sequence[str] | None
    names: tuple[str, ...] | None


def read_tables(root: Path) -> list[Table]:
    """Every Parquet file of ``root``, in order of path. ImportError without pyarrow, DataError for what is no table."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Parquet files need pyarrow: pip install 'fastfer[parquet]' ({error})") from error
    tables = []
    for path in _files(root):
        refuse_lfs_pointer(path)
        try:
            tables.append(_table(path, pyarrow.parquet.read_table(path)))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {str(error)[:120]}") from error
    return tables


def _files(root: Path) -> list[Path]:
    return [root] if root.is_file() else sorted(path for path in root.glob("*.parquet") if path.name[0] != ".")


def _table(path: Path, content: Any) -> Table:
    columns = {name.lower(): name for name in content.column_names}

    def values(candidates: tuple[str, ...]) -> list[Any] | None:
        name = next((columns[each] for each in candidates if each in columns), None)
        return None if name is None else content.column(name).to_pylist()

    images, labels = values(IMAGE_COLUMNS), values(LABEL_COLUMNS)
    for found, candidates in ((images, IMAGE_COLUMNS), (labels, LABEL_COLUMNS)):
        if found is None:
            raise DataError(f"{path}: no column {' or '.join(candidates)}; it has {', '.join(content.column_names)}")
    return Table(path, images or [], labels or [], values(USAGE_COLUMNS), _class_names(content.schema.metadata))


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """Names that the Hugging Face metadata give to the codes of the label column."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        named = [features[column]["names"] for column in LABEL_COLUMNS if "names" in features.get(column, {})]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in named[0]) if named else None


def samples_of(tables: Sequence[Table], name_of: Callable[[Label], str], request: Request) -> Iterator[Sample]:
    """The rows of wanted parts as samples; what is wrong with a row goes to the request's problems."""
    for table in tables:
        for number, (image, label) in enumerate(zip(table.images, table.labels, strict=True)):
            where = f"{table.path}, row {number}"
            part = _part(table, number, where)
            if part is not None and part not in request.wanted:
                continue
            read = partial(_sample, image, label, name_of, f"{table.path.name} row {number}", part, where)
            sample = request.problems.attempt(read)
            if sample is not None:
                yield sample


def _sample(
    image: Any, label: Label, name_of: Callable[[Label], str], id_: str, part: str | None, where: str
) -> Sample:
    try:
        return Sample(_image(image, where), name_of(label), id_, part)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _part(table: Table, number: int, where: str) -> str | None:
    if table.usages is not None:
        usage = str(table.usages[number])
        if usage.lower() not in PARTS:
            raise DataError(f"{where}: unknown usage {usage!r}; expected one of {', '.join(PARTS)}")
        return PARTS[usage.lower()]
    return next((PARTS[word] for word in re.split(r"[^a-z]+", table.path.stem.lower()) if word in PARTS), None)


def _image(value: Any, where: str) -> bytes | NDArray[np.uint8]:
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and re.match(r"\s*[0-9]+\s", value):
        return parse_pixels(value, where)
    if isinstance(value, list):
        pixels = np.array(value)
        if pixels.size == PIXELS and pixels.dtype.kind in "iu" and 0 <= pixels.min() <= pixels.max() <= 255:
            return pixels.astype(np.uint8).reshape(SIDE, SIDE)
        raise DataError(f"{where}: expected {PIXELS} pixels of 0 to 255, got {pixels.size} of {pixels.dtype}")
    raise DataError(f"{where}: expected an image as bytes or pixels, got {type(value).__name__}")


def _find(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    return search(root, lambda folder: bool(_files(folder)))


def _read_fer2013(root: Path, request: Request) -> Manifest:
    tables = read_tables(root)
    names = next((table.names for table in tables if table.names), None)
    codes, note = names or FER2013_CODES, "codes named by the file"
    every = [label for table in tables for label in table.labels]
    if names is None and all(isinstance(label, int) for label in every):
        alphabetical = request.options.codes == "alphabetical"
        codes = tuple(sorted(FER2013_CODES)) if alphabetical else FER2013_CODES
        note = f"integer labels read as {'alphabetical' if alphabetical else 'fer2013'} codes"
        if request.options.codes is None:
            _refuse_other_order(every, root)
    elif request.options.codes is not None:
        raise DataError(f"codes: the labels of {root} are named, so codes have no meaning")
    samples = list(samples_of(tables, partial(_named, codes=codes), request))
    return Manifest("fer2013", "parquet", root, samples, BASIC_NAMES, (note,))


def _named(label: Label, codes: Sequence[str]) -> str:
    if isinstance(label, str) and not label.isdigit():
        return canonical_name(label)
    if not 0 <= int(label) < len(codes):
        raise DataError(f"label: expected 0 to {len(codes) - 1}, got {label}")
    return canonical_name(codes[int(label)])


def _refuse_other_order(labels: Sequence[Label], root: Path) -> None:
    """DataError where codes 4 to 6 are as frequent as in alphabetical order: surprise is the rarest of the three."""
    counts = np.bincount(np.array(labels, np.int64).clip(0, 7), minlength=8)
    if counts.sum() >= 3000 and counts[6] < 0.9 * min(counts[4], counts[5]):
        raise DataError(
            f"{root}: code 6 is the rarest of 4 to 6 ({counts[4]}, {counts[5]}, {counts[6]}), as surprise is in "
            "alphabetical order; in FER2013's own it is neutral. Say codes alphabetical or fer2013"
        )


def _read_raf_db(root: Path, request: Request) -> Manifest:
    """Names, the file's own or in its metadata, or codes; metadata may name the codes "1" to "7"."""
    tables = read_tables(root)
    names = next((table.names for table in tables if table.names), None)
    plain = partial(_plain_label, names=names)
    codes = {code for table in tables for code in map(plain, table.labels) if isinstance(code, int)}
    first = _first_code(codes, root) if codes else 1

    def name_of(label: Label) -> str:
        code = plain(label)
        return RAF_DB_CODES[code - first] if isinstance(code, int) else canonical_name(code)

    samples = list(samples_of(tables, name_of, request))
    note = f"codes {first} to {first + 6}" if codes else "labels by name"
    return Manifest("raf_db", "parquet", root, samples, BASIC_NAMES, (note,))


def _plain_label(label: Label, names: tuple[str, ...] | None) -> Label:
    """The label's name where there is one, else its code."""
    if isinstance(label, int) and names is not None:
        if not 0 <= label < len(names):
            raise DataError(f"label: expected 0 to {len(names) - 1}, got {label}")
        label = names[label]
    return int(label) if str(label).isdigit() else label


def _first_code(codes: set[int], root: Path) -> int:
    """1 for RAF-DB's own codes, 0 for those less one. DataError for compound codes, and where both are possible."""
    if not 0 <= min(codes) <= max(codes) <= 7 or len(codes) > 7:
        raise DataError(
            f"{root}: codes {min(codes)} to {max(codes)}, expected 1 to 7 or 0 to 6; compound expressions (1 to 11) "
            "and RAF-CE (0 to 13) are other sets"
        )
    if 0 not in codes and 7 not in codes:
        raise DataError(f"{root}: codes {sorted(codes)} have neither 0 nor 7, so they may count from 0 or from 1")
    return 0 if 0 in codes else 1


_EXPECTS = "ROOT/[data/]*.parquet"
FER2013_LAYOUT = Layout("parquet", _EXPECTS, _find, _read_fer2013)
RAF_DB_LAYOUT = Layout("parquet", _EXPECTS, _find, _read_raf_db)
