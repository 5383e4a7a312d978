# SPDX-License-Identifier: Apache-2.0
"""Trees of one folder per class, with or without a folder per split above them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastfer.data.labels import canonical_name
from fastfer.data.layouts import images_in, subfolders
from fastfer.data.split import DataError

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Part of each folder name, in lower case."""


@dataclass(frozen=True)
class ClassImage:
    """An image in a class folder. ``part`` is that of the folder above, ``label`` the class folder's name."""

    path: Path
    part: str | None
    label: str
    id: str


def split_folders(root: Path) -> dict[str, Path]:
    """{part: folder} of the subfolders named like one. DataError where two are the same part (val and validation)."""
    found: dict[str, Path] = {}
    for folder in subfolders(root):
        part = SPLIT_FOLDERS.get(folder.name.lower())
        if part in found:
            raise DataError(f"{root} holds two {part} folders: {found[part].name} and {folder.name}")
        if part is not None:
            found[part] = folder
    return found


def class_images(root: Path) -> Iterator[ClassImage]:
    """The images of ``root``/[split/]class/, in order of split, class and name; ids are paths below ``root``."""
    for part, folder in _trees(root):
        for class_folder in subfolders(folder):
            for path in images_in(class_folder):
                yield ClassImage(path, part, class_folder.name, path.relative_to(root).as_posix())


def class_names(root: Path) -> set[str]:
    """Names of the class folders below ``root``, over all splits."""
    return {folder.name for _, tree in _trees(root) for folder in subfolders(tree)}


def all_expressions(names: set[str]) -> bool:
    """Whether ``names`` are two or more, and all of expressions."""
    try:
        return len({canonical_name(name) for name in names}) > 1
    except ValueError:
        return False


def first_image(root: Path) -> ClassImage | None:
    """The first image of ``class_images``."""
    return next(class_images(root), None)


def _trees(root: Path) -> list[tuple[str | None, Path]]:
    """(part, folder of class folders); one without a part where there are no split folders."""
    found = split_folders(root)
    return [*found.items()] if found else [(None, root)]
