# SPDX-License-Identifier: Apache-2.0
"""Files: writing so that a reader, or a crash, never meets half of one; noticing that the real one is elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastfer._files import replace_atomically
from fastfer.data.split import DataError

LFS_MARK = b"version https://git-lfs"
"""How Git LFS's stand-in for a file begins."""


__all__ = ["replace_atomically", "write_text"]


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path``, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def refuse_lfs_pointer(path: Path) -> None:
    """DataError where ``path`` is a Git-LFS pointer or cannot be read."""
    try:
        with path.open("rb") as file:
            pointer = file.read(len(LFS_MARK)) == LFS_MARK
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if pointer:
        raise DataError(f"{path} is a Git-LFS pointer, not the data: run `git lfs pull` where it came from")
