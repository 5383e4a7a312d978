# SPDX-License-Identifier: Apache-2.0
"""Data sets of facial expressions, one preprocessing, batched augmentation.

``load_dataset(name, root)`` gives splits such as "train" and "validation". Labels follow canonical class names.
"""

from __future__ import annotations

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

__all__ = [
    "BASIC_NAMES", "CLASS_NAMES", "FER2013_CODES", "Augment", "Batch", "DataError", "DataOptions", "Face", "FaceCrop",
    "FaceDetector", "FaceNotFoundError", "Folds", "InputSpec", "LazySplit", "Manifest", "Preprocess", "Sample",
    "ShardLoader", "ShardWriter", "Shards", "Split", "YuNet", "canonical_name", "class_index", "drawn",
    "duplicate_mask", "fer2013", "fraction_parts", "group_folds", "index_shards", "list_datasets", "list_layouts",
    "load_dataset", "load_folds", "load_lazily", "stratified_folds", "write_shards",
]  # fmt: skip
