# SPDX-License-Identifier: Apache-2.0
"""Which images a network was trained on, as its weight file records it: enough to divide the data set again.

The record holds no path and no image name: the options that decide the division, and per part the number of images and
a digest of their names. Whoever has the data set gets the same parts from `options`, and proves it by the digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fastfer.data.loading import find_dataset
from fastfer.data.options import DataOptions
from fastfer.data.registry import canonical_dataset
from fastfer.data.split import Split

_PATHS = ("subset",)  # files of one machine; they choose among validation and test images alone


@dataclass(frozen=True)
class SplitRecord:
    """``options`` of `load_dataset` that are not at their default, ``train_images`` the limit, ``images`` per part.

    images  {"train": {"count": 28709, "digest": "ab12..."}, "validation": ...}; a digest is None where the images have
            no names
    """

    data: str
    options: dict[str, Any] = field(default_factory=dict)
    train_images: int | None = None
    images: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, data: str, options: DataOptions, parts: Mapping[str, Split | int], train_images: int | None = None
    ) -> SplitRecord:
        """``parts``: the splits as loaded, or the number of images where they are not in memory."""
        values = {name: getattr(options, name) for name in options.changed() if name not in _PATHS}
        return cls(data, values, train_images, {part: _listing(split) for part, split in parts.items()})

    @classmethod
    def from_metadata(cls, header: Mapping[str, Any]) -> SplitRecord | None:
        """Of a weight file's header; None where it has no record. ValueError or TypeError for a damaged one."""
        entry = header.get("split")
        if entry is None:
            return None
        if not isinstance(entry, Mapping) or not isinstance(entry.get("data"), str):
            raise ValueError(f"split: expected a record with a data set, got {str(entry)[:80]!r}")
        options, images = entry.get("options", {}), entry.get("images", {})
        if not isinstance(options, Mapping) or not isinstance(images, Mapping):
            raise ValueError(f"split: expected options and images by part, got {str(entry)[:80]!r}")
        known = {each.name for each in fields(DataOptions)} - set(_PATHS)
        if unknown := sorted(set(options) - known):
            raise ValueError(f"split.options: expected some of {', '.join(sorted(known))}, got {', '.join(unknown)}")
        DataOptions(**options)
        limit = entry.get("train_images")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"split.train_images: expected a number from 1, got {limit!r}")
        return cls(entry["data"], dict(options), limit, {str(part): dict(each) for part, each in images.items()})

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in self.options.items()}
        return {"data": self.data, "options": values, "train_images": self.train_images, "images": self.images}

    def difference(self, part: str, split: Split) -> str | None:
        """How ``split`` differs from the part as it was then: None where it has the same images."""
        then, now = self.images.get(part, {}), _listing(split)
        if then.get("digest") == now["digest"] and then.get("count") == now["count"]:
            return None
        return (
            f"{then.get('count')} {part} images then (digest {str(then.get('digest'))[:12]}), {now['count']} now "
            f"(digest {str(now['digest'])[:12]})"
        )


def dataset_name(data: str, root: str | Path | None, options: DataOptions | None = None) -> str:
    """The data set's own name, for "auto" that of the one recognised at ``root``."""
    name = canonical_dataset(data)
    return find_dataset(data, root, options).dataset.name if name == "auto" else name


def _listing(split: Split | int) -> dict[str, Any]:
    if isinstance(split, int):
        return {"count": split, "digest": None}
    if split.ids is None:
        return {"count": len(split), "digest": split.fingerprint()}
    names = "\n".join(sorted(split.ids)).encode(errors="surrogateescape")  # a name need not be text
    return {"count": len(split), "digest": hashlib.sha256(names).hexdigest()}
