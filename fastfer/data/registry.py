# SPDX-License-Identifier: Apache-2.0
"""The data sets that lie in files, and how their names may be spelt."""

from __future__ import annotations

import re

from fastfer.data import fer2013, image_folder
from fastfer.data.labels import BASIC_NAMES
from fastfer.data.layouts import Dataset

_ANY: frozenset[str] = frozenset()

DATASETS: tuple[Dataset, ...] = (
    Dataset("fer2013", fer2013.LAYOUTS, "official", frozenset({"codes"}), False, BASIC_NAMES),
    Dataset("image_folder", image_folder.LAYOUTS, None, _ANY, False, BASIC_NAMES),
)
"""In the order of recognition."""

_SPELLINGS = {"ck+": "ck_plus", "ck": "ck_plus", "ck+48": "ck_plus", "fer+": "ferplus"}


def canonical_dataset(name: str) -> str:
    """``"CK+"`` -> ``"ck_plus"``, ``"RAF-DB"`` -> ``"raf_db"``; an unknown name comes back in lower case."""
    plain = re.sub(r"[\s_-]", "", name.lower())
    known = {re.sub("_", "", dataset.name): dataset.name for dataset in DATASETS}
    return _SPELLINGS.get(plain) or known.get(plain) or name.lower()
