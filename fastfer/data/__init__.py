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
    from fastfer.faces.detector import YuNet
    from fastfer.faces.face import Face, FaceCrop, FaceDetector, FaceNotFoundError

_MODULES = ("drawn", "fer2013")
_NAMES = {
    "Augment": "data.augment",
    "BASIC_NAMES": "data.labels",
    "Batch": "data.shard_loader",
    "CLASS_NAMES": "data.labels",
    "DataError": "data.split",
    "DataOptions": "data.options",
    "FER2013_CODES": "data.labels",
    "Face": "faces.face",
    "FaceCrop": "faces.face",
    "FaceDetector": "faces.face",
    "FaceNotFoundError": "faces.face",
    "Folds": "data.loading",
    "InputSpec": "data.input_spec",
    "LazySplit": "data.lazy",
    "Manifest": "data.manifest",
    "Preprocess": "data.preprocess",
    "Sample": "data.manifest",
    "ShardLoader": "data.shard_loader",
    "ShardWriter": "data.shards",
    "Shards": "data.shards",
    "Split": "data.split",
    "YuNet": "faces.detector",
    "canonical_name": "data.labels",
    "class_index": "data.labels",
    "duplicate_mask": "data.audit",
    "fraction_parts": "data.folds",
    "group_folds": "data.folds",
    "index_shards": "data.shards",
    "list_datasets": "data.loading",
    "list_layouts": "data.loading",
    "load_dataset": "data.loading",
    "load_folds": "data.loading",
    "load_lazily": "data.loading",
    "stratified_folds": "data.folds",
    "write_shards": "data.shards",
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
        value: Any = getattr(importlib.import_module(f"fastfer.{_NAMES[name]}"), name)
    elif name in _MODULES:
        return importlib.import_module(f"fastfer.data.{name}")
    else:
        raise AttributeError(f"module 'fastfer.data' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
