# SPDX-License-Identifier: Apache-2.0
"""The files below a folder, as every reader sees them: each folder is listed once, and nothing raises.

What cannot be listed, and links to nothing, are kept by name, so that the inventory can tell of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastfer.data.formats import IMAGE_SUFFIXES

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "__pycache__", "lost+found", "system volume information", "$recycle.bin"}
)
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
MAX_LINKS = 4
"""Links to folders on the way to a file: two folders that link to each other would make a tree without end."""
MAX_ENTRIES = 2_000_000


@dataclass(frozen=True)
class Listing:
    """What lies in one folder, each kind in order of name.

    images    files with the suffix of an image
    others    other files
    system    what file managers and systems leave behind, and hidden entries: never looked into
    dangling  links to nothing, or back to a folder above
    """

    folders: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    system: tuple[Path, ...] = ()
    dangling: tuple[Path, ...] = ()


class Tree:
    """The files below ``root``, listed as they are asked for.

    unreadable  {folder: why it could not be listed}
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unreadable: dict[Path, str] = {}
        self.entries = 0
        self._listings: dict[Path, Listing] = {}
        self._links: dict[Path, int] = {}

    def listing(self, folder: Path) -> Listing:
        """What lies in ``folder``; nothing where it is no folder or cannot be read."""
        if folder not in self._listings:
            self._listings[folder] = self._list(folder)
        return self._listings[folder]

    def folders(self, folder: Path) -> tuple[Path, ...]:
        """Folders in ``folder``, without those of the system."""
        return self.listing(folder).folders

    def images(self, folder: Path) -> tuple[Path, ...]:
        """Image files in ``folder`` itself."""
        return self.listing(folder).images

    def walk(self, folder: Path, depth: int | None = None) -> Iterator[tuple[Path, Listing]]:
        """``folder`` and the folders below it, to ``depth`` or all, each with its listing, until MAX_ENTRIES were seen.

        In order of the names, each folder before those in it.
        """
        waiting = [(folder, 0)]
        while waiting and self.entries <= MAX_ENTRIES:
            here, level = waiting.pop()
            listing = self.listing(here)
            yield here, listing
            if depth is None or level < depth:
                waiting += [(child, level + 1) for child in reversed(listing.folders)]

    def images_below(self, folder: Path) -> Iterator[Path]:
        """Image files in ``folder`` and below, each folder's own before those of its subfolders."""
        for _, listing in self.walk(folder):
            yield from listing.images

    def has_image(self, folder: Path) -> bool:
        """Whether any image lies in ``folder`` or below."""
        return next(self.images_below(folder), None) is not None

    def _list(self, folder: Path) -> Listing:
        kinds: dict[str, list[Path]] = {kind: [] for kind in Listing.__dataclass_fields__}
        try:
            if not folder.is_dir():
                return Listing()
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable[folder] = error.strerror or str(error)
            return Listing()
        self.entries += len(found)
        links = self._links.get(folder, 0)
        for entry in found:
            path, kind = Path(entry.path), _kind(entry)
            if kind == "folders" and (links or entry.is_symlink()):
                self._links[path] = links + entry.is_symlink()
                kind = "dangling" if self._links[path] > MAX_LINKS else kind
            kinds[kind].append(path)
        return Listing(**{kind: tuple(paths) for kind, paths in kinds.items()})


def _kind(entry: os.DirEntry[str]) -> str:
    name = entry.name.lower()
    if name.startswith(".") or name in SYSTEM_FOLDERS or name in SYSTEM_FILES:
        return "system"
    try:
        if entry.is_dir():
            return "dangling" if entry.is_symlink() and _leads_back(entry) else "folders"
        if entry.is_symlink() and not os.path.exists(entry.path):
            return "dangling"
    except OSError:
        return "dangling"
    plain = entry.is_file()  # reading a pipe called face.png would wait for ever
    return "images" if plain and os.path.splitext(name)[1] in IMAGE_SUFFIXES else "others"


def _leads_back(entry: os.DirEntry[str]) -> bool:
    """Whether a link to a folder leads to one that it lies in, so that a walk would never end."""
    above = os.path.realpath(os.path.dirname(entry.path))
    target = os.path.realpath(entry.path)
    return os.path.commonpath([above, target]) == target
