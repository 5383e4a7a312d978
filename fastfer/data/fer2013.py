# SPDX-License-Identifier: Apache-2.0
"""FER2013: 48x48 grey faces of seven expressions (Goodfellow et al. 2013), from csv files or class folders.

Training and validation are the official Training and PublicTest, the test set is PrivateTest. The csv says which in
its Usage column, the folders in the prefix of the file names. No face detector belongs on these crops.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from os.path import isdir, isfile
from pathlib import Path

import numpy as np

from fastfer.data import pixel_csv
from fastfer.data.class_folders import (
    class_folders,
    class_images,
    expressions,
    image_names,
    is_class_tree,
    split_folders,
)
from fastfer.data.images import decode, probe
from fastfer.data.labels import BASIC_NAMES, FER2013_CODES, class_index
from fastfer.data.layouts import Layout, Request, files_named, is_expression, search
from fastfer.data.manifest import Manifest, Problems, Sample
from fastfer.data.pixel_csv import PART_OF_USAGE, SIDE, USAGES
from fastfer.data.split import DataError, Split
from fastfer.data.tree import Tree

CSV_NAMES: tuple[str, ...] = ("fer2013.csv", "icml_face_data.csv")
FILE_NAMES: tuple[str, ...] = tuple(folder + name for name in CSV_NAMES for folder in ("", "fer2013/"))

_OTHER_SETS = ("ckextended", "fer2013new")
_PREFIX = re.compile(r"(Training|PublicTest|PrivateTest)_[0-9]+")


def find_csv(root: str | Path) -> Path:
    """The csv itself, or the one in the folder ``root`` (see FILE_NAMES). DataError naming all that was looked for."""
    root = Path(root)
    if isfile(root):
        return root
    candidates = [root / name for name in FILE_NAMES]
    for path in candidates:
        if isfile(path):
            return path
    reason = "holds none of" if isdir(root) else "does not exist; looked for"
    raise DataError(f"fer2013: {root} {reason}: {', '.join(str(path) for path in candidates)}")


def load(root: str | Path, usages: Sequence[str] = ("Training", "PublicTest")) -> dict[str, Split]:
    """Read the splits ``usages`` of a csv: {usage: Split of (N, 48, 48) images}. Other rows' pixels are not looked at.

    DataError: file missing, see ``pixel_csv.read_samples``; a split that is empty or lacks a class.
    """
    unknown = [usage for usage in usages if usage not in USAGES]
    if unknown:
        raise ValueError(f"usages: expected some of {', '.join(USAGES)}, got {', '.join(unknown)}")
    path = find_csv(root)
    parts = {usage: PART_OF_USAGE[usage] for usage in usages}
    samples, present = pixel_csv.read_samples(path, FER2013_CODES, parts.values(), Problems(skip=False))
    splits = {}
    for usage, part in parts.items():
        chosen = [sample for sample in samples if sample.split == part]
        if not chosen:
            raise DataError(f"{path}: no row with Usage {usage}; rows per Usage: {dict(present)}")
        labels = np.array([class_index(str(sample.label)) for sample in chosen], np.int64)
        splits[usage] = Split(np.stack([decode(sample) for sample in chosen]), labels, BASIC_NAMES)
        splits[usage].require_every_class(f"{path}, Usage {usage}")
    return splits


def find_csvs(tree: Tree) -> list[Path]:
    """fer2013.csv or icml_face_data.csv in the root or a folder or two below; or the root itself."""
    root = tree.root
    if isfile(root):
        other = root.suffix == ".parquet" or root.name.startswith(_OTHER_SETS) or _lacks_usage(root)
        return [] if other else [root]
    return files_named(tree, CSV_NAMES)


def _read_csv(path: Path, request: Request) -> Manifest:
    samples, present = pixel_csv.read_samples(path, FER2013_CODES, request.wanted, request.problems)
    for part in sorted(request.parts or ()):
        if not any(sample.split == part for sample in samples):
            usage = next(usage for usage, of in PART_OF_USAGE.items() if of == part)
            raise DataError(f"{path}: no row with Usage {usage}; rows per Usage: {dict(present)}")
    return Manifest("fer2013", "csv", path, samples, BASIC_NAMES, sources=(path,))


def _find_train_csv(tree: Tree) -> list[Path]:
    """The competition's train.csv, which has no Usage; beside the whole file it says nothing new."""
    if isfile(tree.root):
        return [tree.root] if _lacks_usage(tree.root) else []
    return [] if find_csvs(tree) else [path for path in files_named(tree, ["train.csv"]) if _lacks_usage(path)]


