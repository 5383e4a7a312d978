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
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfer.data.files import file_inside, refuse_lfs_pointer
from fastfer.data.labels import BASIC_NAMES, FER2013_CODES, RAF_DB_CODES, canonical_name, code_names
from fastfer.data.layouts import PART_WORDS, SPLIT_FOLDERS, Layout, Request, search
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.pixel_csv import PIXELS, SIDE, parse_pixels
from fastfer.data.split import DataError
from fastfer.data.tree import Tree

IMAGE_COLUMNS = ("image", "img_bytes", "image_bytes", "img", "pixels")
LABEL_COLUMNS = ("emotion_name", "label", "labels", "emotion")
USAGE_COLUMNS = ("usage", "split")

MAX_GROWTH, MAX_SMALL = 200, 1 << 26
"""A table may take MAX_SMALL bytes, or MAX_GROWTH times its file: encoded images do not grow, and pixels as a list of
64-bit numbers grow some twentyfold. A thousand bytes that repeat one row a hundred million times grow without end."""

Label = int | str


@dataclass(frozen=True)
class Table:
    """What was read of one file; ``names`` are the class names that its metadata give to integer labels."""

    path: Path
    images: Sequence[Any]
    labels: Sequence[Label]
    usages: Sequence[str] | None
    names: tuple[str, ...] | None


def read_tables(paths: Sequence[Path]) -> list[Table]:
    """The Parquet files ``paths``. ImportError without pyarrow, DataError for what is no table."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Parquet files need pyarrow: pip install 'fastfer[parquet]' ({error})") from error
    tables = []
    for path in paths:
        refuse_lfs_pointer(path)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                tables.append(_table(path, file))
        except DataError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {str(error)[:120]}") from error
    return tables


def _files(tree: Tree, folder: Path) -> list[Path]:
    """The file itself, or the Parquet files in ``folder`` and its split folders."""
    if isfile(tree.root):
        return [tree.root] if tree.root.suffix == ".parquet" else []
    folders = [folder, *(child for child in tree.folders(folder) if child.name.lower() in SPLIT_FOLDERS)]
    return [path for each in folders for path in tree.listing(each).others if path.suffix == ".parquet"]


def _table(path: Path, file: Any) -> Table:
    names = file.schema_arrow.names
    columns = {name.lower(): name for name in names}
    allowed = max(MAX_SMALL, MAX_GROWTH * path.stat().st_size)

    def values(candidates: tuple[str, ...]) -> list[Any] | None:
        name = next((columns[each] for each in candidates if each in columns), None)
        return None if name is None else _column(file, name, path, allowed)

    labels = values(LABEL_COLUMNS)  # first, because they are small
    images = values(IMAGE_COLUMNS)
    for found, candidates in ((images, IMAGE_COLUMNS), (labels, LABEL_COLUMNS)):
        if found is None:
            raise DataError(f"{path}: no column {' or '.join(candidates)}; it has {', '.join(names)}")
    return Table(path, images or [], labels or [], values(USAGE_COLUMNS), _class_names(file.schema_arrow.metadata))


def _column(file: Any, name: str, path: Path, allowed: int) -> list[Any]:
    """The values of a column, read a piece at a time, so that its size is known before it fills the memory."""
    found: list[Any] = []
    size = 0
    for batch in file.iter_batches(batch_size=1024, columns=[name]):
        size += batch.nbytes + 64 * len(batch)  # each row is an object of Python's, too
        if size > allowed:
            raise DataError(
                f"{path}, column {name!r}: expected at most {allowed} bytes, {MAX_GROWTH} times the file; after "
                f"{len(found)} of {file.metadata.num_rows} rows it is more"
            )
        found += batch.column(0).to_pylist()
    return found


def _class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...] | None:
    """Names that the Hugging Face metadata give to the codes of the label column."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        named = [features[column]["names"] for column in LABEL_COLUMNS if "names" in features.get(column, {})]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(str(name) for name in named[0]) if named else None


def samples_of(tables: Sequence[Table], name_of: Callable[[Label], str], request: Request) -> Iterator[Sample]:
    """The rows of wanted parts as samples; what is wrong with a row goes to the request's problems."""
    for table in tables:
        for number in range(len(table.images)):
            part = _part(table, number)
            if part is not None and part not in request.wanted:
                continue
            sample = request.problems.attempt(partial(_sample, table, number, name_of, part))
            if sample is not None:
                yield sample


def _sample(table: Table, number: int, name_of: Callable[[Label], str], part: str | None) -> Sample:
    label, where = table.labels[number], f"{table.path}, row {number}"
    if isinstance(label, bool) or not isinstance(label, int | str):
        kind = "none" if label is None else f"{type(label).__name__} {str(label)[:20]!r}"
        raise DataError(f"{where}: expected a label that is a number or a name, got {kind}")
    above = table.path.parent.name
    file = f"{above}/{table.path.name}" if above.lower() in SPLIT_FOLDERS else table.path.name
    try:
        image = row_image(table.images[number], table.path.parent, where)
        return Sample(image, name_of(label), f"{file} row {number}", part)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _part(table: Table, number: int) -> str | None:
    if table.usages is not None:
        usage = str(table.usages[number])
        if usage.lower() not in PART_WORDS:
            where = f"{table.path}, row {number}"
            raise DataError(f"{where}: unknown usage {usage!r}; expected one of {', '.join(PART_WORDS)}")
        return PART_WORDS[usage.lower()]
    words = re.split(r"[^a-z]+", table.path.stem.lower())
    return next((PART_WORDS[word] for word in (*words, table.path.parent.name.lower()) if word in PART_WORDS), None)


