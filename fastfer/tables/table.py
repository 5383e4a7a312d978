# SPDX-License-Identifier: Apache-2.0
"""Tables as the papers print them, and of our recipes' parts; what makes each row is in the files in ``published``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastfer.data.registry import canonical_dataset

_FOLDER = Path(__file__).parent / "published"


@dataclass(frozen=True)
class Row:
    """A line of a table.

    options     over the table's recipe; None for a method that is none of ours
    parameters  as published, or None
    published   accuracy in % by data set
    """

    label: str
    options: dict[str, Any] | None
    parameters: int | None
    published: dict[str, float]

    @property
    def key(self) -> str:
        """For folders: "layer 17, NP7" -> "layer-17-np7"."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")


@dataclass(frozen=True)
class Table:
    """A table: ``data`` are the data sets of its columns, ``model`` that of rows which name no other.

    ``base`` is the recipe that the rows start from: a paper's own, or ours.
    """

    name: str
    title: str
    model: str
    data: tuple[str, ...]
    rows: tuple[Row, ...]
    base: str = "paper"

    def recipe(self, data: str) -> str:
        """The recipe for a data set: the paper's own, or for one that it has not used, that of the first column."""
        if self.base != "paper":
            return self.base
        return "paper" if canonical_dataset(data) in self.data else f"paper/{self.data[0]}"

    def chosen(self, labels: Sequence[str]) -> list[Row]:
        """The rows of these labels or numbers (from 1), in the table's order; without labels all that can be run."""
        runnable = [row for row in self.rows if row.options is not None]
        known = {**{row.key: row for row in runnable}, **{str(self.rows.index(row) + 1): row for row in runnable}}
        wanted = []
        for label in labels:
            key = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
            if key not in known:
                options = ", ".join(f"{self.rows.index(row) + 1} {row.label!r}" for row in runnable)
                raise ValueError(f"rows: expected some of {options}, got {label!r}")
            wanted.append(known[key])
        return [row for row in runnable if row in wanted] if labels else runnable


def list_tables() -> list[str]:
    """Names of the tables."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_table(name: str) -> Table:
    """The table ``name``. ValueError for an unknown one, naming the known ones."""
    if name not in list_tables():
        raise ValueError(f"table: expected one of {', '.join(list_tables())}, got {name!r}")
    content = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    data = tuple(content["data"])
    rows = tuple(
        Row(
            label,
            row.get("options"),
            row.get("parameters"),
            dict(zip(data, row["published"], strict=True)) if "published" in row else {},
        )
        for label, row in content["rows"].items()
    )
    return Table(name, content["title"], content["model"], data, rows, content.get("recipe", "paper"))
