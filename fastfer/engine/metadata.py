# SPDX-License-Identifier: Apache-2.0
"""The metadata of an engine file, a JSON object.

Its entries are "model", "options", "classes", "mean", "std", "dtype", "strict", "outputs" and "structure". ``mean``
and ``std`` have one number a channel on the scale 0 to 1; ``outputs`` are the shapes of the outputs without N,
``structure`` is how they are put together (`fastfer.engine.outputs`). Needs no torch.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from math import isfinite, prod
from typing import Any

from fastfer.engine.outputs import Structure, checked

_PLACE = 32
"""Where the header has the metadata's offset and size."""
_HEADER = 96

Shapes = tuple[tuple[int, ...], ...]


def parsed(text: bytes) -> dict[str, Any]:
    """The JSON object. Raises ValueError for anything else."""
    try:
        metadata = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata: expected JSON in UTF-8, got {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata: expected a JSON object, got {type(metadata).__name__}")
    return metadata


def peeked(data: bytes | bytearray) -> dict[str, Any]:
    """The metadata of a file that was not checked yet; empty where it cannot be read."""
    if len(data) < _HEADER:
        return {}
    offset, size = struct.unpack_from("<2Q", data, _PLACE)
    try:
        return parsed(bytes(data[offset : offset + size]))
    except ValueError:
        return {}


def numbers(name: str, value: object, count: int | None = None) -> list[float]:
    """A list of finite numbers."""
    if not isinstance(value, Sequence) or not all(isinstance(v, int | float) and isfinite(v) for v in value):
        raise ValueError(f"{name}: expected a list of numbers, got {value!r}")
    if count is not None and len(value) != count:
        raise ValueError(f"{name}: expected {count} numbers, one a channel, got {len(value)}")
    return [float(v) for v in value]


def equalises(metadata: dict[str, Any]) -> bool:
    """Whether the preprocessing record says that the histogram of an image is equalised."""
    record = metadata.get("preprocess")
    return isinstance(record, dict) and record.get("equalise") is True


def normalisation(metadata: dict[str, Any], channels: int | None = None) -> tuple[list[float], list[float]]:
    """Scale and shift that make of a pixel 0 to 255 what the network takes, a channel each; empty where not known.

    (pixel / 255 - mean) / std. Empty, too, where the record says that pixels are equalised first, which no engine does.
    """
    mean, std = metadata.get("mean"), metadata.get("std")
    if (mean is None and std is None) or equalises(metadata):
        return [], []
    means, deviations = numbers("mean", mean, channels), numbers("std", std, channels)
    if len(means) != len(deviations) or min(deviations, default=0.0) <= 0:
        raise ValueError(f"mean and std: expected as many of each, std above 0, got {mean!r} and {std!r}")
    return [1 / (255 * d) for d in deviations], [-m / d for m, d in zip(means, deviations, strict=True)]


def output_shapes(metadata: dict[str, Any], maps: Sequence[Sequence[int]]) -> Shapes:
    """The outputs' shapes: as many elements as the plan's ``maps`` (C, H, W) have."""
    shapes = metadata.get("outputs", [list(m) for m in maps])
    right = isinstance(shapes, list) and len(shapes) == len(maps)
    for shape, m in zip(shapes if right else (), maps, strict=True) if right else ():
        right = right and isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
        right = right and prod(shape) == prod(m)
    if not right:
        raise ValueError(f"outputs: expected shapes of {[tuple(m) for m in maps]}, got {shapes!r}")
    return tuple(tuple(shape) for shape in shapes)


def output_dtypes(metadata: dict[str, Any], count: int) -> tuple[str, ...]:
    """What the outputs, which a plan computes as float32, are turned into; empty where all stay so."""
    dtypes = metadata.get("dtypes")
    if dtypes is None:
        return ()
    known = ("float32", "int64", "int32", "bool")
    if not isinstance(dtypes, list) or len(dtypes) != count or any(dtype not in known for dtype in dtypes):
        raise ValueError(f"dtypes: expected {count} of {', '.join(known)}, got {dtypes!r}")
    return tuple(dtypes)


def structure(metadata: dict[str, Any], outputs: Shapes) -> Structure | None:
    """How the outputs are put together; None for one alone, or for a tuple of several."""
    if "structure" not in metadata:
        return None
    return checked(metadata["structure"], len(outputs))


def class_names(metadata: dict[str, Any], outputs: Shapes) -> tuple[str, ...] | None:
    """The names of the logits."""
    names = metadata.get("classes")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes: expected a list of names, got {names!r}")
    if (len(names),) != outputs[0] or len(set(names)) != len(names):
        raise ValueError(f"classes: expected distinct names of the outputs {outputs[0]}, got {names!r}")
    return tuple(names)
