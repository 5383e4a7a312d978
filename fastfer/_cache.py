# SPDX-License-Identifier: Apache-2.0
"""What was fetched or compiled once and is kept on the disk, by the content that it was made of."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from fastfer import _environment
from fastfer._files import write_bytes
from fastfer._version import __version__

_ROOT = Path(__file__).resolve().parent
_COMPILING = ("engine", "models", "nn", "signatures")
"""Packages whose code decides what comes out of a file of weights."""


def folder() -> Path:
    """FASTFER_CACHE, or ``fastfer`` in XDG_CACHE_HOME or ~/.cache."""
    if named := _environment.variable("FASTFER_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastfer"


def compiled(kind: str, digits: str, how: str = "") -> Path:
    """The place of the engine file made of the file with the sha256 ``digits``, in the way ``how``, by this code."""
    return folder() / kind / f"{digits[:32]}-{how}{'-' if how else ''}{__version__}-{_code()}.ffe"


def keep(path: Path, data: bytes) -> None:
    """Write a compiled engine file; those that earlier code of this version made of the same go.

    A cache that cannot be written to costs time, and nothing else.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
        for old in path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.ffe"):
            if old != path:
                old.unlink(missing_ok=True)


@cache
def _code() -> str:
    """What changes with the code that compiles: sizes and dates of its files, 0.3 ms where reading them takes 10."""
    state = hashlib.sha256()
    for name in _COMPILING:
        with suppress(OSError), os.scandir(_ROOT / name) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.endswith(".py"):
                    found = entry.stat()
                    state.update(f"{name}/{entry.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return state.hexdigest()[:12]
