# SPDX-License-Identifier: Apache-2.0
"""``load_dataset`` and its kin: one call from a name and a folder to splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

from fastfer.data import drawn
from fastfer.data.assemble import Prepared, assemble, prepare
from fastfer.data.audit import remove_duplicates
from fastfer.data.files import warn
from fastfer.data.images import Cache, Transform
from fastfer.data.inventory import Inventory, take_inventory
from fastfer.data.layouts import Dataset, Found, Request, recognise
from fastfer.data.lazy import LazySplit
from fastfer.data.manifest import PARTS, Manifest, Problems, settle
from fastfer.data.options import DataOptions, parse_split
from fastfer.data.parts import fold_count
from fastfer.data.registry import DATASETS, canonical_dataset
from fastfer.data.split import DataError, Split

_FOREIGN_TO_DRAWN = "the drawn faces are generated and take no"
_SPECIAL = frozenset().union(*(dataset.options for dataset in DATASETS))


def list_datasets() -> list[str]:
    """Names that ``load_dataset`` knows."""
    return sorted(["drawn", *(dataset.name for dataset in DATASETS)])


def list_layouts(name: str) -> dict[str, str]:
    """{layout: the files that show it} of the data set ``name``."""
    chosen = canonical_dataset(name)
    return {each.name: each.expects for dataset in DATASETS if dataset.name == chosen for each in dataset.layouts}


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    train_images: int | None = None,
    validation_images: int | None = None,
    parts: Sequence[str] = ("train", "validation"),
    options: DataOptions | None = None,
    transform: Transform | None = None,
    mixed_size: int | None = None,
    **changes: Any,
) -> dict[str, Split]:
    """{part: Split} of the data set ``name``, read from ``root`` where it needs one; "auto" recognises the data set.

    Args:
        name: one of list_datasets(), or auto
        root: file or folder where the data set lies
        train_images: take so many training images instead of all, drawn by ``options.seed``, of each class its share
        validation_images: the same for validation
        parts: of train, validation, test: those wanted
        options: labels, split and form of the images; single ones may be given by name (``split="10-fold"``)
        transform: applied to each decoded image, uint8 (H, W) or (H, W, 3), before it is resized: a face crop
        mixed_size: side in pixels that images are resized to where they differ in size and ``options`` give none:
            the one that the network is shown anyway

    DataError (a ValueError) for an unknown name, option or layout, for a missing or needless root, for a part that the
    data set lacks, and for anything wrong in the files.
    """
    limits = {"train": train_images, "validation": validation_images}
    for part, count in limits.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise DataError(f"{part}_images: expected 1 or more, got {count!r}")
    chosen = _options(options, changes)
    if canonical_dataset(name) == "drawn":
        return _load_drawn(root, limits, parts, chosen, transform)
    found = find_dataset(name, root, chosen)
    lazy = _lazily(found, parts, chosen, transform, mixed_size)
    drawn_parts = {part: split.draw(limits.get(part), chosen.seed) for part, split in lazy.items()}
    return _decoded(found.dataset.name, drawn_parts, chosen)


def load_lazily(
    name: str,
    root: str | Path | None = None,
    *,
    parts: Sequence[str] = ("train", "validation"),
    options: DataOptions | None = None,
    transform: Transform | None = None,
    **changes: Any,
) -> dict[str, LazySplit]:
    """As ``load_dataset``, but the images stay in their files until asked for. Not for the drawn faces."""
    chosen = _options(options, changes)
    if chosen.remove_duplicates != "none":
        raise DataError("remove_duplicates: needs the images in memory, so load_dataset only")
    return _lazily(find_dataset(name, root, chosen), parts, chosen, transform)


class Folds(Sequence[dict[str, Split]]):
    """The folds of a k-fold split: {"train", "validation"} each. Images are decoded once and kept."""

    def __init__(self, prepared: Prepared, options: DataOptions, transform: Transform | None) -> None:
        self._prepared, self._options, self._transform = prepared, options, transform
        self._count = fold_count(prepared.manifest, options, prepared.dataset.usual_split, prepared.dataset.by_subject)
        self._cache: Cache = {}
        self._fold(0)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, fold: int) -> dict[str, Split]: ...

    @overload
    def __getitem__(self, fold: slice) -> list[dict[str, Split]]: ...

    def __getitem__(self, fold: int | slice) -> dict[str, Split] | list[dict[str, Split]]:
        if isinstance(fold, slice):
            return [self[number] for number in range(*fold.indices(len(self)))]
        if not -len(self) <= fold < len(self):
            raise IndexError(f"fold: expected 0 to {len(self) - 1}, got {fold}")
        return _decoded(self._prepared.dataset.name, self._fold(fold % len(self)), self._options, self._cache)

    def _fold(self, number: int) -> dict[str, LazySplit]:
        options = replace(self._options, fold=number)
        return assemble(self._prepared, options, ("train", "validation"), self._transform)


def load_folds(
    name: str,
    root: str | Path | None = None,
    *,
    options: DataOptions | None = None,
    transform: Transform | None = None,
    **changes: Any,
) -> Folds:
    """All folds of a data set, as a sequence of what ``load_dataset`` gives for each ``fold``.

    DataError where the split rule is not a k-fold one.
    """
    chosen = _options(options, changes)
    found = find_dataset(name, root, chosen)
    return Folds(prepare(found.dataset, _settled(read_manifest(found, chosen), chosen), chosen), chosen, transform)


def read_manifest(found: Found, options: DataOptions, parts: Iterable[str] | None = None) -> Manifest:
    """Everything found in the files of a data set; ``parts`` limits what is read to these.

    Images that cannot be used are listed in the manifest; with ``skip_corrupt`` so are bad rows, else they raise.
    """
    _check_options(found.dataset, options)
    problems = Problems(options.skip_corrupt)
    request = Request(options, problems, found.tree, None if parts is None else frozenset(parts))
    manifest = found.layout.read(found.place, request)
    manifest = replace(manifest, unusable=tuple(problems.found), left_out=request.left_out)
    manifest = replace(manifest, inventory=take_inventory(found.tree, found.place, manifest, problems.files))
    if not manifest.samples and not problems.found and not request.left_out:
        raise DataError(f"{found.dataset.name} ({found.layout.name}): no image found in {found.place}")
    return manifest


def _settled(manifest: Manifest, options: DataOptions) -> Manifest:
    """The manifest with notes of what is left out; DataError for unusable images and for files that went unread."""
    total = len(manifest.samples) + len(manifest.unusable)
    notes = [settle(manifest.unusable, f"{total} images of {manifest.root}", options.skip_corrupt)]
    if manifest.inventory is not None:
        notes.append(_settle_inventory(manifest.inventory, options.skip_corrupt))
    return replace(manifest, notes=(*manifest.notes, *filter(None, notes)))


def _settle_inventory(inventory: Inventory, skip: bool) -> str:
    """Raise DataError for what was not read, or warn where it is skipped; returns a note of it. Warns of doubts."""
    if doubts := [*inventory.doubts(), *inventory.remarks()]:
        warn(f"{inventory.root}: {'; '.join(doubts)}")
    refusals = "; ".join(inventory.refusals())
    if not refusals:
        return ""
    if not skip:
        raise DataError(
            f"{inventory.root} is not read whole: {refusals} (python -m fastfer.data check lists all files, "
            "skip_corrupt goes on without these)"
        )
    warn(f"skipped: {refusals}")
    return f"not read: {refusals}"


def _decoded(
    name: str, lazy: dict[str, LazySplit], options: DataOptions, cache: Cache | None = None
) -> dict[str, Split]:
    splits = {part: split.decode(options.skip_corrupt, cache) for part, split in lazy.items()}
    splits = remove_duplicates(splits, options.remove_duplicates)
    for part, split in splits.items():
        _check_counts(split, part, name, options)
    return splits


def find_dataset(name: str, root: str | Path | None, options: DataOptions | None = None) -> Found:
    """The data set, layout and place that ``root`` shows. DataError as ``load_dataset``."""
    chosen = canonical_dataset(name)
    datasets = [dataset for dataset in DATASETS if chosen in ("auto", dataset.name)]
    if not datasets:
        raise DataError(f"unknown data set {name!r}: expected auto or one of {', '.join(list_datasets())}")
    if root is None:
        expected = "; ".join(each.expects for dataset in datasets for each in dataset.layouts)
        raise DataError(f"root: {chosen} needs the file or folder where it lies ({expected})")
    options = options or DataOptions()
    return recognise(Path(root), datasets, options.layout, own_names=options.names_labels)


def _lazily(
    found: Found,
    parts: Sequence[str],
    options: DataOptions,
    transform: Transform | None,
    mixed_size: int | None = None,
) -> dict[str, LazySplit]:
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise DataError(f"parts: expected some of {', '.join(PARTS)}, got {', '.join(unknown) or 'none'}")
    rule = options.split or found.dataset.usual_split
    only = rule is not None and parse_split(rule).kind == "official" and options.validation == "auto"
    # What is held out for validation comes from the training set.
    wanted = {*parts, *(("train",) if "validation" in parts else ())}
    manifest = _settled(read_manifest(found, options, wanted if only else None), options)
    if only and not manifest.samples:
        raise DataError(f"{manifest.dataset} at {manifest.root}: no {', '.join(parts)} set")
    return assemble(prepare(found.dataset, manifest, options), options, parts, transform, mixed_size)


def _options(options: DataOptions | None, changes: dict[str, Any]) -> DataOptions:
    known = [field.name for field in fields(DataOptions)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise TypeError(f"unknown option {', '.join(unknown)}: expected one of {', '.join(known)}")
    return replace(options or DataOptions(), **changes)


def _check_options(dataset: Dataset, options: DataOptions) -> None:
    foreign = [name for name in options.changed() if name in _SPECIAL and name not in dataset.options]
    if foreign:
        raise DataError(f"{', '.join(foreign)}: has no meaning for {dataset.name}")


def _check_counts(split: Split, part: str, name: str, options: DataOptions) -> None:
    """Training needs every class; so does the validation set of FER2013, where an empty class means a broken file."""
    if part == "train" or (name == "fer2013" and options.subset is None):
        split.require_every_class(f"{name}, {len(split)} images of {part}")
    if not len(split):
        raise DataError(f"{name}: no image left in {part}")


def _load_drawn(
    root: str | Path | None,
    limits: dict[str, int | None],
    parts: Sequence[str],
    options: DataOptions,
    transform: Transform | None,
) -> dict[str, Split]:
    if root is not None:
        raise DataError(f"root: the drawn faces are generated and read nothing, got {root}")
    refused = [*options.changed(), *(["transform"] if transform else []), *(p for p in parts if p not in limits)]
    if refused:
        raise DataError(f"{', '.join(refused)}: {_FOREIGN_TO_DRAWN} such option or part")
    splits = drawn.load(limits["train"] or drawn.TRAIN_IMAGES, limits["validation"] or drawn.VALIDATION_IMAGES)
    return {part: splits[part] for part in parts}
