# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels on disk, each file with a digest of its content.

Numba trusts what it finds. A file that a full disk cut short, or in which a bit turned over, makes every later call
fail until somebody deletes it, or is run as machine code. Here a file that does not fit its digest counts as missing,
so that the kernel is compiled again and the file replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from typing import Any

_DIGEST = 32
"""Bytes of SHA-256, at the start of a file."""


class SealedFile:
    """Takes the place of Numba's index and data files of one function; ``file`` is what Numba made for it.

    One entry is enough: each kernel has a name, and so a file, of its own for its dtype, CPU and sources.
    """

    def __init__(self, file: Any) -> None:
        self._path: str = file._index_path.removesuffix(".nbi") + ".sealed"
        self._stamp = (file._version, file._source_stamp)
        self._dump, self._open_for_write = file._dump, file._open_for_write

    def load(self, key: Any) -> Any:
        """What was saved under ``key`` by this version of Numba and of the source; None where there is no such file."""
        try:
            with open(self._path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        digest, body = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            return None
        stamp, saved, data = pickle.loads(body)
        return data if (stamp, saved) == (self._stamp, key) else None

    def save(self, key: Any, data: Any) -> None:
        """Replaces the file, whole or not at all."""
        body = self._dump((self._stamp, key, data))
        with self._open_for_write(self._path) as file:
            file.write(hashlib.sha256(body).digest())
            file.write(body)

    def flush(self) -> None:
        """Forgets what was saved."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "r+b") as file:
            file.truncate()


def seal(compiled: Any) -> None:
    """Keeps the cached function ``compiled`` in a `SealedFile` from now on."""
    cache = compiled._cache
    cache._cache_file = SealedFile(cache._cache_file)
