# SPDX-License-Identifier: Apache-2.0
"""Tables as the papers print them, and of our recipes' parts; what makes each row is in the files in ``published``.

A file gives ``title``, ``model``, ``data`` (the data sets of its columns) and ``rows``. Of a row, ``options`` are those
of the trainer over the table's recipe, ``why`` says why a row cannot be run, ``published`` are the paper's figures in
the order of ``data`` (of ``columns`` or ``subsets`` below it, where a data set has several), ``facts`` its figures that
belong to no data set. ``start`` names the data set whose run gives the weights that runs on the others start from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastfer.data.registry import canonical_dataset
from fastfer.models.external import unavailable

_FOLDER = Path(__file__).parent / "published"
ACCURACY = "accuracy"
FACTS = {"parameters": "parameters", "gmac": "GMAC", "size_mb": "MB", "seconds": "s an image"}
"""Figures of a network by name, with their heading."""
Figures = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Row:
    """A line of a table.

    options    over the table's recipe; None for a method that is not built here, and then ``why`` says why
    facts      published figures of the network, by the names of `FACTS`
    published  published figures in %, by data set and column
    """

    label: str
    options: dict[str, Any] | None = None
    why: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    published: Figures = field(default_factory=dict)

    @property
    def key(self) -> str:
        """For folders: "layer 17, NP7" -> "layer-17-np7"."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")

    @property
    def obstacle(self) -> str:
        """Why the row cannot be run here; empty where it can."""
        if self.options is None:
            return self.why
        return unavailable(str(self.options.get("model", "")))


@dataclass(frozen=True)
class Table:
    """A table: ``data`` are the data sets of its columns, ``model`` that of rows which name no other.

    columns  what is measured on each data set: accuracy, a class (its recall) or mean_recall
    subsets  lists of test images that each have a column of their own, instead of the whole test part
    facts    which of `FACTS` it shows
    options  of the trainer, for every row
    start    the data set that the runs on the others start from
    base     the recipe that the rows start from: a paper's own, or ours
    """

    name: str
    title: str
    model: str
    data: tuple[str, ...]
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = (ACCURACY,)
    subsets: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    base: str = "paper"

    def recipe(self, data: str) -> str:
        """The recipe for a data set: the paper's own, or for one that it has not used, that of the first column."""
        if self.base != "paper":
            return self.base
        return "paper" if canonical_dataset(data) in self.data else f"paper/{self.data[0]}"

    def chosen(self, labels: Sequence[str]) -> list[Row]:
        """The rows of these labels or numbers (from 1), in the table's order; without labels all that can be run.

        ValueError for unknown rows, and for one that cannot be run here, saying why.
        """
        known = {**{row.key: row for row in self.rows}, **{str(n): row for n, row in enumerate(self.rows, start=1)}}
        wanted = []
        for label in labels:
            row = known.get(re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-"))
            if row is None or row.obstacle:
                options = ", ".join(f"{n} {r.label!r}" for n, r in enumerate(self.rows, start=1) if not r.obstacle)
                reason = f", which cannot be run: {row.obstacle}" if row else ""
                raise ValueError(f"rows: expected some of {options}, got {label!r}{reason}")
            wanted.append(row)
        return [row for row in self.rows if (row in wanted if labels else not row.obstacle)]


def list_tables() -> list[str]:
    """Names of the tables, those of one paper in their order."""
    numbers = re.compile(r"\d+")
    return sorted(
        (path.stem for path in _FOLDER.glob("*.yaml")), key=lambda name: numbers.sub(lambda m: m[0].zfill(3), name)
    )


def load_table(name: str) -> Table:
    """The table ``name``. ValueError for an unknown one, naming the known ones."""
    if name not in list_tables():
        raise ValueError(f"table: expected one of {', '.join(list_tables())}, got {name!r}")
    content = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    data, subsets = tuple(content["data"]), tuple(content.get("subsets", ()))
    columns = tuple(content.get("columns", subsets or (ACCURACY,)))
    rows = tuple(
        Row(
            label,
            row.get("options"),
            row.get("why", ""),
            row.get("facts", {}),
            _figures(data, columns, row.get("published") or [None] * len(data)),
        )
        for label, row in content["rows"].items()
    )
    return Table(
        name, content["title"], content["model"], data, rows, columns, subsets, tuple(content.get("facts", ())),
        content.get("options", {}), content.get("start"), content.get("recipe", "paper"),
    )  # fmt: skip


def _figures(data: Sequence[str], columns: Sequence[str], published: Sequence[Any]) -> Figures:
    """By data set and column, without those that the paper does not give."""
    found: dict[tuple[str, str], float] = {}
    for name, entry in zip(data, published, strict=True):
        values = entry if isinstance(entry, list) else [entry] * len(columns) if entry is None else [entry]
        found |= {(name, column): float(v) for column, v in zip(columns, values, strict=True) if v is not None}
    return found
