# SPDX-License-Identifier: Apache-2.0
"""Data sets of facial expressions, one preprocessing, batched augmentation.

``load_dataset(name, root)`` gives the splits "train" and "validation". Labels follow canonical class names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastfer.data import drawn, fer2013
from fastfer.data.augment import Augment
from fastfer.data.face import Face, FaceCrop, FaceDetector, FaceNotFoundError, YuNet
from fastfer.data.labels import BASIC_NAMES, CLASS_NAMES, FER2013_CODES, canonical_name, class_index
from fastfer.data.preprocess import Preprocess
from fastfer.data.split import DataError, Split

__all__ = [
    "BASIC_NAMES", "CLASS_NAMES", "FER2013_CODES", "Augment", "DataError", "Face", "FaceCrop", "FaceDetector",
    "FaceNotFoundError", "Preprocess", "Split", "YuNet", "canonical_name", "class_index", "list_datasets",
    "load_dataset",
]  # fmt: skip


def _load_drawn(root: Path | None, train_images: int | None, validation_images: int | None) -> dict[str, Split]:
    if root is not None:
        raise DataError(f"root: the drawn faces are generated and read nothing, got {root}")
    return drawn.load(train_images or drawn.TRAIN_IMAGES, validation_images or drawn.VALIDATION_IMAGES)


def _load_fer2013(root: Path | None, train_images: int | None, validation_images: int | None) -> dict[str, Split]:
    if root is None:
        raise DataError(f"root: fer2013 needs the csv or the folder that holds one of {', '.join(fer2013.FILE_NAMES)}")
    splits = fer2013.load(root, ("Training", "PublicTest"))
    chosen = {
        "train": splits["Training"].first(train_images),
        "validation": splits["PublicTest"].first(validation_images),
    }
    for name, split in chosen.items():
        split.require_every_class(f"fer2013, first {len(split)} images of {name}")
    return chosen


_DATASETS: dict[str, Callable[[Path | None, int | None, int | None], dict[str, Split]]] = {
    "drawn": _load_drawn,
    "fer2013": _load_fer2013,
}


def list_datasets() -> list[str]:
    """Names that ``load_dataset`` knows."""
    return sorted(_DATASETS)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    train_images: int | None = None,
    validation_images: int | None = None,
) -> dict[str, Split]:
    """{"train": Split, "validation": Split} of the data set ``name``, read from ``root`` where it needs one.

    ``train_images`` and ``validation_images`` take that many from the start instead of all.
    DataError (a ValueError) for an unknown name, for a missing or needless root, and for anything wrong in the files.
    """
    if name not in _DATASETS:
        raise DataError(f"unknown data set {name!r}: expected one of {', '.join(list_datasets())}")
    for option, count in (("train_images", train_images), ("validation_images", validation_images)):
        if count is not None and count < 1:
            raise DataError(f"{option}: expected 1 or more, got {count}")
    return _DATASETS[name](None if root is None else Path(root), train_images, validation_images)
