# SPDX-License-Identifier: Apache-2.0
"""A split whose images are decoded when asked for: for sets of large images, and for writing shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfer.data import images
from fastfer.data.folds import draw_per_class
from fastfer.data.manifest import Sample, settle
from fastfer.data.split import SoftMode, Split


@dataclass(frozen=True)
class LazySplit:
    """Labels as in ``Split``; images as files, bytes or pixels that ``load`` and ``decode`` turn into arrays."""

    samples: Sequence[Sample]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    soft: NDArray[np.float32] | None
    soft_mode: SoftMode
    protocol: str
    form: images.Form

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> images.Pixels:
        """Image ``index``: uint8 (H, W) or (3, H, W). DataError where it is missing or corrupt."""
        return images.load(self.samples[index], self.form)

    def __getitem__(self, index: int) -> tuple[images.Pixels, int]:
        """(image, label), so that a torch DataLoader takes this as a map-style data set."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        return self.load(index), int(self.labels[index])

    def records(self) -> Iterator[dict[str, Any]]:
        """Per image what a shard holds: "image" as it is stored (path, bytes or pixels), "label" (the class's name),
        "id", "subject", and "soft" (K,) or None; neither resized nor transformed.
        """
        for number, (sample, label) in enumerate(zip(self.samples, self.labels, strict=True)):
            yield {
                "image": sample.image,
                "label": self.names[label],
                "id": sample.id,
                "subject": sample.subject,
                "soft": None if self.soft is None else self.soft[number],
            }

    def first(self, count: int | None) -> LazySplit:
        """The first ``count`` images; all of them for None."""
        soft = None if self.soft is None else self.soft[:count]
        return replace(self, samples=self.samples[:count], labels=self.labels[:count], soft=soft)

    def draw(self, count: int | None, seed: int) -> LazySplit:
        """``count`` images at random, of each class its share, in their order; all of them for None or so many."""
        if count is None or count >= len(self):
            return self
        chosen = draw_per_class(self.labels, count, seed)
        soft = None if self.soft is None else self.soft[chosen]
        return replace(self, samples=[self.samples[int(i)] for i in chosen], labels=self.labels[chosen], soft=soft)

    def decode(self, skip_corrupt: bool = False, cache: images.Cache | None = None) -> Split:
        """All images in memory. DataError that names and counts those that are missing or corrupt, or skips them.

        ``cache`` keeps decoded images by id, for splits that share them.
        """
        unusable: list[str] = []
        pixels, kept = images.load_all(self.samples, self.form, unusable, cache)
        note = settle(unusable, f"{len(self)} images", skip_corrupt)
        chosen = [self.samples[int(index)] for index in kept]
        subjects = tuple(sample.subject for sample in chosen if sample.subject is not None)
        return Split(
            images=pixels,
            labels=self.labels[kept],
            names=self.names,
            soft=None if self.soft is None else self.soft[kept],
            subjects=subjects if len(subjects) == len(chosen) else None,
            ids=tuple(sample.id for sample in chosen),
            soft_mode=self.soft_mode,
            protocol="; ".join(filter(None, [self.protocol, note])),
        )
