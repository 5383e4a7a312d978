# SPDX-License-Identifier: Apache-2.0
"""What is evaluated, from a command line: a weight file and a part of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastfer.data import DataError, Preprocess, Split, load_dataset
from fastfer.models import FerModel, load_weights, read_metadata

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Weights:
    """A network with what its file says: how images are preprocessed, and the whole header."""

    model: FerModel
    preprocess: Preprocess
    metadata: dict[str, Any]
    path: Path


def load(path: Path) -> Weights:
    """Read a weight file. FileNotFoundError, or ValueError for a file that does not say how to use it."""
    metadata = read_metadata(path)
    return Weights(load_weights(path), preprocess_of(metadata, path), metadata, path)


def preprocess_of(metadata: Mapping[str, Any], path: Path) -> Preprocess:
    """The preprocessing that the weights were trained with. ValueError where the header does not say."""
    try:
        return Preprocess.from_metadata(metadata)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected its preprocessing, or mean and std, in the header: {error}") from None


def load_parts(
    data: str, root: Path | None, part: str, options: Mapping[str, Any], with_train: bool
) -> tuple[Split, Split | None]:
    """The split ``part``, and the training set where it is wanted. DataError as `load_dataset`.

    ``options`` are those of `load_dataset`, by name.
    """
    with_train = with_train and part != "train"
    try:
        splits = load_dataset(data, root, parts=("train", part) if with_train else (part,), **options)
    except TypeError as error:  # an option that no data set knows
        raise DataError(str(error)) from None
    return splits[part], splits["train"] if with_train else None


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """{"classes": 7} of ["classes=7"]: values are JSON, or else the text itself. ValueError without "="."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"option: expected NAME=VALUE, got {text!r}")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        options[name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return options
