# SPDX-License-Identifier: Apache-2.0
"""The data sets that lie in files, and how their names may be spelt."""

from __future__ import annotations

import re

from fastfer.data import affectnet, ck_plus, fer2013, ferplus, image_folder, jaffe, parquet, raf_db, rafd
from fastfer.data.layouts import Dataset

DATASETS: tuple[Dataset, ...] = (
    Dataset("fer2013", (*fer2013.LAYOUTS, parquet.FER2013_LAYOUT), "official", options=frozenset({"codes"})),
    Dataset("ferplus", ferplus.LAYOUTS, "official", options=frozenset({"label_mode", "label_source"})),
    Dataset(
        "ck_plus",
        ck_plus.LAYOUTS,
        "10-fold",
        options=frozenset({"frames", "neutral"}),
        by_subject=True,
    ),
    Dataset("raf_db", (*raf_db.LAYOUTS, parquet.RAF_DB_LAYOUT), "official", options=frozenset({"aligned"})),
    Dataset("rafd", rafd.LAYOUTS, "10-fold", options=frozenset({"cameras", "gazes"}), by_subject=True),
    Dataset("jaffe", jaffe.LAYOUTS, "leave-one-subject-out", by_subject=True),
    Dataset("affectnet", affectnet.LAYOUTS, "official"),
    Dataset("image_folder", image_folder.LAYOUTS, None, options=frozenset({"codes"})),
)

_SPELLINGS = {"ck+": "ck_plus", "ck": "ck_plus", "ck+48": "ck_plus", "fer+": "ferplus", "rafdb": "raf_db"}


def canonical_dataset(name: str) -> str:
    """``"CK+"`` -> ``"ck_plus"``, ``"RAF-DB"`` -> ``"raf_db"``; an unknown name comes back in lower case."""
    plain = re.sub(r"[\s_-]", "", name.lower())
    known = {dataset.name.replace("_", ""): dataset.name for dataset in DATASETS}
    return _SPELLINGS.get(plain) or known.get(plain) or name.lower()
