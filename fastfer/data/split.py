# SPDX-License-Identifier: Apache-2.0
"""One split of a data set, held in memory, and the error that every reader raises."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastfer._messages import DataError

__all__ = ["DataError", "SoftMode", "Split"]

SoftMode = Literal["crossentropy", "probability", "multi_target"]


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    images     uint8 (N, H, W) grey, or (N, C, H, W)
    labels     int64 (N,), indices into ``names``
    names      class names in canonical order
    soft       float32 (N, K), rows that sum to 1, or None: a distribution over the classes beside the hard label
    subjects   N names of the persons shown, or None where the set does not say
    ids        N names of the images, unique within the data set, or None
    soft_mode  what ``soft`` is for (Barsoum et al. 2016): "crossentropy" compares distributions, "probability" draws a
               label from it each time the image is used, "multi_target" takes -log max_c(soft_c p_c); no meaning
               without ``soft``
    protocol   in words: data set, layout, label source and mode, how the split was made, what was left out
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    soft: NDArray[np.float32] | None = None
    subjects: tuple[str, ...] | None = None
    ids: tuple[str, ...] | None = None
    soft_mode: SoftMode = "crossentropy"
    protocol: str = ""

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
        self._check_soft()
        for field, values in (("subjects", self.subjects), ("ids", self.ids)):
            if values is not None and len(values) != len(self):
                raise ValueError(f"{field}: expected {len(self)} names, got {len(values)}")

    def _check_soft(self) -> None:
        if self.soft is None:
            return
        expected = (len(self), len(self.names))
        if self.soft.dtype != np.float32 or self.soft.shape != expected:
            raise ValueError(f"soft: expected float32 of shape {expected}, got {self.soft.dtype} {self.soft.shape}")
        if self.soft.size and (self.soft.min() < 0 or np.abs(self.soft.sum(1) - 1).max() > 1e-5):
            raise ValueError("soft: expected rows of numbers from 0 that sum to 1")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Colour channels: 1 for grey images."""
        return 1 if self.images.ndim == 3 else int(self.images.shape[1])

    def first(self, count: int | None) -> Split:
        """The first ``count`` images; all of them for None."""
        return self._part(slice(count))

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Split:
        """The images at the indices ``chosen``, or those where the mask ``chosen`` (N,) is true."""
        indices = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        return self._part(indices)

    def _part(self, chosen: slice | NDArray[Any]) -> Split:
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            soft=None if self.soft is None else self.soft[chosen],
            subjects=_part_of(self.subjects, chosen),
            ids=_part_of(self.ids, chosen),
        )

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
        """SHA-256 of pixels, labels, names and soft labels: equal for equal splits, on every machine."""
        digest = hashlib.sha256(repr((self.images.shape, self.names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").data)
        if self.soft is not None:
            digest.update(self.soft_mode.encode() + np.ascontiguousarray(self.soft.astype("<f4")).tobytes())
        return digest.hexdigest()


def _part_of(values: Sequence[str] | None, chosen: slice | NDArray[Any]) -> tuple[str, ...] | None:
    if values is None:
        return None
    return tuple(values[chosen]) if isinstance(chosen, slice) else tuple(values[int(i)] for i in chosen)