def _lacks_usage(path: Path) -> bool:
    return set(pixel_csv.header(path) or ()) == {"emotion", "pixels"}


def _read_train_csv(path: Path, request: Request) -> Manifest:
    samples, _ = pixel_csv.read_samples(path, FER2013_CODES, {"train"}, request.problems, with_usage=False)
    note = "the competition's train.csv: Training rows only (test.csv has no labels)"
    return Manifest("fer2013", "train-csv", path, samples, BASIC_NAMES, (note,), sources=(path,))


def _find_folders(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: _is_folder_layout(tree, folder))


def _is_folder_layout(tree: Tree, root: Path) -> bool:
    """Split folders of the seven classes; file names with FER2013's prefixes, or of all seven numbered 48x48 grey
    images.
    """
    if not _is_tree_of_seven(tree, root):
        return False
    if any(map(_PREFIX.match, image_names(tree, root))):
        return True
    folders = class_folders(tree, root)
    if expressions(folders) != set(BASIC_NAMES):
        return False
    images = class_images(tree, folders, root)
    first = next((image for image in images if is_expression(image.label)), None)
    numbered = first is not None and re.fullmatch(r"(im)?[0-9]+", first.path.stem) is not None
    return first is not None and numbered and probe(Sample(first.path, None, first.id)) == (True, (SIDE, SIDE))


def _is_tree_of_seven(tree: Tree, root: Path) -> bool:
    return (
        len(split_folders(tree, root)) > 1
        and is_class_tree(tree, root)
        and expressions(class_folders(tree, root)) <= set(BASIC_NAMES)
    )


def _find_other_folders(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: _is_tree_of_seven(tree, folder))


def _read_folders(root: Path, request: Request) -> Manifest:
    """The split is that of the file names; only where they carry none, that of the folders."""
    folders = class_folders(request.tree, root)
    found = list(class_images(request.tree, folders, root))
    prefixes = [_PREFIX.match(image.path.name) for image in found]
    named = sum(prefix is not None for prefix in prefixes)
    if 0 < named < len(found):
        stray = next(image.path for image, prefix in zip(found, prefixes, strict=True) if prefix is None)
        raise DataError(
            f"{root}: {len(found) - named} of {len(found)} file names lack the prefix of FER2013's splits, such as "
            f"{stray}: are two layouts mixed?"
        )
    samples, moved = [], 0
    for image, prefix in zip(found, prefixes, strict=True):
        part = image.part if prefix is None else PART_OF_USAGE[prefix[1]]
        moved += prefix is not None and (image.part == "train") != (part == "train")
        samples.append(Sample(image.path, image.expression(), image.id, part))
    notes = []
    if not named:
        notes.append("split by folder: the file names do not say the official split")
    if moved:
        notes.append(f"split by file name: {moved} images lie in another split's folder")
    classes = tuple(folder.path for folder in folders)
    return Manifest("fer2013", "folders", root, samples, BASIC_NAMES, tuple(notes), classes=classes)


LAYOUTS: tuple[Layout, ...] = (
    Layout("csv", ", ".join(f"ROOT/{name}" for name in FILE_NAMES), find_csvs, _read_csv),
    Layout("train-csv", "ROOT/train.csv (emotion,pixels)", _find_train_csv, _read_train_csv),
    Layout("folders", "ROOT/{train,test}/CLASS/{Training,PublicTest,PrivateTest}_*.jpg", _find_folders, _read_folders),
    Layout("other-folders", "the same with other file names", _find_other_folders, _read_folders, last=True),
)
