# SPDX-License-Identifier: Apache-2.0
"""What a command line names: pictures, folders, patterns, lists, videos, cameras, streams."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from fastfer.data.files import printable
from fastfer.data.formats import IMAGE_SUFFIXES
from fastfer.predict.source import VIDEO_SUFFIXES, is_url

TABLE_SUFFIXES = frozenset({".parquet", ".tar"})


@dataclass(frozen=True)
class Item:
    """Something to look at.

    kind   "picture", "stream" for videos, cameras and addresses, or "table" for a Parquet or tar file of pictures
    name   the path or address, or the camera's number as text
    place  where it stands below the input that named it, for files that are made of it; no two have the same
    """

    kind: Literal["picture", "stream", "table"]
    name: str
    place: str

    @property
    def source(self) -> str | int:
        """What `Recognizer.stream` takes."""
        return int(self.name) if self.name.isascii() and self.name.isdigit() else self.name


@dataclass(frozen=True)
class Problem:
    """An input that is nothing of the kind."""

    name: str
    message: str


def expanded(
    inputs: Sequence[str], standard: BinaryIO, null: bool = False, tables: bool = False
) -> tuple[list[Item], list[Problem]]:
    """The items that the inputs name, each once, in their order; and the inputs that name none.

    ``tables``: files that hold many pictures are such; else they are pictures that cannot be read.

    ``-`` reads more inputs from ``standard``, one a line, or with ``null`` ended by a zero byte, which names with line
    breaks need.
    """
    items: dict[str, Item] = {}
    problems = []
    for name in _listed(inputs, standard, null):
        found = 0
        try:
            for item in _items(name, tables):
                items.setdefault(item.name, item)
                found += 1
        except OSError as error:
            problems.append(Problem(name, f"cannot be read ({error.strerror or error})"))
            continue
        if not found:
            problems.append(Problem(name, _missing(name)))
    return _placed(items.values()), problems


def _placed(items: Iterable[Item]) -> list[Item]:
    """The items, each with a place of its own: of several with one name the later ones get a number."""
    taken: set[str] = set()
    placed = []
    for item in items:
        place, number = item.place, 2
        while place in taken:
            path = Path(item.place)
            place, number = str(path.with_name(f"{path.stem}-{number}{path.suffix}")), number + 1
        taken.add(place)
        placed.append(replace(item, place=place))
    return placed


def _listed(inputs: Sequence[str], standard: BinaryIO, null: bool) -> Iterator[str]:
    for name in inputs:
        if name != "-":
            yield name
            continue
        for line in standard.read().split(b"\0" if null else b"\n"):
            text = os.fsdecode(line if null else line.rstrip(b"\r"))
            if text.strip():
                yield text


def _items(name: str, tables: bool) -> Iterator[Item]:
    if os.path.isdir(name):
        yield from _below(name, tables)
    elif os.path.exists(name):
        yield _file(name, os.path.basename(name), tables)
    elif is_url(name):
        yield Item("stream", name, "stream")
    elif (number := _camera(name)) is not None:
        yield Item("stream", number, f"camera-{number}")
    elif glob.has_magic(name):
        for found in sorted(glob.glob(name, recursive=True)):
            yield from (
                _below(found, tables) if os.path.isdir(found) else [_file(found, os.path.basename(found), tables)]
            )


def _below(folder: str, tables: bool) -> Iterator[Item]:
    """The pictures and videos in a folder and its folders, sorted; hidden ones are left out, links to folders, too."""

    def stop(error: OSError) -> None:
        raise error

    wanted = IMAGE_SUFFIXES | VIDEO_SUFFIXES | (TABLE_SUFFIXES if tables else frozenset())
    for path, folders, files in os.walk(folder, onerror=stop):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and Path(file).suffix.lower() in wanted:
                full = os.path.join(path, file)
                yield _file(full, os.path.relpath(full, folder), tables)


def _file(name: str, place: str, tables: bool) -> Item:
    suffix = Path(name).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return Item("stream", name, place)
    return Item("table" if tables and suffix in TABLE_SUFFIXES else "picture", name, place)


def _camera(name: str) -> str | None:
    """The number in ``0``, ``camera`` or ``camera:0``."""
    number = name.removeprefix("camera").removeprefix(":") or "0"
    return number if number.isascii() and number.isdigit() and len(number) < 4 else None


def _missing(name: str) -> str:
    if os.path.isdir(name):
        return "no pictures or videos in this folder"
    return "nothing matches this pattern" if glob.has_magic(name) else "no such file or folder"


def shown(name: str) -> str:
    """A name for a message."""
    return printable(f"camera {name}" if name.isascii() and name.isdigit() else name)
