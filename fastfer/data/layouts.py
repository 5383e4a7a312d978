# SPDX-License-Identifier: Apache-2.0
"""Layouts: how the files of a data set lie, and the recognition of one in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os.path import exists, isdir, isfile
from pathlib import Path

from fastfer.data.labels import canonical_name
from fastfer.data.manifest import PARTS, Manifest, Problems
from fastfer.data.options import DataOptions
from fastfer.data.pixel_csv import PART_OF_USAGE
from fastfer.data.split import DataError
from fastfer.data.tree import Tree

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "train_set": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "val_set": "validation",
    "dev": "validation", "eval": "validation",
    "test": "test", "testing": "test", "test_set": "test",
}  # fmt: skip
"""Part that a folder's name stands for, in lower case."""

PART_WORDS = {**{usage.lower(): part for usage, part in PART_OF_USAGE.items()}, **SPLIT_FOLDERS}
"""Part that a word in a table stands for, in lower case."""


@dataclass(frozen=True)
class Request:
    """What a reader is asked for, and where it reports.

    parts     the parts that must be there, others may be left out; None where all images are wanted, whatever there is
    tree      the files below the root
    left_out  {reason: images that the layout knows and does not take}
    """

    options: DataOptions
    problems: Problems
    tree: Tree
    parts: frozenset[str] | None = None
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def wanted(self) -> frozenset[str]:
        """Parts whose images are to be read."""
        return frozenset(PARTS) if self.parts is None else self.parts

    def leave_out(self, reason: str, *paths: Path) -> None:
        """Account for images that are known and not taken."""
        self.left_out.setdefault(reason, []).extend(paths)

    def wants(self, part: str | None, path: Path) -> bool:
        """Whether the image ``path`` of ``part`` is to be read; accounts for it where it is not."""
        if part is None or part in self.wanted:
            return True
        self.leave_out(f"{part} images, which were not asked for", path)
        return False


@dataclass(frozen=True)
class Layout:
    """One way in which a data set's files lie.

    name    short name for ``layout=``
    expects the files, in words, for messages
    find    tree -> the files or folders that show this layout; empty where it is not this one, several where it is
            there more than once
    read    (place found, request) -> manifest
    last    a last resort: considered where the data set was named and shows no other layout
    """

    name: str
    expects: str
    find: Callable[[Tree], list[Path]]
    read: Callable[[Path, Request], Manifest]
    last: bool = False


@dataclass(frozen=True)
class Dataset:
    """What ``load_dataset`` knows of a data set.

    usual_split  the split rule where none is asked for; None: official where the files show one, else it must be given
    options      names of the options that only this data set takes
    by_subject   random and k-fold splits must not part a subject's images
    """

    name: str
    layouts: tuple[Layout, ...]
    usual_split: str | None
    options: frozenset[str] = frozenset()
    by_subject: bool = False


@dataclass(frozen=True)
class Found:
    """A layout recognised at ``place``, which is the root of ``tree`` or lies below it."""

    dataset: Dataset
    layout: Layout
    place: Path
    tree: Tree


def recognise(root: Path, datasets: Sequence[Dataset], layout: str = "auto", own_names: bool = False) -> Found:
    """The one layout of ``datasets`` that ``root`` shows. Any other wins over class folders in general.

    ``own_names``: the options say what names or numbers of class folders mean, so that any names are looked for.
    DataError where there is none, listing what was looked for, or more than one, listing what was found.
    """
    wanted = [(d, each) for d in datasets for each in d.layouts if layout in ("auto", each.name)]
    if not wanted:
        known = ", ".join(each.name for d in datasets for each in d.layouts)
        raise DataError(f"layout: expected auto or one of {known}, got {layout!r}")
    if not exists(root):
        raise DataError(f"root: {root} does not exist; looked for: {_list(root, wanted)}")
    tree = Tree(root)
    found = _find(tree, [(d, each) for d, each in wanted if not each.last])
    found = [each for each in found if each.dataset.name != "image_folder"] or found
    if not found:
        found = _find(tree, [(d, each) for d, each in wanted if each.last])
        if len(datasets) > 1:
            found = _by_own_names(root, found, own_names)
    if not found:
        hint = "".join(f"; {folder} cannot be read: {why}" for folder, why in tree.unreadable.items())
        raise DataError(f"root: {root} holds none of: {_list(root, wanted)}{hint}")
    if len(found) > 1:
        shown = "; ".join(f"{each.dataset.name} {each.layout.name} at {each.place}" for each in found)
        raise DataError(
            f"root: {root} is ambiguous, it holds {shown}: give the data set, the layout or the path of one"
        )
    return found[0]


def _find(tree: Tree, layouts: Sequence[tuple[Dataset, Layout]]) -> list[Found]:
    return [Found(dataset, each, place, tree) for dataset, each in layouts for place in each.find(tree)]


def _by_own_names(root: Path, found: Sequence[Found], own_names: bool) -> list[Found]:
    """Of the last resorts found where no data set was named, the one for names that the options explain."""
    any_names = [each for each in found if each.dataset.name == "image_folder"]
    if found and not own_names:
        sets = ", ".join(dict.fromkeys(each.dataset.name for each in found))
        raise DataError(
            f"root: {root} shows folders of images whose names are no expressions: say what they mean with classes or "
            f"codes, or name the data set ({sets})"
        )
    return any_names


def _list(root: Path, wanted: Sequence[tuple[Dataset, Layout]]) -> str:
    return "; ".join(f"{dataset.name} {each.name}: {each.expects}" for dataset, each in wanted).replace(
        "ROOT", str(root)
    )


def is_part(folder: Path) -> bool:
    """Whether the folder's name is that of one part, such as train, or of one class: never a whole data set."""
    return folder.name.lower() in SPLIT_FOLDERS or is_expression(folder.name)


def is_expression(name: str) -> bool:
    """Whether ``name`` is an expression in any spelling."""
    try:
        canonical_name(name)
    except ValueError:
        return False
    return True


def search(tree: Tree, shows: Callable[[Path], bool], depth: int = 2) -> list[Path]:
    """The root and folders below it to ``depth`` that ``shows`` accepts, and none below one that it accepts.

    Archives add a folder or two of their own, so a data set may lie deeper than the folder that a user names. One
    part of a data set would pass for a whole one, so folders named like a part are not looked into.
    """

    def below(folder: Path, left: int) -> list[Path]:
        if shows(folder):
            return [folder]
        inner = [child for child in tree.folders(folder) if not is_part(child)] if left else []
        return [found for child in inner for found in below(child, left - 1)]

    return below(tree.root, depth) if isdir(tree.root) else []


def files_named(tree: Tree, names: Sequence[str], depth: int = 2) -> list[Path]:
    """Files of these names in the root and folders below it to ``depth``, the outermost of each branch."""
    folders = search(tree, lambda folder: any(isfile(folder / name) for name in names), depth)
    return [folder / name for folder in folders for name in names if isfile(folder / name)]
