# SPDX-License-Identifier: Apache-2.0
"""Results as lines of JSON or of CSV, written as they come: whatever ends the run, complete lines are kept.

JSON: one line a picture or frame, see `Result.to_dict`. CSV: one line a face, or one without a face for a picture that
has none or could not be read; names are escaped, so that each stands in one line.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fastfer.data.files import printable
from fastfer.predict.results import FrameResult, Result

Format = Literal["json", "csv"]
_COLUMNS = ("source", "frame", "time", "face", "track", "left", "top", "width", "height", "detection", "label", "score")


class Writer:
    """Appends results to a binary file, each picture's lines at once."""

    def __init__(self, file: BinaryIO, form: Format, classes: Sequence[str], header: bool) -> None:
        self._file, self._form, self._classes = file, form, classes
        if form == "csv" and header:
            self._write(_csv([*_COLUMNS, *(f"p_{name}" for name in classes), "error"]))

    def __call__(self, result: Result) -> None:
        """Write one picture or frame. OSError where the file cannot take it."""
        if self._form == "json":
            self._write(json.dumps(result.to_dict()) + "\n")
        else:
            self._write("".join(_csv(row) for row in self._rows(result)))

    def _write(self, text: str) -> None:
        self._file.write(text.encode("utf-8", "backslashreplace"))
        self._file.flush()

    def _rows(self, result: Result) -> Iterator[list[Any]]:
        frame = isinstance(result, FrameResult)
        place = [printable(result.source or ""), getattr(result, "index", ""), f"{result.time:.4f}" if frame else ""]  # type: ignore[attr-defined]
        for number, face in enumerate(result.faces):
            known = face.to_dict()
            yield [
                *place,
                number,
                face.track or "",
                *known["box"],
                _or(known["detection"]),
                known["label"],
                known["score"],
                *known["probabilities"].values(),
                "",
            ]
        if not result.faces:
            yield [*place, *[""] * (len(_COLUMNS) - 3 + len(self._classes)), printable(result.error or "")]


def _or(value: Any) -> Any:
    return "" if value is None else value


def _csv(row: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()


def resumable(path: Path, form: Format) -> set[str]:
    """Cuts off what a killed run has left unfinished; the (printable) names of the sources that are done.

    The unfinished: a line without its end; frames of a stream that is the last in the file, as its persons' numbers
    could not be gone on with; in CSV all lines of the last source. ValueError where it is no such file.
    """
    done: dict[str, int] = {}  # source -> where its first line begins
    end, again = 0, False
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            if form == "json" or number:
                source, frame = _source(line, form, path)
                done.setdefault(source, end)
                again = frame or form == "csv"
            end += len(line)
    if done and again:
        source, end = done.popitem()
    os.truncate(path, end)
    return set(done)


def _source(line: bytes, form: Format, path: Path) -> tuple[str, bool]:
    """The source of a line, and whether it is a frame of a stream."""
    try:
        if form == "json":
            record = json.loads(line)
            return printable(str(record["source"])), "frame" in record
        row = next(csv.reader([line.decode()]))
        return row[0], row[1] != ""
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise ValueError(f"{path}: expected results of fastfer.predict, got {line[:60]!r} ({error})") from None


def read(path: Path, form: Format) -> Iterator[tuple[str, float | None, list[tuple[str, float]], bool]]:
    """Of each picture or frame: source, seconds of a stream, label and score of each face, whether it failed."""
    with path.open(encoding="utf-8", newline="") as file:
        if form == "json":
            for line in file:
                record = json.loads(line)
                faces = [(face["label"], face["score"]) for face in record["faces"]]
                yield printable(str(record["source"])), record.get("time"), faces, record["error"] is not None
            return
        place: tuple[str, str] | None = None
        seconds: float | None = None
        faces, failed = [], False
        for row in csv.DictReader(file):
            if place is not None and place != (row["source"], row["frame"]):
                yield place[0], seconds, faces, failed
                faces, failed = [], False
            place, seconds = (row["source"], row["frame"]), float(row["time"]) if row["time"] else None
            failed = failed or bool(row["error"])
            faces += [(row["label"], float(row["score"]))] if row["label"] else []
        if place is not None:
            yield place[0], seconds, faces, failed
