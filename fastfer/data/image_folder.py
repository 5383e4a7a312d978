# SPDX-License-Identifier: Apache-2.0
"""Images of one's own: any tree of class folders, as torchvision's ImageFolder takes it, or a list beside images.

Folders are mapped by name, never by their alphabetical index. Names that are no expressions are taken where
``classes`` lists them, and numbers where ``codes`` says what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fastfer.data.class_folders import class_folders, class_images, is_class_tree, is_tree_of_any_names
from fastfer.data.labels import CLASS_NAMES, canonical_name, code_names
from fastfer.data.layouts import Layout, Request, search
from fastfer.data.listed import find_lists, read_lists
from fastfer.data.manifest import Manifest, Sample
from fastfer.data.named_files import persons_in_several_parts, subject_of
from fastfer.data.options import DataOptions
from fastfer.data.split import DataError
from fastfer.data.tree import Tree


class Names:
    """Turns what stands for a class, a folder's name or a label, into the class's name."""

    def __init__(self, options: DataOptions) -> None:
        asked = options.classes
        self._own = () if asked is None or isinstance(asked, int) else tuple(asked)
        self._codes = {} if options.codes is None else code_names(options.codes)

    def __call__(self, label: str, where: str) -> str:
        """DataError for what is no expression, none of the classes asked for, and no number that has a name."""
        if label.isdecimal() and int(label) in self._codes:
            return self._codes[int(label)]
        try:
            return canonical_name(label)
        except ValueError:
            if label in self._own:
                return label
        hint = "; classes may list names of your own"
        if label.isdecimal():
            hint = "; numbers as names do not say which expression they stand for: codes does, such as codes=affectnet"
            if self._codes:
                hint = f"; codes names {', '.join(f'{code} {name}' for code, name in self._codes.items())}"
        raise DataError(f"{where} {label!r} is no expression{hint}, the known are {', '.join(CLASS_NAMES)}")


def ordered(present: set[str]) -> tuple[str, ...]:
    """Canonical names in canonical order, then others by the alphabet."""
    return tuple(name for name in CLASS_NAMES if name in present) + tuple(sorted(present - set(CLASS_NAMES)))


def with_subjects(samples: Sequence[Sample]) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples with the persons that their file names tell, where all of them do, and a note."""
    found = [subject_of(sample.image.name) if isinstance(sample.image, Path) else None for sample in samples]
    if not samples or None in found:
        return [*samples], ()
    told = [replace(sample, subject=subject) for sample, subject in zip(samples, found, strict=True)]
    notes = [f"{len(set(found))} persons, by the file names"]
    if shared := persons_in_several_parts(told):
        notes.append(f"{shared} persons are in more than one part of the folders")
    return told, tuple(notes)


def _find(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: is_class_tree(tree, folder))


def _find_any(tree: Tree) -> list[Path]:
    return search(tree, lambda folder: is_tree_of_any_names(tree, folder))


def _read(root: Path, request: Request) -> Manifest:
    folders = class_folders(request.tree, root)
    name_of = Names(request.options)
    labels = {folder.label: name_of(folder.label, f"{root}: class folder") for folder in folders}
    found = class_images(request.tree, folders, root)
    samples, notes = with_subjects([Sample(each.path, labels[each.label], each.id, each.part) for each in found])
    direct = {folder.path for folder in folders}
    nested = sum(isinstance(sample.image, Path) and sample.image.parent not in direct for sample in samples)
    if nested:
        notes = (*notes, f"{nested} images in folders below the class folders")
    names, classes = ordered(set(labels.values())), tuple(folder.path for folder in folders)
    return Manifest("image_folder", "class-folders", root, samples, names, notes, classes=classes)


def _read_list(root: Path, request: Request) -> Manifest:
    rows = read_lists(root, request)
    name_of = Names(request.options)
    samples: list[Sample] = []
    for row in rows.rows:
        label = request.problems.attempt(partial(name_of, row.label, f"{row.where}: label"))
        if label is not None:
            samples.append(Sample(row.path, label, row.id, row.part, row.subject))
    if all(sample.subject is None for sample in samples):
        samples, notes = with_subjects(samples)
    else:
        notes = ()
    note = f"labels of {', '.join(path.name for path in rows.sources)}"
    names = ordered({str(sample.label) for sample in samples})
    return Manifest("image_folder", "list", root, samples, names, (note, *notes), sources=rows.sources)


LAYOUTS: tuple[Layout, ...] = (
    Layout("class-folders", "ROOT/[train|validation|test/]CLASS/[.../]*.{jpg,png,...}", _find, _read),
    Layout("list", "ROOT/{labels,metadata,...}.csv or .txt: rows of file and label", find_lists, _read_list),
    Layout("other-folders", "class folders with names that classes lists or codes names", _find_any, _read, last=True),
)
