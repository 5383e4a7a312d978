# SPDX-License-Identifier: Apache-2.0
"""Lists of images to keep: which image a line of such a list means.

A line is a path below the data set, or the end of one, with or without the suffix, whatever blanks are in it. Labels
may follow it. Published lists spell the names of RAF-DB and FERPlus in four ways, so there the number counts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastfer.data.files import printable
from fastfer.data.formats import IMAGE_SUFFIXES
from fastfer.data.manifest import Sample
from fastfer.data.split import DataError

_NUMBERED = re.compile(r"(?<![A-Za-z0-9])((?:train|test)_[0-9]+|fer[0-9]{7})(?![0-9])")
_LABELS = re.compile(r"([\s,;]+[0-9]+(\.[0-9]+)?)+$")


def read_subset(samples: Sequence[Sample], path: Path) -> tuple[list[Sample], str]:
    """The samples that the list names, and a note of how many of its lines were there.

    DataError for a line that several images fit, and where no line fits one.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"subset: cannot read {path} ({error})") from error
    index = _Index(samples)
    listed = {line.strip(): number for number, line in reversed([*enumerate(lines, start=1)]) if line.strip()}
    chosen: set[int] = set()
    found = 0
    for line, number in listed.items():
        fitting = index.find(line)
        if len(fitting) > 1:
            shown = ", ".join(samples[i].id for i in fitting[:3])
            raise DataError(
                f"subset: {path}, line {number}: {printable(line)[:100]!r} fits {len(fitting)} images, such as "
                f"{shown}; give the path below the data set"
            )
        found += len(fitting)
        chosen.update(fitting)
    if not chosen:
        raise DataError(f"subset: none of the {len(listed)} names of {path} is among the {len(samples)} images")
    return [samples[i] for i in sorted(chosen)], f"subset {path.name}: {found} of {len(listed)} listed images"


class _Index:
    """Finds samples by what a line may say of them."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._by_name: list[defaultdict[str, list[int]]] = [defaultdict(list) for _ in range(4)]
        for number, sample in enumerate(samples):
            for level, names in enumerate(_names(sample.id)):
                for name in names:
                    self._by_name[level][name].append(number)

    def find(self, line: str) -> list[int]:
        """Samples by the first that fits any: id, end of the id's path, the same without suffix, published number.

        Each with the line as it is, then without labels at its end.
        """
        spelt = line.replace("\\", "/")
        without_labels = _LABELS.sub("", spelt)
        for name in dict.fromkeys((spelt, without_labels)):
            for level in range(3):
                if name in self._by_name[level]:
                    return self._by_name[level][name]
        stem = _stem(without_labels)
        if stem in self._by_name[2]:
            return self._by_name[2][stem]
        match = _NUMBERED.search(without_labels.rsplit("/", 1)[-1])
        return self._by_name[3][match[1]] if match and match[1] in self._by_name[3] else []


def _names(id_: str) -> Iterator[list[str]]:
    """What fits the image ``id_``: its id; ends of its path; those without suffix; its published number."""
    parts = id_.split("/")
    ends = ["/".join(parts[at:]) for at in range(len(parts))]
    yield [id_]
    yield ends
    yield [_stem(end) for end in ends]
    match = _NUMBERED.search(id_)
    yield [match[1]] if match and len(parts) == 1 else []  # in folders of one's own a number says nothing


def _stem(name: str) -> str:
    """``name`` without an image's suffix; a dot elsewhere belongs to the name (KA.AN1.39)."""
    head, dot, suffix = name.rpartition(".")
    return head if dot and "." + suffix.lower() in IMAGE_SUFFIXES else name
