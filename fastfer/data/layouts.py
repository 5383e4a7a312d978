# SPDX-License-Identifier: Apache-2.0
"""Layouts: how the files of a data set lie, and the recognition of one in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastfer.data.images import is_image
from fastfer.data.labels import BASIC_NAMES
from fastfer.data.manifest import PARTS, Manifest, Problems
from fastfer.data.options import DataOptions
from fastfer.data.split import DataError


@dataclass(frozen=True)
class Request:
    """What a reader is asked for, and where it reports.

    parts  the parts that must be there, others may be left out; None where all images are wanted, whatever there is
    """

    options: DataOptions
    problems: Problems
    parts: frozenset[str] | None = None

    @property
    def wanted(self) -> frozenset[str]:
        """Parts whose images are to be read."""
        return frozenset(PARTS) if self.parts is None else self.parts


@dataclass(frozen=True)
class Layout:
    """One way in which a data set's files lie.

    name    short name for ``layout=``
    expects the files, in words, for messages
    find    root -> the files or folders that show this layout; empty where it is not this one, several where it is
            there more than once
    read    (place found, request) -> manifest
    last    a last resort: considered where the data set was named and shows no other layout
    """

    name: str
    expects: str
    find: Callable[[Path], list[Path]]
    read: Callable[[Path, Request], Manifest]
    last: bool = False


@dataclass(frozen=True)
class Dataset:
    """What ``load_dataset`` knows of a data set.

    usual_split  the split rule where none is asked for; None: official where the files show one, else it must be given
    options      names of the options that only this data set takes
    by_subject   random and k-fold splits must not part a subject's images
    seven        the classes that ``classes=7`` means
    """

    name: str
    layouts: tuple[Layout, ...]
    usual_split: str | None
    options: frozenset[str] = frozenset()
    by_subject: bool = False
    seven: tuple[str, ...] = BASIC_NAMES


@dataclass(frozen=True)
class Found:
    """A layout recognised at ``place``."""

    dataset: Dataset
    layout: Layout
    place: Path


def recognise(root: Path, datasets: Sequence[Dataset], layout: str = "auto") -> Found:
    """The one layout of ``datasets`` that ``root`` shows. Any other wins over class folders in general.

    DataError where there is none, listing what was looked for, or more than one, listing what was found.
    """
    wanted = [(d, each) for d in datasets for each in d.layouts if layout in ("auto", each.name)]
    if not wanted:
        known = ", ".join(each.name for d in datasets for each in d.layouts)
        raise DataError(f"layout: expected auto or one of {known}, got {layout!r}")
    if not root.exists():
        raise DataError(f"root: {root} does not exist; looked for: {_list(root, wanted)}")
    found = _find(root, [(d, each) for d, each in wanted if not each.last])
    found = [each for each in found if each.dataset.name != "image_folder"] or found
    if not found and len(datasets) == 1:
        found = _find(root, [(d, each) for d, each in wanted if each.last])
    if not found:
        raise DataError(f"root: {root} holds none of: {_list(root, wanted)}")
    if len(found) > 1:
        shown = "; ".join(f"{each.dataset.name} {each.layout.name} at {each.place}" for each in found)
        raise DataError(
            f"root: {root} is ambiguous, it holds {shown}: give the data set, the layout or the path of one"
        )
    return found[0]


def _find(root: Path, layouts: Sequence[tuple[Dataset, Layout]]) -> list[Found]:
    return [Found(dataset, each, place) for dataset, each in layouts for place in each.find(root)]


def _list(root: Path, wanted: Sequence[tuple[Dataset, Layout]]) -> str:
    return "; ".join(f"{dataset.name} {each.name}: {each.expects}" for dataset, each in wanted).replace(
        "ROOT", str(root)
    )


def subfolders(folder: Path) -> list[Path]:
    """Folders in ``folder``, sorted; hidden ones and __MACOSX left out. Empty where it is no folder."""
    return sorted(Path(entry) for entry in _entries(folder) if entry.is_dir() and entry.name != "__MACOSX")


def images_in(folder: Path) -> list[Path]:
    """Image files in ``folder`` itself, sorted by name."""
    return sorted(Path(entry) for entry in _entries(folder) if is_image(Path(entry.name)) and entry.is_file())


def search(root: Path, shows: Callable[[Path], bool], depth: int = 2) -> list[Path]:
    """``root`` and its subfolders to ``depth`` that ``shows`` accepts, and none below one that it accepts.

    Archives add a folder or two of their own, so a data set may lie deeper than the folder that a user names.
    """
    if not root.is_dir():
        return []
    if shows(root):
        return [root]
    return [found for child in subfolders(root) for found in search(child, shows, depth - 1)] if depth else []


def files_named(root: Path, names: Sequence[str], depth: int = 2) -> list[Path]:
    """Files of these names in ``root`` and its subfolders to ``depth``, the outermost of each branch."""
    folders = search(root, lambda folder: any((folder / name).is_file() for name in names), depth)
    return [folder / name for folder in folders for name in names if (folder / name).is_file()]


def named_images(folder: Path, pattern: re.Pattern[str]) -> tuple[dict[str, tuple[Path, re.Match[str]]], int]:
    """({matched part of the name: (file, match)}, number of images that do not match) of the images in ``folder``.

    DataError where two files have the same matched part: a set that lies there twice, in two formats or crops.
    """
    found: dict[str, tuple[Path, re.Match[str]]] = {}
    strange = 0
    for path in images_in(folder):
        match = pattern.search(path.name)
        if match is None:
            strange += 1
        elif match[0] in found:
            other = found[match[0]][0]
            raise DataError(f"{folder} holds {match[0]} twice: {other} and {path}; keep one of the two sets")
        else:
            found[match[0]] = path, match
    return found, strange


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in ``folder``, hidden entries (.DS_Store, ._photo.jpg) left out."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]
