# SPDX-License-Identifier: Apache-2.0
"""Class names of facial expressions, and how each source's labels map to them.

Sources number the expressions differently (FER2013's csv and its folder layout agree on codes 0-3 and permute 4-6),
so labels are mapped by name, and every set of weights carries its names.
"""

from __future__ import annotations

from collections.abc import Sequence

CLASS_NAMES: tuple[str, ...] = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
"""Canonical names in canonical order (that of FERPlus)."""

BASIC_NAMES: tuple[str, ...] = CLASS_NAMES[:7]
"""The seven expressions without contempt: the classes of FER2013 and of the drawn faces."""

SIX_NAMES: tuple[str, ...] = CLASS_NAMES[1:7]
"""The six basic expressions: neither neutral nor contempt."""

FER2013_CODES: tuple[str, ...] = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""Name of each code in the ``emotion`` column of fer2013.csv and icml_face_data.csv."""

CK_EXTENDED_CODES: tuple[str, ...] = (*FER2013_CODES, "contempt")
"""Name of each code in ckextended.csv: those of FER2013, and contempt."""

CK_PLUS_CODES: tuple[str, ...] = (
    "neutral",
    "anger",
    "contempt",
    "disgust",
    "fear",
    "happiness",
    "sadness",
    "surprise",
)
"""Name of each code in the emotion files of CK+; 0 never occurs there."""

RAF_DB_CODES: tuple[str, ...] = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
"""Name of RAF-DB's codes 1 to 7, in that order."""

AFFECTNET_CODES: tuple[str, ...] = (
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)
"""Name of AffectNet's codes 0 to 7; 8 is none, 9 uncertain and 10 no face."""

CODE_TABLES: dict[str, tuple[int, tuple[str, ...]]] = {
    "fer2013": (0, FER2013_CODES),
    "ferplus": (0, CLASS_NAMES),
    "ck_plus": (0, CK_PLUS_CODES),
    "affectnet": (0, AFFECTNET_CODES),
    "raf_db": (1, RAF_DB_CODES),
    "alphabetical": (0, tuple(sorted(FER2013_CODES))),
}
"""{word: (first code, names)}: what the option ``codes`` takes; alphabetical is the order of FER2013's folders."""

_ALIASES: dict[str, tuple[str, ...]] = {
    "neutral": ("ne", "neutrality"),
    "happiness": ("happy", "ha", "joy"),
    "surprise": ("surprised", "su"),
    "sadness": ("sad", "sa"),
    "anger": ("angry", "an"),
    "disgust": ("disgusted", "di"),
    "fear": ("fearful", "afraid", "fe"),
    "contempt": ("contemptuous", "co"),
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases)}


def canonical_name(name: str) -> str:
    """Canonical class name of ``name`` (``"Happy"`` -> ``"happiness"``). ValueError for an unknown one."""
    try:
        return _CANONICAL[name.strip().lower()]
    except KeyError:
        raise ValueError(f"unknown expression {name!r}: expected one of {', '.join(sorted(_CANONICAL))}") from None


def code_names(text: str) -> dict[int, str]:
    """{number: class name} of a word of CODE_TABLES, or of pairs like ``0=neutral,1=happy``. ValueError for others."""
    if text in CODE_TABLES:
        first, names = CODE_TABLES[text]
        return {code: canonical_name(name) for code, name in enumerate(names, start=first)}
    found: dict[int, str] = {}
    for pair in text.split(","):
        number, equals, name = pair.partition("=")
        if not equals or not number.strip().isdecimal() or len(number) > 9 or not name.strip():
            raise ValueError(
                f"codes: expected one of {', '.join(CODE_TABLES)}, or pairs such as 0=neutral,1=happy; "
                f"got {text[:80]!r}"
            )
        code = int(number)
        if code in found:
            raise ValueError(f"codes: expected each number once, got {code} twice in {text[:80]!r}")
        try:
            found[code] = canonical_name(name)
        except ValueError:  # a name of the user's own
            found[code] = name.strip()
    return found


def class_index(name: str, names: tuple[str, ...] = BASIC_NAMES) -> int:
    """Index of ``name`` (any alias) in ``names``. ValueError where ``names`` lacks it."""
    canonical = canonical_name(name)
    if canonical not in names:
        raise ValueError(f"expression {canonical!r} is not among the classes {', '.join(names)}")
    return names.index(canonical)


def class_list(
    asked: int | Sequence[str] | None, available: tuple[str, ...], seven: tuple[str, ...] = BASIC_NAMES
) -> tuple[str, ...]:
    """The classes ``asked`` for, of those ``available``: a number (6, 7, 8), names in any spelling, or None for all.

    ``seven`` is what 7 stands for (with neutral, or for CK+ with contempt). Canonical order, whatever the order asked.
    ValueError for another number, for a name that is unknown or not available, and for fewer than two.
    """
    if asked is None:
        return available
    if isinstance(asked, int):
        lists = {6: SIX_NAMES, 7: seven, 8: CLASS_NAMES}
        if asked not in lists:
            raise ValueError(f"classes: expected 6, 7, 8 or names, got {asked}")
        chosen = set(lists[asked])
    else:
        chosen = {name if name in available else canonical_name(name) for name in asked}
    lacking = sorted(chosen - set(available))
    if lacking:
        raise ValueError(f"classes: this data set has no {', '.join(lacking)}; it has {', '.join(available)}")
    if len(chosen) < 2:
        raise ValueError(f"classes: expected two or more, got {', '.join(chosen) or 'none'}")
    return tuple(name for name in available if name in chosen)
