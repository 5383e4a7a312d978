# SPDX-License-Identifier: Apache-2.0
"""Files: writing so that a reader, or a crash, never meets half of one; noticing that the real one is elsewhere."""

from __future__ import annotations

import warnings
from os.path import isdir
from pathlib import Path, PurePosixPath

from fastfer._files import file_digest, replace_atomically
from fastfer._messages import DataError, printable, terminal

LFS_MARK = b"version https://git-lfs"
"""How Git LFS's stand-in for a file begins."""


__all__ = [
    "file_inside",
    "printable",
    "reference",
    "refuse_lfs_pointer",
    "replace_atomically",
    "terminal",
    "warn",
    "write_text",
]


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


def file_inside(folder: Path, name: str, where: str) -> Path:
    """The file that a list calls ``name``, in ``folder`` or below. DataError for a name that leads anywhere else.

    Lists come with data sets from elsewhere; ``../../.ssh/id`` or an absolute name would read files of the user's.
    """
    plain = PurePosixPath(name.replace("\\", "/"))
    if not plain.parts or plain.is_absolute() or ".." in plain.parts or ":" in plain.parts[0] or "\0" in name:
        raise DataError(f"{where}: expected the name of a file in {folder} or below, got {printable(name)[:100]!r}")
    if max(len(part.encode(errors="surrogateescape")) for part in plain.parts) > 255 or len(plain.parts) > 16:
        raise DataError(f"{where}: expected a file's name, got {len(name)} letters")
    return folder / plain


def warn(message: str) -> None:
    """A UserWarning about a data set: the line of code that noticed says nothing to whoever reads it."""
    warnings.warn_explicit(printable(message), UserWarning, "fastfer.data", 1)


def reference(path: str | Path) -> dict[str, str]:
    """{"name", "sha256"} of a file, for reports and weight files: what it was, without where it lay.

    Of a folder of shards the digest is that of its list, which holds those of the files.
    """
    path = Path(path)
    file = path / "shards.json" if isdir(path) else path
    return {"name": path.name, "sha256": file_digest(file)}