def row_image(value: Any, folder: Path, where: str) -> Path | bytes | NDArray[np.uint8]:
    """Encoded bytes, pixels, or where a row has only the path of its image, that file beside the table."""
    if isinstance(value, dict):
        name = value.get("path")
        value = value.get("bytes")
        if value is None and isinstance(name, str) and name:
            path = file_inside(folder, name, where)
            if not isfile(path):
                raise DataError(f"{where} holds no image but the name of one, and {path} is missing")
            return path
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and re.match(r"\s*[0-9]+\s", value):
        return parse_pixels(value, where)
    if isinstance(value, list):
        try:
            pixels = np.array(value)
        except ValueError:  # rows of unequal length
            raise DataError(f"{where}: expected {PIXELS} pixels of 0 to 255, got an uneven list") from None
        if pixels.size == PIXELS and pixels.dtype.kind in "iu" and 0 <= pixels.min() <= pixels.max() <= 255:
            return pixels.astype(np.uint8).reshape(SIDE, SIDE)
        raise DataError(f"{where}: expected {PIXELS} pixels of 0 to 255, got {pixels.size} of {pixels.dtype}")
    raise DataError(f"{where}: expected an image as bytes or pixels, got {type(value).__name__}")


def _find(tree: Tree) -> list[Path]:
    if isfile(tree.root):
        return _files(tree, tree.root)
    return search(tree, lambda folder: bool(_files(tree, folder)))


def _read_fer2013(root: Path, request: Request) -> Manifest:
    paths = _files(request.tree, root)
    tables = read_tables(paths)
    names = next((table.names for table in tables if table.names), None)
    codes, note = dict(enumerate(names or FER2013_CODES)), "codes named by the file"
    every = [label for table in tables for label in table.labels]
    if names is None and all(label is None or isinstance(label, int) for label in every):
        asked = request.options.codes or "fer2013"
        codes, note = {**code_names(asked)}, f"integer labels read as {asked} codes"
        if request.options.codes is None:
            _refuse_other_order([label for label in every if isinstance(label, int)], root)
    elif request.options.codes is not None:
        raise DataError(f"codes: the labels of {root} are named, so codes have no meaning")
    samples = list(samples_of(tables, partial(_named, codes=codes), request))
    return Manifest("fer2013", "parquet", root, samples, BASIC_NAMES, (note,), sources=tuple(paths))


def _named(label: Label, codes: dict[int, str]) -> str:
    if isinstance(label, str) and not label.isdecimal():
        return canonical_name(label)
    if int(label) not in codes:
        raise ValueError(f"label: expected {min(codes)} to {max(codes)}, got {str(label)[:40]}")
    return canonical_name(codes[int(label)])


def _refuse_other_order(labels: Sequence[Label], root: Path) -> None:
    """DataError where codes 4 to 6 are as frequent as in alphabetical order: surprise is the rarest of the three."""
    counts = np.bincount(np.array([min(max(int(label), 0), 7) for label in labels], np.int64), minlength=8)
    if counts.sum() >= 3000 and counts[6] < 0.9 * min(counts[4], counts[5]):
        raise DataError(
            f"{root}: code 6 is the rarest of 4 to 6 ({counts[4]}, {counts[5]}, {counts[6]}), as surprise is in "
            "alphabetical order; in FER2013's own it is neutral. Say codes alphabetical or fer2013"
        )


def _read_raf_db(root: Path, request: Request) -> Manifest:
    """Names, the file's own or in its metadata, or codes; metadata may name the codes "1" to "7"."""
    paths = _files(request.tree, root)
    tables = read_tables(paths)
    names = next((table.names for table in tables if table.names), None)
    plain = partial(_plain_label, names=names)
    given = [label for table in tables for label in table.labels if isinstance(label, int | str)]
    codes = {code for code in map(plain, given) if isinstance(code, int)}
    first = _first_code(codes, root) if codes else 1

    def name_of(label: Label) -> str:
        code = plain(label)
        return RAF_DB_CODES[code - first] if isinstance(code, int) else canonical_name(code)

    samples = list(samples_of(tables, name_of, request))
    note = f"codes {first} to {first + 6}" if codes else "labels by name"
    return Manifest("raf_db", "parquet", root, samples, BASIC_NAMES, (note,), sources=tuple(paths))


def _plain_label(label: Label, names: tuple[str, ...] | None) -> Label:
    """The label's name where there is one, else its code."""
    if isinstance(label, int) and names is not None:
        if not 0 <= label < len(names):
            raise DataError(f"label: expected 0 to {len(names) - 1}, got {label}")
        label = names[label]
    return int(label) if str(label).isdecimal() and len(str(label)) < 10 else label


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
