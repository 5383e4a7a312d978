# SPDX-License-Identifier: Apache-2.0
"""How many images the data sets have as published, and which of their flaws are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """Numbers of one layout or of all, see ``published_for``.

    images     by part; "all" for a set without parts
    classes    by part, then class
    copies     images of the second part that are in the first one too; of validation and test, groups of such images
    conflicts  groups of equal images with different labels
    blank      images of one level
    """

    images: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    copies: Mapping[tuple[str, str], int] = field(default_factory=dict)
    conflicts: int = 0
    blank: int = 0


_FER2013 = Published(
    images={"train": 28709, "validation": 3589, "test": 3589},
    classes={
        "train": {
            "anger": 3995,
            "disgust": 436,
            "fear": 4097,
            "happiness": 7215,
            "neutral": 4965,
            "sadness": 4830,
            "surprise": 3171,
        }
    },
    copies={("train", "validation"): 280, ("train", "test"): 288, ("validation", "test"): 43},
    conflicts=57,
    blank=12,
)

_FERPLUS_COPIES = {("train", "validation"): 279, ("train", "test"): 288, ("validation", "test"): 43}

# label.csv lets copies of an image differ; its top votes and those of fer2013new.csv, which does not, differ 281 times.
_FERPLUS_FOLDERS = Published({"train": 28558, "validation": 3579, "test": 3573}, copies=_FERPLUS_COPIES, conflicts=281)
_FERPLUS_CSV = Published({"train": 28561, "validation": 3579, "test": 3574}, copies=_FERPLUS_COPIES)

_CK_PLUS = Published(
    images={"all": 981},
    classes={
        "all": {
            "anger": 135,
            "contempt": 54,
            "disgust": 177,
            "fear": 75,
            "happiness": 207,
            "sadness": 84,
            "surprise": 249,
        }
    },
)

_PUBLISHED = {
    ("fer2013", ""): _FER2013,
    ("ferplus", "folders"): _FERPLUS_FOLDERS,
    ("ferplus", "csv"): _FERPLUS_CSV,
    ("ck_plus", "official"): _CK_PLUS,
    ("ck_plus", "ck48"): _CK_PLUS,
    ("ck_plus", "csv"): Published({"all": 920}),
    ("raf_db", ""): Published({"train": 12271, "test": 3068}),
    ("rafd", ""): Published({"all": 1608}),
    ("jaffe", ""): Published({"all": 213}),
}


def published_for(dataset: str, layout: str) -> Published | None:
    """The numbers of ``dataset`` in ``layout``; None for any class folders of one's own."""
    return _PUBLISHED.get((dataset, layout)) or _PUBLISHED.get((dataset, ""))
