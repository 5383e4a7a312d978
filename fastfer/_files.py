# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader, or a crash, never meets half of one, and what tells one from another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; renamed to ``path`` at the end, removed on any exception.

    The content is on the disk before the new name is, and the new name before the context ends, so that a power cut
    leaves the old file or the new one. OSError names ``path``.
    """
    path = Path(path)
    temporary = reserved_name(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # A library's own kind, URLError for one, takes other arguments, and is not about the file.
        builtin = type(error).__module__ == "builtins"
        if builtin and isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reserved_name(path: Path) -> Path:
    """A new, empty file beside ``path``, under a name that nobody can foresee or has planted a link at."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    return temporary


def remove_temporaries(folder: Path, names: tuple[str, ...]) -> None:
    """Delete what a killed process left half written of the files ``names`` in ``folder``. No other may be writing."""
    for name in names:
        for left in folder.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk before the caller goes on."""
    if os.name == "nt" and path.is_dir():  # cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
