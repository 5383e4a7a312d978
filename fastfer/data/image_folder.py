# SPDX-License-Identifier: Apache-2.0
"""Any tree of class folders, with split folders above them or without: the layout of torchvision's ImageFolder.

Folders are mapped by name, never by their alphabetical index. Names that are no expressions are taken where
``classes`` lists them.
"""

from __future__ import annotations

from pathlib import Path

from fastfer.data.class_folders import all_expressions, class_images, class_names, first_image
from fastfer.data.labels import CLASS_NAMES, canonical_name
from fastfer.data.layouts import Layout, Request, search
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.split import DataError


def _find(root: Path) -> list[Path]:
    return search(root, lambda folder: all_expressions(class_names(folder)) and first_image(folder) is not None)


def _find_any(root: Path) -> list[Path]:
    return search(root, lambda folder: first_image(folder) is not None)


def _read(root: Path, request: Request) -> Manifest:
    found = list(class_images(root))
    asked = request.options.classes
    own = () if asked is None or isinstance(asked, int) else asked
    labels = {image.label: _class_name(image.label, own, root) for image in found}
    present = set(labels.values())
    names = tuple(name for name in CLASS_NAMES if name in present) + tuple(sorted(present - set(CLASS_NAMES)))
    samples = [Sample(image.path, labels[image.label], image.id, image.part) for image in found]
    return Manifest("image_folder", "class-folders", root, samples, names)


def _class_name(folder: str, own: tuple[str, ...], root: Path) -> str:
    try:
        return canonical_name(folder)
    except ValueError:
        if folder in own:
            return folder
        hint = ""
        if folder.isdigit():
            hint = "; numbers as names do not say which expression they stand for"
        raise DataError(
            f"{root}: class folder {folder!r} is no expression{hint}; classes may list names of your own, "
            f"the known are {', '.join(CLASS_NAMES)}"
        ) from None


LAYOUTS: tuple[Layout, ...] = (
    Layout("class-folders", "ROOT/[train|validation|test/]CLASS/*.{jpg,png,...}", _find, _read),
    Layout("other-folders", "the same with names that classes lists", _find_any, _read, last=True),
)
