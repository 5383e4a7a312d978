# SPDX-License-Identifier: Apache-2.0
"""Class names in pictures: in a font that has their letters, or as numbers where none is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

from fastfer.data.files import printable

_BESIDE = "0123456789()"  # what stands beside a name
_NO_LETTERS = "lastresort"  # a font that has a box for every letter there is


@dataclass(frozen=True)
class Shown:
    """``names`` as a picture shows them, in the font at ``path`` (None: the usual one); ``note`` explains numbers."""

    names: tuple[str, ...]
    path: str | None = None
    note: str = ""


def shown(names: Sequence[str]) -> Shown:
    """The names without control characters, in a font that is there; else their numbers, from 1, and a note."""
    plain = tuple(printable(name) for name in names)
    letters = frozenset("".join(plain) + _BESIDE)
    usual = findfont(FontProperties())
    if _has(usual, letters):
        return Shown(plain)
    for path in _installed():
        if _has(path, letters):
            return Shown(plain, path)
    note = f"1 to {len(names)}: the classes in the order of report.json; no installed font has their letters"
    return Shown(tuple(str(number) for number in range(1, len(names) + 1)), note=note)


def _installed() -> list[str]:
    """Fonts in a fixed order, plain ones before others."""
    fonts = {entry.fname: entry for entry in fontManager.ttflist if _NO_LETTERS not in Path(entry.fname).name.lower()}
    order = sorted(fonts.values(), key=lambda f: (f.style != "normal", str(f.weight) not in ("400", "normal"), f.fname))
    return [entry.fname for entry in order]


@lru_cache(maxsize=1024)
def _has(path: str, letters: frozenset[str]) -> bool:
    try:
        known = FT2Font(path).get_charmap()
    except (OSError, RuntimeError, ValueError):  # a font that has gone, or that FreeType cannot read
        return False
    return all(ord(letter) in known for letter in letters if not letter.isspace())
