# SPDX-License-Identifier: Apache-2.0
"""AffectNet (Mollahosseini et al. 2017): faces from the web, by the annotation files of its release or as folders 0-7.

Codes 8 (none), 9 (uncertain) and 10 (no face) are no expressions; their images are left out and counted. There is no
test set: what papers report is the validation set.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from fastfer.data.class_folders import class_folders, class_images, split_folders
from fastfer.data.labels import AFFECTNET_CODES, CLASS_NAMES
from fastfer.data.layouts import Layout, Request, search
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.split import DataError
from fastfer.data.tree import Tree

_NO_EXPRESSION = {8: "none", 9: "uncertain", 10: "no face"}
_LARGEST = 4096  # bytes of a file that holds one number


def _find_annotations(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: bool(_annotated(tree, folder)))


def _annotated(tree: Tree, root: Path) -> dict[str, Path]:
    """{part: folder} of the split folders that hold images and annotations."""
    return {
        part: split
        for part, split in split_folders(tree, root).items()
        if {"images", "annotations"} <= {child.name for child in tree.folders(split)}
    }


def _read_annotations(root: Path, request: Request) -> Manifest:
    """Image N.jpg has its code in annotations/N_exp.npy."""
    samples: list[Sample] = []
    sources: list[Path] = []
    for part, split in _annotated(request.tree, root).items():
        for path in request.tree.images_below(split / "images"):
            if not request.wants(part, path):
                continue
            annotation = split / "annotations" / f"{path.stem}_exp.npy"
            code = request.problems.attempt(partial(_code, annotation))
            sources.append(annotation)
            if code is None:
                request.problems.files.add(path)
            elif code in _NO_EXPRESSION:
                request.leave_out(f"code {code}, {_NO_EXPRESSION[code]}", path)
            else:
                samples.append(Sample(path, AFFECTNET_CODES[code], path.relative_to(root).as_posix(), part))
    return Manifest("affectnet", "annotations", root, samples, CLASS_NAMES, sources=tuple(sources))


def _code(path: Path) -> int:
    """The number in the file, which the release stores as text. DataError for anything else; nothing is unpickled."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        code = int(np.load(path, allow_pickle=False).item())
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except Exception as error:  # numpy's reader lets through what its parser of the header raises
        raise DataError(f"{path}: expected the number of an expression, got {str(error)[:80]}") from error
    if code not in range(len(AFFECTNET_CODES)) and code not in _NO_EXPRESSION:
        raise DataError(f"{path}: expected 0 to 10, got {code}")
    return code


def _find_folders(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: _is_numbered(tree, folder))


def _is_numbered(tree: Tree, root: Path) -> bool:
    above = [*split_folders(tree, root).values()] or [root]
    names = {child.name for each in above for child in tree.folders(each) if tree.has_image(child)}
    return len(names) > 1 and names <= {str(code) for code in range(11)}


def _read_folders(root: Path, request: Request) -> Manifest:
    folders = class_folders(request.tree, root)
    samples = []
    for each in class_images(request.tree, folders, root):
        code = int(each.label) if each.label.isdecimal() else -1
        if code in _NO_EXPRESSION:
            request.leave_out(f"code {code}, {_NO_EXPRESSION[code]}", each.path)
        elif not 0 <= code < len(AFFECTNET_CODES):
            raise DataError(f"{each.path} lies in the folder {each.label!r}, expected 0 to 10")
        else:
            samples.append(Sample(each.path, AFFECTNET_CODES[code], each.id, each.part))
    classes = tuple(folder.path for folder in folders)
    return Manifest("affectnet", "folders", root, samples, CLASS_NAMES, ("codes of AffectNet",), classes=classes)


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "annotations",
        "ROOT/{train_set,val_set}/images/N.jpg with annotations/N_exp.npy",
        _find_annotations,
        _read_annotations,
    ),
    Layout("folders", "ROOT/[train|val/]{0..7}/*.{jpg,png,...}", _find_folders, _read_folders, last=True),
)
