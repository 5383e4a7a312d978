# SPDX-License-Identifier: Apache-2.0
"""One split of a data set, held in memory, and the error that every reader raises."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """A data set that cannot be read as asked. The message names the file and the place in it."""


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    images  uint8 (N, H, W) grey, or (N, C, H, W)
    labels  int64 (N,), indices into ``names``
    names   class names in canonical order
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim not in (3, 4):
            raise ValueError(
                "images: expected uint8 of shape (N, H, W) or (N, C, H, W), "
                f"got {self.images.dtype} {self.images.shape}"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: expected int64 of shape ({len(self.images)},), got {self.labels.dtype} {self.labels.shape}"
            )
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < len(self.names):
            raise ValueError(
                f"labels: expected 0 to {len(self.names) - 1}, got {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Colour channels: 1 for grey images."""
        return 1 if self.images.ndim == 3 else int(self.images.shape[1])

    def first(self, count: int | None) -> Split:
        """The first ``count`` images; all of them for None."""
        return Split(self.images[:count], self.labels[:count], self.names)

    def counts(self) -> dict[str, int]:
        """Images per class, every class named."""
        per_class = np.bincount(self.labels, minlength=len(self.names))
        return {name: int(n) for name, n in zip(self.names, per_class, strict=True)}

    def require_every_class(self, what: str) -> None:
        """DataError where a class has no image; ``what`` names the split in the message."""
        empty = [name for name, n in self.counts().items() if n == 0]
        if empty:
            raise DataError(f"{what}: no image of class {', '.join(empty)} (counts: {self.counts()})")

    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels and names: equal for equal splits, on every machine."""
        digest = hashlib.sha256(repr((self.images.shape, self.names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").data)
        return digest.hexdigest()
