# SPDX-License-Identifier: Apache-2.0
"""Many pictures in parts: each becomes one Parquet file, which is there whole or not at all.

A part's file has its number for a name, so a part that is done twice, because a machine was lost, is there once; a run
that goes on leaves out parts whose files are there. A row is a picture: source, width, height, error, and a list of
faces. Needs pyarrow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastfer._files import replace_atomically
from fastfer._messages import DataError, printable
from fastfer.predict.inputs import Item
from fastfer.predict.pictures import Read, attempt
from fastfer.predict.results import Result

if TYPE_CHECKING:
    from fastfer.predict.recognizer import Recognizer

_ROWS = 256  # in memory at a time


@dataclass(frozen=True)
class Part:
    """What one file of results is made of.

    number  its place among the parts
    kind    "pictures": files; "table": one row group of a Parquet file; "shard": a tar file of images
    names   the pictures' files, or the file
    group   of a table: which row group
    """

    number: int
    kind: Literal["pictures", "table", "shard"]
    names: tuple[str, ...]
    group: int = 0

    def file(self, folder: Path) -> Path:
        """Where its results are written."""
        return folder / f"part-{self.number:06}.parquet"


def divided(items: Sequence[Item], pictures: int) -> list[Part]:
    """The parts, in the order of the items: up to ``pictures`` picture files each, row groups, tar files."""
    parts: list[Part] = []
    waiting: list[str] = []

    def flush() -> None:
        if waiting:
            parts.append(Part(len(parts), "pictures", tuple(waiting)))
            waiting.clear()

    for item in items:
        if item.kind != "table":
            waiting.append(item.name)
            if len(waiting) == pictures:
                flush()
            continue
        flush()
        if item.name.lower().endswith(".tar"):
            parts.append(Part(len(parts), "shard", (item.name,)))
        else:
            parts += [Part(len(parts) + group, "table", (item.name,), group) for group in range(_groups(item.name))]
    flush()
    return parts


def _groups(name: str) -> int:
    """Row groups of a Parquet file; 1 for one that is damaged, whose part says so."""
    try:
        with _parquet().ParquetFile(name) as file:
            return int(file.metadata.num_row_groups)
    except (OSError, ValueError):  # of which pyarrow's are kinds
        return 1


def results(part: Part, recognizer: Recognizer) -> Iterator[Result]:
    """A result for each picture of a part, in order; where its file breaks off, one more that says so."""
    names: deque[str] = deque()
    broken: list[str] = []

    def reads() -> Iterator[Read]:
        try:
            for name, read in _reads(part, recognizer.longest):
                names.append(name)
                yield read
        except DataError as error:
            broken.append(str(error))

    for result, _ in recognizer.results(reads(), keep=True):
        yield replace(result, source=names.popleft())
    if broken:
        yield Result((), None, part.names[0], broken[0])


def _reads(part: Part, longest: int | None) -> Iterator[tuple[str, Read]]:
    """The pictures with their names. DataError for a file that cannot be read on."""
    if part.kind == "pictures":
        yield from ((name, attempt(name, longest=longest)) for name in part.names)
    elif part.kind == "table":
        yield from _rows(part.names[0], part.group, longest)
    else:
        yield from _members(part.names[0], longest)


def _rows(name: str, group: int, longest: int | None) -> Iterator[tuple[str, Read]]:
    from fastfer.data.parquet import IMAGE_COLUMNS, row_image

    folder, first, row = Path(name).parent, 0, 0
    try:
        with _parquet().ParquetFile(name) as file:
            columns = {column.lower(): column for column in file.schema_arrow.names}
            column = next((columns[each] for each in IMAGE_COLUMNS if each in columns), None)
            if column is None:
                raise DataError(f"{printable(name)}: no column {' or '.join(IMAGE_COLUMNS)}; it has {sorted(columns)}")
            first = sum(file.metadata.row_group(before).num_rows for before in range(group))
            for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[column]):
                for value in batch.column(0):
                    place = f"{name} row {first + row}"
                    row += 1
                    try:
                        yield place, attempt(row_image(value.as_py(), folder, printable(place)), longest=longest)
                    except DataError as error:
                        yield place, Read(None, None, None, error)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        text = printable(str(error))[:120]
        raise DataError(f"{printable(name)}: not a readable Parquet file after {row} rows ({text})") from error


def _members(name: str, longest: int | None) -> Iterator[tuple[str, Read]]:
    from fastfer.data.formats import IMAGE_SUFFIXES
    from fastfer.data.shards import groups

    for key, members in groups(Path(name)):
        for suffix, content in members.items():
            if f".{suffix}" in IMAGE_SUFFIXES:
                yield f"{name} {key}.{suffix}", attempt(content, longest=longest)


def write(path: Path, found: Iterable[Result], classes: Sequence[str]) -> None:
    """A part's file. OSError where it cannot be written."""
    import pyarrow

    schema, rows = _schema(classes), iter(found)
    with replace_atomically(path) as temporary, _parquet().ParquetWriter(temporary, schema) as writer:
        while some := [_row(result) for result in islice(rows, _ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(some, schema))


def done(path: Path) -> bool:
    """Whether a part's file is there, and whole."""
    return path.is_file()


def summed(paths: Iterable[Path], classes: Sequence[str]) -> dict[str, Any]:
    """Counts over the files of a run."""
    counts = {"pictures": 0, "failed": 0, "without_face": 0, "faces": 0}
    labels = dict.fromkeys(classes, 0)
    for path in paths:
        with _parquet().ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096, columns=["error", "faces.list.element.label"]):
                for row in batch.to_pylist():
                    counts["pictures"] += 1
                    counts["failed"] += row["error"] is not None
                    counts["without_face"] += row["error"] is None and not row["faces"]
                    for face in row["faces"]:
                        counts["faces"] += 1
                        labels[face["label"]] += 1
    return {**counts, "labels": labels}


def _row(result: Result) -> dict[str, Any]:
    width, height = result.size or (None, None)
    faces = []
    for face in result.faces:
        left, top, *sides = face.box
        box = {"left": left, "top": top, "width": sides[0], "height": sides[1]}
        points = None if face.points is None else [value for point in face.points for value in point]
        said = {"detection": face.detection, "label": face.label, "score": face.score}
        faces.append({**box, **said, "points": points, "probabilities": face.probabilities})
    names = {"source": printable(result.source or ""), "error": result.error and printable(result.error)}
    return {**names, "width": width, "height": height, "faces": faces}


def _schema(classes: Sequence[str]) -> Any:
    import pyarrow as pa

    number = pa.float32()
    face = [(side, number) for side in ("left", "top", "width", "height")]
    face += [("detection", number), ("label", pa.string()), ("score", number), ("points", pa.list_(number))]
    face += [("probabilities", pa.struct([(name, number) for name in classes]))]
    return pa.schema(
        [
            ("source", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("error", pa.string()),
            ("faces", pa.list_(pa.struct(face))),
        ]
    )


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Parquet files need pyarrow: pip install 'fastfer[ray]' ({error})") from error
    return pyarrow.parquet
