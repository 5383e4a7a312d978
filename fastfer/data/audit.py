# SPDX-License-Identifier: Apache-2.0
"""Images that occur more than once, blank images, and copies that are labelled differently.

Two images are the same where their decoded pixels are; FER2013 has 280 validation images that are training images too.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fastfer.data.split import DataError, Split


def pixel_key(image: NDArray[np.uint8]) -> bytes:
    """Equal for images of equal shape and pixels; 16 bytes of a hash."""
    return hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()


def duplicate_mask(split: Split, of: Split) -> NDArray[np.bool_]:
    """bool (N,): which images of ``split`` are also in ``of``. Scores with and without them need one evaluation."""
    known = {pixel_key(image) for image in of.images}
    return np.array([pixel_key(image) in known for image in split.images], bool).reshape(len(split))


def remove_duplicates(splits: Mapping[str, Split], which: str) -> dict[str, Split]:
    """Without the copies across splits: "evaluation" drops them there, "training" in the training set; or "none".

    DataError where the training set is not among ``splits``.
    """
    if which == "none":
        return dict(splits)
    if "train" not in splits:
        raise DataError("remove_duplicates: needs train among the parts")
    kept = dict(splits)
    for part in splits:
        if part == "train":
            continue
        if which == "evaluation":
            kept[part] = _without(splits[part], duplicate_mask(splits[part], splits["train"]), "training images")
        else:
            kept["train"] = _without(kept["train"], duplicate_mask(kept["train"], splits[part]), f"{part} images")
    return kept


def _without(split: Split, copies: NDArray[np.bool_], of: str) -> Split:
    note = f"{int(copies.sum())} duplicates of {of} removed"
    return replace(split.take(~copies), protocol="; ".join(filter(None, [split.protocol, note])))


@dataclass
class Audit:
    """What was seen of the images so far; ``add`` one by one, so that a large set needs little memory.

    blank  ids of images of a single level
    """

    blank: list[str] = field(default_factory=list)
    _seen: dict[bytes, list[tuple[str, str | None, str | None]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, image: NDArray[np.uint8], id_: str, part: str | None, label: str | None) -> None:
        """Note an image, its part and its class, None where it has none."""
        if image.size == 0 or image.min() == image.max():
            self.blank.append(id_)
        self._seen[pixel_key(image)].append((id_, part, label))

    def groups(self) -> list[list[str]]:
        """Ids of images that are the same, largest group first."""
        groups = [[id_ for id_, _, _ in copies] for copies in self._seen.values() if len(copies) > 1]
        return sorted(groups, key=len, reverse=True)

    def conflicts(self) -> list[list[str]]:
        """The groups whose images have different labels, as "id (label)"."""
        return [
            [f"{id_} ({label})" for id_, _, label in copies if label is not None]
            for copies in self._seen.values()
            if len({label for _, _, label in copies} - {None}) > 1
        ]

    def across(self, first: str, second: str) -> list[int]:
        """For each group of equal images with some in the part ``first``: how many are in ``second``, if any."""
        counts = [Counter(part for _, part, _ in copies) for copies in self._seen.values() if len(copies) > 1]
        return [count[second] for count in counts if count[first] and count[second]]
