# SPDX-License-Identifier: Apache-2.0
"""How a network's outputs are put together: tensors, numbers and None in tuples, named tuples, lists and dicts.

A structure is JSON, so that it has a place in an engine's metadata: ["tensor", number], ["value", it],
["images", factor] (factor times the number of images), ["tuple", parts], ["list", parts], ["dict", [[key, part], ...]],
or ["named", name, fields, parts]. Needs no torch.
"""

from __future__ import annotations

import keyword
import reprlib
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Structure = list[Any]
_DEEPEST = 32
_VALUES = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Leaf:
    """An output by number, while a structure is made."""

    number: int


def structured(value: Any, classes: dict[str, type]) -> Structure:
    """The structure of containers whose tensors are `Leaf`; ``classes`` notes named tuples. TypeError for others."""
    kind = type(value)
    if kind is Leaf:
        return ["tensor", value.number]
    if kind in _VALUES:
        return ["value", value]
    if kind in (tuple, list):
        return [kind.__name__, [structured(part, classes) for part in value]]
    if isinstance(value, dict):
        if not all(type(key) in _VALUES for key in value):
            raise TypeError(f"keys that are text or numbers, got {next(k for k in value if type(k) not in _VALUES)!r}")
        return ["dict", [[key, structured(part, classes)] for key, part in value.items()]]
    names = getattr(kind, "_fields", None) or getattr(
        kind, "__match_args__", None
    )  # those of torch.max have the second
    if isinstance(value, tuple) and names and len(names) == len(value):
        if hasattr(kind, "_fields"):
            classes[kind.__name__] = kind
        return ["named", kind.__name__, list(names), [structured(part, classes) for part in value]]
    raise TypeError(f"tensors, numbers, text and None in tuples, lists and dicts, got {kind.__name__}")


def usual(count: int) -> Structure:
    """One tensor alone, or several as a tuple: what a file without a structure gives."""
    return ["tensor", 0] if count == 1 else ["tuple", [["tensor", number] for number in range(count)]]


def placed(structure: Structure, leaves: Sequence[Structure]) -> Structure:
    """The structure with its tensors replaced by their number in ``leaves``."""
    kind, *rest = structure
    if kind == "tensor":
        return list(leaves[rest[0]])
    if kind == "dict":
        return [kind, [[key, placed(part, leaves)] for key, part in rest[0]]]
    if isinstance(rest[-1], list):
        return [kind, *rest[:-1], [placed(part, leaves) for part in rest[-1]]]
    return structure


def put_together(structure: Structure, tensors: Sequence[Any], images: int, classes: dict[str, type]) -> Any:
    """The outputs as the network gives them."""
    kind, *rest = structure
    if kind == "tensor":
        return tensors[rest[0]]
    if kind == "value":
        return rest[0]
    if kind == "images":
        return rest[0] * images
    if kind == "dict":
        return {key: put_together(part, tensors, images, classes) for key, part in rest[0]}
    parts = [put_together(part, tensors, images, classes) for part in rest[-1]]
    if kind == "named":
        named: Any = classes.get(rest[0]) or namedtuple(rest[0], rest[1])
        return named(*parts)
    return parts if kind == "list" else tuple(parts)


def checked(structure: Any, count: int) -> Structure:
    """A structure from a file, of ``count`` tensors. Raises ValueError for what is none."""
    if not _fits(structure, count, 0):
        raise ValueError(f"structure: expected one of {count} tensors, got {reprlib.repr(structure)}")
    fitting: Structure = structure
    return fitting


def _fits(node: Any, count: int, depth: int) -> bool:
    if not isinstance(node, list) or len(node) < 2 or depth > _DEEPEST:
        return False
    kind, *rest = node
    if kind == "tensor":
        return len(rest) == 1 and type(rest[0]) is int and 0 <= rest[0] < count
    if kind == "images":
        return len(rest) == 1 and type(rest[0]) is int
    if kind == "value":
        return len(rest) == 1 and type(rest[0]) in _VALUES
    if not isinstance(rest[-1], list):
        return False
    parts = rest[-1]
    if kind == "dict" and len(rest) == 1:
        pairs = all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in _VALUES for pair in parts)
        return pairs and all(_fits(pair[1], count, depth + 1) for pair in parts)
    if kind == "named":
        if len(rest) != 3 or not isinstance(rest[1], list) or len(rest[1]) != len(parts):
            return False
        names = [rest[0], *rest[1]]
        if not all(isinstance(n, str) and n.isidentifier() and not keyword.iskeyword(n) for n in names):
            return False
        if len(set(rest[1])) != len(rest[1]) or any(name.startswith("_") for name in rest[1]):
            return False
    elif kind not in ("tuple", "list") or len(rest) != 1:
        return False
    return all(_fits(part, count, depth + 1) for part in parts)
