# SPDX-License-Identifier: Apache-2.0
"""What a reader finds in the files: one record per image, nothing decoded yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastfer.data.files import warn
from fastfer.data.labels import BASIC_NAMES
from fastfer.data.split import DataError

if TYPE_CHECKING:
    from fastfer.data.inventory import Inventory

PARTS: tuple[str, ...] = ("train", "validation", "test")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    image    file, encoded bytes, or the pixels themselves, uint8 (H, W)
    label    class name, None while only ``votes`` say something
    id       name, unique within the data set
    split    train, validation or test by the set's own rule; None where it has none
    subject  the person shown, where the set says
    votes    FERPlus: votes for the eight classes, then unknown and no face
    """

    image: Path | bytes | NDArray[np.uint8]
    label: str | None
    id: str
    split: str | None = None
    subject: str | None = None
    votes: tuple[int, ...] | None = None


class Problems:
    """Collects what is wrong with single images, so that all of them are named and counted at once.

    files  images that are there and left out for it
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.found: list[str] = []
        self.files: set[Path] = set()

    def attempt(self, read: Callable[[], _T]) -> _T | None:
        """The result of ``read``, or None where it raises DataError and such images are to be skipped."""
        try:
            return read()
        except DataError as error:
            if not self.skip:
                raise
            self.found.append(str(error))
            return None

    def add(self, message: str, file: Path | None = None) -> None:
        """Note a problem, and the image ``file`` that is left out for it; ``settle`` tells it."""
        self.found.append(message)
        if file is not None:
            self.files.add(file)


def settle(unusable: Sequence[str], what: str, skip: bool) -> str:
    """Raise DataError for the images that are ``unusable``, or warn where they are skipped; returns a note of it.

    ``what`` says what was looked at, e.g. "120 images of RAF-DB".
    """
    if not unusable:
        return ""
    shown = "; ".join(unusable[:5]) + (f"; and {len(unusable) - 5} more" if len(unusable) > 5 else "")
    message = f"{len(unusable)} of {what} cannot be used: {shown}"
    if not skip:
        raise DataError(f"{message} (skip_corrupt goes on without them)")
    warn(f"skipped: {message}")
    return f"{len(unusable)} unusable images skipped"


@dataclass(frozen=True)
class Manifest:
    """The images of a data set in one layout.

    dataset, layout  their names
    root             file or folder that was read
    samples          in a fixed order
    names            classes of the set, in canonical order
    notes            what a reader of the results has to know: label source, what was left out
    sources          files that labels were read from
    seven            the classes that ``classes=7`` means
    classes          folders that stand for one class each
    unusable         what is wrong with single images, which are not among the samples
    left_out         {reason: images that the layout knows and does not take}
    inventory        everything below the root, and which of it this manifest accounts for
    """

    dataset: str
    layout: str
    root: Path
    samples: Sequence[Sample]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()
    seven: tuple[str, ...] = BASIC_NAMES
    classes: tuple[Path, ...] = ()
    unusable: tuple[str, ...] = ()
    left_out: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    inventory: Inventory | None = None
