# SPDX-License-Identifier: Apache-2.0
"""Data sets of facial expressions, one preprocessing, batched augmentation.

``load_dataset(name, root)`` gives splits such as "train" and "validation". Labels follow canonical class names.

Names are imported when they are first used, so that faces and files are read without torch (`fastfer.predict`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfer.data import drawn, fer2013
    from fastfer.data.audit import duplicate_mask
    from fastfer.data.augment import Augment
    from fastfer.data.face import Face, FaceCrop, FaceDetector, FaceNotFoundError, YuNet
    from fastfer.data.folds import fraction_parts, group_folds, stratified_folds
    from fastfer.data.input_spec import InputSpec
    from fastfer.data.labels import BASIC_NAMES, CLASS_NAMES, FER2013_CODES, canonical_name, class_index
    from fastfer.data.lazy import LazySplit
    from fastfer.data.loading import Folds, list_datasets, list_layouts, load_dataset, load_folds, load_lazily
    from fastfer.data.manifest import Manifest, Sample
    from fastfer.data.options import DataOptions
    from fastfer.data.preprocess import Preprocess
    from fastfer.data.shard_loader import Batch, ShardLoader
    from fastfer.data.shards import Shards, ShardWriter, index_shards, write_shards
    from fastfer.data.split import DataError, Split

_MODULES = ("drawn", "fer2013")
_NAMES = {
    "Augment": "augment",
    "BASIC_NAMES": "labels",
    "Batch": "shard_loader",
    "CLASS_NAMES": "labels",
    "DataError": "split",
    "DataOptions": "options",
    "FER2013_CODES": "labels",
    "Face": "face",
    "FaceCrop": "face",
    "FaceDetector": "face",
    "FaceNotFoundError": "face",
    "Folds": "loading",
    "InputSpec": "input_spec",
    "LazySplit": "lazy",
    "Manifest": "manifest",
    "Preprocess": "preprocess",
    "Sample": "manifest",
    "ShardLoader": "shard_loader",
    "ShardWriter": "shards",
    "Shards": "shards",
    "Split": "split",
    "YuNet": "face",
    "canonical_name": "labels",
    "class_index": "labels",
    "duplicate_mask": "audit",
    "fraction_parts": "folds",
    "group_folds": "folds",
    "index_shards": "shards",
    "list_datasets": "loading",
    "list_layouts": "loading",
    "load_dataset": "loading",
    "load_folds": "loading",
    "load_lazily": "loading",
    "stratified_folds": "folds",
    "write_shards": "shards",
}

__all__ = [
    "BASIC_NAMES", "CLASS_NAMES", "FER2013_CODES", "Augment", "Batch", "DataError", "DataOptions", "Face", "FaceCrop",
    "FaceDetector", "FaceNotFoundError", "Folds", "InputSpec", "LazySplit", "Manifest", "Preprocess", "Sample",
    "ShardLoader", "ShardWriter", "Shards", "Split", "YuNet", "canonical_name", "class_index", "drawn",
    "duplicate_mask", "fer2013", "fraction_parts", "group_folds", "index_shards", "list_datasets", "list_layouts",
    "load_dataset", "load_folds", "load_lazily", "stratified_folds", "write_shards",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value: Any = getattr(importlib.import_module(f"fastfer.data.{_NAMES[name]}"), name)
    elif name in _MODULES:
        return importlib.import_module(f"fastfer.data.{name}")
    else:
        raise AttributeError(f"module 'fastfer.data' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
