# SPDX-License-Identifier: Apache-2.0
"""What is evaluated, from a command line: a weight file and a part of a data set."""

from __future__ import annotations

import inspect
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
    reader: Any = getattr(Preprocess, "from_metadata", _mean_and_std)
    try:
        found: Preprocess = reader(metadata)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected its preprocessing, or mean and std, in the header: {error}") from None
    return found


def _mean_and_std(metadata: Mapping[str, Any]) -> Preprocess:
    missing = [key for key in ("mean", "std") if not isinstance(metadata.get(key), list)]
    if missing:
        raise ValueError(f"no {' and '.join(missing)}")
    return Preprocess(tuple(metadata["mean"]), tuple(metadata["std"]))


def load_parts(
    data: str, root: Path | None, part: str, options: Mapping[str, Any], with_train: bool
) -> tuple[Split, Split | None]:
    """The split ``part``, and the training set where it is wanted and there. DataError as `load_dataset`.

    ``options`` are those of `load_dataset`, by name.
    """
    parameters = inspect.signature(load_dataset).parameters
    selects = "parts" in parameters
    if options and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        unknown = [name for name in options if name not in parameters]
        if unknown:
            raise DataError(f"option: expected one of {', '.join(list(parameters)[2:])}, got {', '.join(unknown)}")
    wanted: Sequence[str] = ("train", part) if with_train and part != "train" else (part,)
    arguments: dict[str, Any] = {"parts": wanted, **options} if selects else dict(options)
    try:
        splits = load_dataset(data, root, **arguments)
    except TypeError as error:  # an option that no data set knows
        raise DataError(str(error)) from None
    if part not in splits:
        raise DataError(f"{data} at {root}: no {part} set; it has {', '.join(splits)}")
    return splits[part], splits.get("train") if part != "train" and with_train else None


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


def protocol_of(split: Split) -> str:
    """How the split was made, in words, where it says; else empty."""
    return str(getattr(split, "protocol", ""))


def ids_of(split: Split) -> tuple[str, ...] | None:
    """Names of the split's images, where it has them."""
    found: tuple[str, ...] | None = getattr(split, "ids", None)
    return found
