# SPDX-License-Identifier: Apache-2.0
"""Layouts: how the files of a data set lie, and the recognition of one in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastfer.data.images import is_image
from fastfer.data.manifest import PARTS, Manifest, Problems
from fastfer.data.options import DataOptions
from fastfer.data.split import DataError

LFS_MARK = b"version https://git-lfs"


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
    """

    name: str
    expects: str
    find: Callable[[Path], list[Path]]
    read: Callable[[Path, Request], Manifest]


@dataclass(frozen=True)
class Dataset:
    """What ``load_dataset`` knows of a data set.

    usual_split   the split rule where none is asked for; None: official where the files show one, else it must be given
    options       names of options that only some data sets take
    by_subject    random and k-fold splits must not part a subject's images
    seven         the classes that ``classes=7`` means
    """

    name: str
    layouts: tuple[Layout, ...]
    usual_split: str | None
    options: frozenset[str]
    by_subject: bool
    seven: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A layout recognised at ``place``."""

    dataset: Dataset
    layout: Layout
    place: Path


def recognise(root: Path, datasets: Sequence[Dataset], layout: str = "auto") -> Found:
    """The one layout of ``datasets`` that ``root`` shows. The first data sets win over the last, the generic one.

    DataError where there is none, listing what was looked for, or more than one, listing what was found.
    """
    wanted = [(d, each) for d in datasets for each in d.layouts if layout in ("auto", each.name)]
    if not wanted:
        known = ", ".join(each.name for d in datasets for each in d.layouts)
        raise DataError(f"layout: expected auto or one of {known}, got {layout!r}")
    if not root.exists():
        raise DataError(f"root: {root} does not exist; looked for: {_list(root, wanted)}")
    found = [Found(d, each, place) for d, each in wanted for place in each.find(root)]
    specific = [each for each in found if each.dataset.name != "image_folder"]
    found = specific or found
    if not found:
        raise DataError(f"root: {root} holds none of: {_list(root, wanted)}")
    if len(found) > 1:
        shown = "; ".join(f"{each.dataset.name} {each.layout.name} at {each.place}" for each in found)
        raise DataError(f"root: {root} is ambiguous, it holds {shown}: give the layout, or the path of one of them")
    return found[0]


def _list(root: Path, wanted: Sequence[tuple[Dataset, Layout]]) -> str:
    return "; ".join(f"{dataset.name} {each.name}: {each.expects}" for dataset, each in wanted).replace(
        "ROOT", str(root)
    )


def subfolders(folder: Path) -> list[Path]:
    """Folders in ``folder``, sorted; hidden ones and __MACOSX left out. Empty where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX")


def images_in(folder: Path) -> list[Path]:
    """Image files in ``folder`` itself, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_image(path))


def places(root: Path, depth: int = 2) -> Iterator[Path]:
    """``root`` and its subfolders to ``depth``, outer ones first: archives add a folder or two of their own."""
    level = [root] if root.is_dir() else []
    for _ in range(depth + 1):
        yield from level
        level = [child for folder in level for child in subfolders(folder)]


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is Git LFS's stand-in for the real one."""
    with path.open("rb") as file:
        return file.read(len(LFS_MARK)) == LFS_MARK


def refuse_lfs_pointer(path: Path) -> None:
    """DataError where ``path`` is a Git-LFS pointer or cannot be read."""
    try:
        pointer = is_lfs_pointer(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if pointer:
        raise DataError(f"{path} is a Git-LFS pointer, not the data: run `git lfs pull` where it came from")
