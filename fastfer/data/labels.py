# SPDX-License-Identifier: Apache-2.0
"""Class names of facial expressions, and how each source's labels map to them.

Sources number the expressions differently (FER2013's csv and its folder layout agree on codes 0-3 and permute 4-6),
so labels are mapped by name, and every set of weights carries its names.
"""

from __future__ import annotations

CLASS_NAMES: tuple[str, ...] = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
"""Canonical names in canonical order (that of FERPlus)."""

BASIC_NAMES: tuple[str, ...] = CLASS_NAMES[:7]
"""The seven expressions without contempt: the classes of FER2013 and of the drawn faces."""

FER2013_CODES: tuple[str, ...] = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""Name of each code in the ``emotion`` column of fer2013.csv and icml_face_data.csv."""

_ALIASES: dict[str, tuple[str, ...]] = {
    "neutral": ("ne",),
    "happiness": ("happy", "ha"),
    "surprise": ("surprised", "su"),
    "sadness": ("sad", "sa"),
    "anger": ("angry", "an"),
    "disgust": ("disgusted", "di"),
    "fear": ("fearful", "afraid", "fe"),
    "contempt": ("contemptuous",),
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases)}


def canonical_name(name: str) -> str:
    """Canonical class name of ``name`` (``"Happy"`` -> ``"happiness"``). ValueError for an unknown one."""
    try:
        return _CANONICAL[name.strip().lower()]
    except KeyError:
        raise ValueError(f"unknown expression {name!r}: expected one of {', '.join(sorted(_CANONICAL))}") from None


def class_index(name: str, names: tuple[str, ...] = BASIC_NAMES) -> int:
    """Index of ``name`` (any alias) in ``names``. ValueError where ``names`` lacks it."""
    canonical = canonical_name(name)
    if canonical not in names:
        raise ValueError(f"expression {canonical!r} is not among the classes {', '.join(names)}")
    return names.index(canonical)
