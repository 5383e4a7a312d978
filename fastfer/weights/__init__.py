# SPDX-License-Identifier: Apache-2.0
"""The trained weights that ship: which there are, and where they lie. Needs no torch.

``fastfer.load("fgw_fer")`` gives the network; every command and function that takes a weight file takes these names.
A file is compared with its digest in table.json before it is first used.
"""

from __future__ import annotations

import argparse
import builtins
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from fastfer._files import file_digest

FOLDER = Path(__file__).resolve().parent
TABLE_FILE = "table.json"
DEFAULT_DATA = "fer2013"


@dataclass(frozen=True)
class Shipped:
    """One file of weights, and what its card says of it.

    ``accuracy`` is on ``images`` images of the data set's validation part, one view an image; ``temperature`` divides
    logits before softmax; ``drawn`` are the classes that the network gives the first drawn validation faces.
    """

    model: str
    data: str
    file: str
    sha256: str
    parameters: int
    classes: tuple[str, ...]
    images: int
    accuracy: float
    macro_f1: float
    temperature: float
    drawn: tuple[str, ...]

    @property
    def name(self) -> str:
        """How commands call it: "fgw_fer", or "fgw_fer-ferplus" where it is not of `DEFAULT_DATA`."""
        return self.model if self.data == DEFAULT_DATA else f"{self.model}-{self.data}"

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return FOLDER / self.file


@cache
def table() -> tuple[Shipped, ...]:
    """All weights that ship, by model and data set."""
    rows: builtins.list[dict[str, Any]] = json.loads((FOLDER / TABLE_FILE).read_text())
    return tuple(Shipped(**row | {"classes": tuple(row["classes"]), "drawn": tuple(row["drawn"])}) for row in rows)


def list(filter: str = "*") -> builtins.list[str]:
    """Names of the weights that ship, those that match a pattern such as ``"*-ferplus"``."""
    return [row.name for row in table() if fnmatchcase(row.name, filter)]


def get(name: str, data: str | None = None) -> Shipped:
    """The weights ``name`` ("fgw_fer", "fgw_fer-ferplus"), or of the network ``name`` for the data set ``data``.

    ValueError where there are none.
    """
    for row in table():
        if name == row.name if data is None else (name, data) == (row.model, row.data):
            return row
    wanted = repr(name) if data is None else f"{name!r} for {data!r}"
    raise ValueError(f"weights: expected one of {', '.join(list()) or 'none, as none ship'}, got {wanted}")


@cache
def _sound(row: Shipped) -> Path:
    """The file, after a look at its digest. ValueError for a damaged one, FileNotFoundError for one that is gone."""
    digest = file_digest(row.path)
    if digest != row.sha256:
        raise ValueError(f"{row.path}: damaged: expected SHA-256 {row.sha256}, got {digest}; install fastfer again")
    return row.path


def path(name: str, data: str | None = None) -> Path:
    """The file of the weights ``name``. ValueError where there are none of that name, or the file is damaged."""
    return _sound(get(name, data))


def resolve(weights: str | Path) -> Path:
    """The file that ``weights`` names: a path, or the name of weights that ship. A file of that name comes first."""
    text = str(weights)
    return path(text) if text in list() and not Path(text).is_file() else Path(weights)


def argument(text: str) -> Path:
    """`resolve` for argparse."""
    try:
        return resolve(text)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def beside(weights: Path) -> Path:
    """Where results about weights go by default: to their file; of those that ship, to the present folder."""
    return Path() if weights.resolve().parent == FOLDER else weights.parent
