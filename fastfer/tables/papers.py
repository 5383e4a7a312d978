# SPDX-License-Identifier: Apache-2.0
"""docs/papers.md: for each paper, item by item, where it is here and what differs, from papers.yaml and the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fastfer.tables.table import Row, Table, load_table

_SOURCE = Path(__file__).parent / "papers.yaml"


def to_markdown() -> str:
    """The page, which ``python -m fastfer.tables --papers`` prints."""
    lines = [
        "# The five papers, item by item",
        "",
        "Made from `fastfer/tables/papers.yaml` and the tables by `python -m fastfer.tables --papers`; do not edit.",
        "Each table has its command: add `--data NAME --root PATH`, or `--data all` and a root for each data set.",
        "",
    ]
    for paper in _papers():
        lines += [f"## {paper['paper']}", "", f"Network: `{paper['network']}`.", ""]
        lines += ["| in the paper | here | what differs |", "| --- | --- | --- |", *map(_line, paper["items"]), ""]
    return "\n".join(lines)


def tables() -> Iterator[str]:
    """Names of the tables that the page lists."""
    for paper in _papers():
        yield from (item["table"] for item in paper["items"] if "table" in item)


def _papers() -> list[dict[str, Any]]:
    return list(yaml.safe_load(_SOURCE.read_text(encoding="utf-8")))


def _line(item: Mapping[str, str]) -> str:
    where, differs = item.get("where", ""), [item["differs"]] if "differs" in item else []
    if "table" in item:
        table = load_table(item["table"])
        where = f"`python -m fastfer.tables {table.name}`, {_rows(table)}"
        differs += _left_out(table)
    return f"| {item['item']} | {where} | {'; '.join(differs)} |"


def _rows(table: Table) -> str:
    ours = [row for row in table.rows if row.options is not None]
    return f"{len(ours)} of {len(table.rows)} rows" if len(ours) < len(table.rows) else f"{len(ours)} rows"


def _left_out(table: Table) -> list[str]:
    """Rows by what they need, the same on every machine: packages count as missing or there only when a table runs."""
    found: list[str] = []
    packages = sorted({_package(row) for row in table.rows} - {""})
    if packages:
        needing = [row.label for row in table.rows if _package(row)]
        found.append(f"{', '.join(needing)}: with {' and '.join(packages)} only")
    for reason in dict.fromkeys(row.why for row in table.rows if row.why):
        found.append(f"{', '.join(row.label for row in table.rows if row.why == reason)}: {reason}")
    return found


def _package(row: Row) -> str:
    model = str((row.options or {}).get("model", ""))
    return model.partition("/")[0] if "/" in model else ""
