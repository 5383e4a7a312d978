# SPDX-License-Identifier: Apache-2.0
"""The error for data that cannot be read, and names that are safe to show."""

from __future__ import annotations


class DataError(ValueError):
    """A data set or a picture that cannot be read as asked. The message names the file and the place in it."""


def terminal(text: str) -> str:
    """`printable`, line by line."""
    return "\n".join(printable(line) for line in text.split("\n"))


def printable(text: str) -> str:
    """``text`` with control characters and broken letters escaped, so that a name cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
