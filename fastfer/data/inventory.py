# SPDX-License-Identifier: Apache-2.0
"""What lies below a root, file by file, and what became of each: nothing of a data set goes unread without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from fastfer.data.files import printable
from fastfer.data.layouts import is_part
from fastfer.data.manifest import Manifest
from fastfer.data.tree import MAX_ENTRIES, Listing, Tree

_SHOWN = 5
_NOWHERE = "links lead nowhere, or in circles"
_DOCUMENTS = frozenset(
    {".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log", ".pts"}
)
"""May lie in class folders without being images of theirs."""


@dataclass(frozen=True)
class Inventory:
    """The files below ``root``, each in one of these, beside those that ``place`` takes.

    place       the file or folder that the layout was recognised at
    read        image files that are samples, or that the manifest names as unusable
    rows        images that lie in the rows of a table
    sources     files that labels or rows were read from
    left_out    {reason: number of images that the layout knows and does not take}
    untaken     images among those of the data set that no rule of the layout took
    unread      files of other formats in class folders
    outside     images outside the place, or in folders in it that name neither a part nor a class
    loose       images in a folder above the data set's folders: a logo, a figure
    empty       class folders without an image
    others      {suffix: number of other files}
    system      number of what file managers and systems left behind
    dangling    links to nothing
    unreadable  {folder: why it could not be listed}
    cut         there was more than was looked at
    """

    root: Path
    place: Path
    read: int
    rows: int
    sources: tuple[Path, ...]
    left_out: dict[str, int]
    untaken: tuple[Path, ...]
    unread: tuple[Path, ...]
    outside: tuple[Path, ...]
    loose: tuple[Path, ...]
    empty: tuple[Path, ...]
    others: dict[str, int]
    system: int
    dangling: tuple[Path, ...]
    unreadable: dict[Path, str]
    cut: bool

    def refusals(self) -> list[str]:
        """What keeps a data set from being used: part of it would be missing without anyone knowing."""
        found = [self._grouped(self.untaken, "images lie where this layout takes none")]
        found.append(self._grouped(self.unread, "files in class folders are of a format that is not read", suffix=True))
        found.append(self._listed([path for path in self.dangling if self._inside(path)], _NOWHERE))
        found += [f"{self._name(f)} cannot be read: {why}" for f, why in self.unreadable.items() if self._inside(f)]
        return [text for text in found if text]

    def doubts(self) -> list[str]:
        """What may be part of the data set, and lies elsewhere or is empty."""
        found = [self._grouped(self.outside, "images lie outside the data set's folders")]
        found.append(self._listed(self.empty, "class folders hold no image"))
        found.append(self._listed([path for path in self.dangling if not self._inside(path)], _NOWHERE))
        found += [f"{self._name(f)} cannot be read: {why}" for f, why in self.unreadable.items() if not self._inside(f)]
        found.append(f"more than {MAX_ENTRIES} files and folders: the rest was not looked at" if self.cut else "")
        return [text for text in found if text]

    def remarks(self) -> list[str]:
        """What is only worth knowing."""
        return [text for text in [self._listed(self.loose, "images lie beside the data set's folders")] if text]

    def lines(self) -> list[str]:
        """A table for people: how many files of each kind, and where."""
        rows: list[tuple[int, str]] = [(self.read, "image files of the data set")]
        rows.append((self.rows, "images in rows of a table"))
        rows.append((len(self.sources), f"files with labels or tables{_sample(map(self._name, self.sources))}"))
        rows += [(count, f"images left out: {reason}") for reason, count in self.left_out.items()]
        rows.append((len(self.untaken), "images that no rule of the layout took"))
        rows.append((len(self.unread), "files of other formats in class folders"))
        rows.append((len(self.outside), "images outside the data set's folders"))
        rows.append((len(self.loose), "images beside the data set's folders"))
        kinds = ", ".join(f"{printable(suffix) or 'no suffix'} {count}" for suffix, count in self.others.items())
        rows.append((sum(self.others.values()), f"other files ({kinds})"))
        rows.append((self.system, "entries of the system (hidden files, __MACOSX, @eaDir, Thumbs.db), not looked into"))
        rows.append((len(self.empty), f"class folders without an image{_sample(map(self._name, self.empty))}"))
        rows.append((len(self.dangling), f"links to nothing{_sample(map(self._name, self.dangling))}"))
        rows.append((len(self.unreadable), f"folders that cannot be read{_sample(map(self._name, self.unreadable))}"))
        return [f"below {printable(str(self.root))}:", *(f"{count:>9}  {text}" for count, text in rows if count)]

    def as_dict(self) -> dict[str, Any]:
        """JSON values; paths below the root."""
        paths = ("sources", "untaken", "unread", "outside", "loose", "empty", "dangling")
        return {
            "root": str(self.root),
            "place": str(self.place),
            "read": self.read,
            "rows": self.rows,
            "left_out": self.left_out,
            "others": self.others,
            "system": self.system,
            "cut": self.cut,
            **{name: [self._name(path) for path in getattr(self, name)] for name in paths},
            "unreadable": {self._name(folder): why for folder, why in self.unreadable.items()},
        }

    def _inside(self, path: Path) -> bool:
        return path == self.place or self.place in path.parents

    def _name(self, path: Path) -> str:
        inner = path.relative_to(self.root) if self.root in path.parents else path
        return printable(inner.as_posix())

    def _listed(self, paths: Sequence[Path], what: str) -> str:
        return f"{len(paths)} {what}{_sample(map(self._name, paths))}" if paths else ""

    def _grouped(self, paths: Sequence[Path], what: str, suffix: bool = False) -> str:
        """The folders that ``paths`` lie in, or their suffixes too, with how many in each."""
        if not paths:
            return ""
        kinds = [f" *{printable(path.suffix)}" if path.suffix else " without suffix" for path in paths]
        homes = [self._name(path.parent) for path in paths]
        count = Counter(home + kind if suffix else home for home, kind in zip(homes, kinds, strict=True))
        return f"{len(paths)} {what}{_sample(f'{name} ({number})' for name, number in count.items())}"


def take_inventory(tree: Tree, place: Path, manifest: Manifest, named: Iterable[Path] = ()) -> Inventory:
    """Compare what lies below the root of ``tree`` with what ``manifest`` accounts for.

    named  files that the manifest's complaints are about
    """
    sampled = {sample.image for sample in manifest.samples if isinstance(sample.image, Path)}
    read, sources = sampled | set(named), set(manifest.sources)
    left_out = {path for paths in manifest.left_out.values() for path in paths}
    known = read | sources | left_out
    homes = {path.parent for path in read | left_out}
    found: dict[str, list[Path]] = {kind: [] for kind in ("untaken", "unread", "outside", "loose", "dangling")}
    others: Counter[str] = Counter()
    system = 0
    classes = set(manifest.classes)
    in_class: dict[Path, bool] = {}
    for folder, listing in tree.walk(tree.root):
        in_class[folder] = folder in classes or in_class.get(folder.parent, False)
        system += len(listing.system)
        found["dangling"] += listing.dangling
        home = folder in homes
        for path in listing.images:
            if path not in known:
                found[_kind(folder, place, home)].append(path)
        _sort_others(listing, in_class[folder], known, found["unread"], others)
    if isfile(tree.root) and tree.root not in known:
        others[tree.root.suffix] += 1
    return Inventory(
        root=tree.root,
        place=place,
        read=len(read),
        rows=len(manifest.samples) - sum(isinstance(sample.image, Path) for sample in manifest.samples),
        sources=tuple(sorted(sources)),
        left_out={reason: len(paths) for reason, paths in manifest.left_out.items()},
        empty=tuple(f for f in manifest.classes if f not in tree.unreadable and not tree.has_image(f)),
        others=dict(others.most_common()),
        system=system,
        unreadable=dict(tree.unreadable),
        cut=tree.entries > MAX_ENTRIES,
        untaken=tuple(found["untaken"]),
        unread=tuple(found["unread"]),
        outside=tuple(found["outside"]),
        loose=tuple(found["loose"]),
        dangling=tuple(found["dangling"]),
    )


def _kind(folder: Path, place: Path, home: bool) -> str:
    """Of an image in ``folder`` that nothing accounts for. ``home``: images of the data set lie in the same folder.

    Below a folder named as a part or a class it is one of the data set; below runs or figures it hardly is.
    """
    if home:
        return "untaken"
    if folder == place or folder in place.parents:
        return "loose"
    inner = place in folder.parents and any(is_part(Path(name)) for name in folder.relative_to(place).parts)
    return "untaken" if inner else "outside"


def _sort_others(listing: Listing, in_class: bool, known: set[Path], unread: list[Path], others: Counter[str]) -> None:
    for path in listing.others:
        if path in known:
            continue
        if in_class and path.suffix.lower() not in _DOCUMENTS:
            unread.append(path)
        else:
            others[path.suffix.lower()] += 1


def _sample(names: Iterable[str]) -> str:
    """A few of the names, for the end of a line."""
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return f": {', '.join(every[:_SHOWN])}{more}" if every else ""
