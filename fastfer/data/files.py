# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

from pathlib import Path

from fastfer._files import replace_atomically

__all__ = ["replace_atomically", "write_text"]


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path``, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
