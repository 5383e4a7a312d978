# SPDX-License-Identifier: Apache-2.0
"""Trees of one folder per class, with or without a folder per split above them.

Images may lie deeper in a class folder, in folders for persons or batches; all of them are the class's, as in
torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastfer.data.labels import canonical_name
from fastfer.data.layouts import SPLIT_FOLDERS, is_expression, is_part
from fastfer.data.split import DataError
from fastfer.data.tree import Tree


@dataclass(frozen=True)
class ClassFolder:
    """A folder of one class. ``part`` is that of the folder above."""

    path: Path
    part: str | None

    @property
    def label(self) -> str:
        """The folder's name."""
        return self.path.name


@dataclass(frozen=True)
class ClassImage:
    """An image in a class folder. ``part`` is that of the folder above, ``label`` the class folder's name."""

    path: Path
    part: str | None
    label: str
    id: str

    def expression(self) -> str:
        """Canonical name of the class. DataError where the folder's name is none."""
        try:
            return canonical_name(self.label)
        except ValueError:
            raise DataError(f"{self.path} lies in the folder {self.label!r}, which is no expression") from None


def split_folders(tree: Tree, root: Path) -> dict[str, Path]:
    """{part: folder} of the subfolders named like one. DataError where two are the same part (val and validation)."""
    found: dict[str, Path] = {}
    for folder in tree.folders(root):
        part = SPLIT_FOLDERS.get(folder.name.lower())
        if part in found:
            raise DataError(f"{root} holds two {part} folders: {found[part].name} and {folder.name}")
        if part is not None:
            found[part] = folder
    return found


def class_folders(tree: Tree, root: Path) -> list[ClassFolder]:
    """The class folders of ``root``/[split/]class/: those named as an expression, and any other with an image.

    A folder of another name without images (tmp, @eaDir) is none; an empty one named as an expression is a class.
    """
    parts = split_folders(tree, root)
    above = [*parts.items()] if parts else [(None, root)]
    return [
        ClassFolder(folder, part)
        for part, split in above
        for folder in tree.folders(split)
        if is_expression(folder.name) or tree.has_image(folder)
    ]


def class_images(tree: Tree, folders: list[ClassFolder], root: Path) -> Iterator[ClassImage]:
    """The images of ``folders``, in order of split, class and name; ids are paths below ``root``.

    DataError where a class folder holds another, or a split: whose images those are is not known.
    """
    for folder in folders:
        for below, listing in tree.walk(folder.path):
            if below != folder.path and listing.images and is_part(below):
                raise DataError(
                    f"{below} lies in the class folder {folder.path}: its {len(listing.images)} images could be of "
                    "either; expected images, or folders of persons or batches"
                )
            for path in listing.images:
                yield ClassImage(path, folder.part, folder.label, path.relative_to(root).as_posix())


def expressions(folders: list[ClassFolder]) -> set[str]:
    """Canonical names of the class folders that are named as expressions."""
    return {canonical_name(folder.label) for folder in folders if is_expression(folder.label)}


def is_class_tree(tree: Tree, root: Path) -> bool:
    """Whether two or more folders named as expressions lie in ``root`` or its split folders, and an image in one."""
    names = [folder for part in _above(tree, root) for folder in tree.folders(part) if is_expression(folder.name)]
    return len({canonical_name(folder.name) for folder in names}) > 1 and any(map(tree.has_image, names))


def is_tree_of_any_names(tree: Tree, root: Path) -> bool:
    """Whether two or more folders with images lie in ``root`` or its split folders, none of them over a split."""
    folders = [folder for part in _above(tree, root) for folder in tree.folders(part) if tree.has_image(folder)]
    splits = [child for folder in folders for child in tree.folders(folder) if child.name.lower() in SPLIT_FOLDERS]
    return len({folder.name for folder in folders}) > 1 and not splits


def image_names(tree: Tree, root: Path) -> Iterator[str]:
    """File names of the images in folders named as expressions."""
    for part in _above(tree, root):
        for folder in tree.folders(part):
            if is_expression(folder.name):
                yield from (path.name for path in tree.images_below(folder))


def _above(tree: Tree, root: Path) -> list[Path]:
    """The folders that class folders lie in: split folders, else ``root``."""
    return [*split_folders(tree, root).values()] or [root]
