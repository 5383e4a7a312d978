# SPDX-License-Identifier: Apache-2.0
"""Several inputs of a network as one vector of each image, which the network takes apart again; needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

Shapes = tuple[tuple[int, ...], ...]


def shapes_of(metadata: Mapping[str, Any], elements: int) -> tuple[tuple[str, ...], Shapes] | None:
    """Names and shapes (without N) of several inputs; None where the network has one, an image.

    Raises ValueError for what is no such list of ``elements`` numbers in all.
    """
    shapes, names = metadata.get("inputs"), metadata.get("input_names")
    if shapes is None:
        return None
    right = isinstance(shapes, list) and isinstance(names, list) and len(names) == len(shapes) > 0
    right = right and all(isinstance(s, list) and all(type(n) is int and n > 0 for n in s) for s in shapes or ())
    right = right and all(isinstance(name, str) for name in names or ())
    if not right or sum(prod(shape) for shape in shapes or ()) != elements:
        raise ValueError(
            f"inputs: expected names and shapes of {elements} numbers in all, got {names!r} and {shapes!r}"
        )
    return tuple(names or ()), tuple(tuple(shape) for shape in shapes or ())


def packed(names: Sequence[str], shapes: Shapes, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The inputs, in order or by name, as one array (N, elements) of their kind. Raises TypeError or ValueError."""
    if len(given) + len(named) != len(names) or not set(named) <= set(names[len(given) :]):
        got = [f"{len(given)} in order", *named]
        raise TypeError(f"engine: inputs: expected {', '.join(names)}, got {', '.join(got)}")
    values = [*given, *(named[name] for name in names[len(given) :])]
    torch: Any = sys.modules.get("torch")
    tensors = [torch is not None and isinstance(value, torch.Tensor) for value in values]
    parts = []
    for name, shape, value, is_tensor in zip(names, shapes, values, tensors, strict=True):
        if is_tensor != tensors[0] or not hasattr(value, "dtype") or not hasattr(value, "shape"):
            raise TypeError(f"engine: {name}: expected arrays of numpy, or tensors, got {type(value).__name__}")
        if str(value.dtype).removeprefix("torch.") != "float32":
            raise TypeError(f"engine: {name}: expected dtype float32, got {str(value.dtype).removeprefix('torch.')}")
        if tuple(value.shape)[1:] != shape or len(value) != len(values[0]):
            raise ValueError(
                f"engine: {name}: expected shape ({len(values[0])}, {', '.join(map(str, shape))}), got "
                f"{tuple(value.shape)}"
            )
        parts.append(value.reshape(len(value), prod(shape)))
    if tensors[0]:
        return torch.cat([part.detach() for part in parts], 1)
    import numpy as np

    return np.concatenate(parts, 1)
