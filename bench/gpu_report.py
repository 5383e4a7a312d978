# SPDX-License-Identifier: Apache-2.0
"""The JSON and the table of ``bench.gpu``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def by_case(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, Row]]:
    """Contenders' rows by work, dtype, network, shape and the peers they were timed with; fastfer's in both groups."""
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("work", "dtype", "network", "shape"))
        group, name = cases.setdefault(key, {}), row["contender"]
        name = "torch_compile" if name.startswith("torch_compile") else name
        # Compiled peers were timed later, beside fastfer again: the faster of its two times stands for it.
        if row.get("seconds", math.inf) <= group.get(name, {}).get("seconds", math.inf):
            group[name] = row
    return cases


def table(result: dict[str, Any]) -> str:
    """Markdown: for each table and dtype fastfer's speed over each peer, and its share of the copy bandwidth."""
    machine, ceilings = result["machine"], result["ceilings"]
    lines = [
        f"{machine.get('gpu', machine['device'])}, torch {machine['torch']}, copies {ceilings['copy']:.0f} GB/s. "
        "Speed of fastfer over each peer, geometric means over the layers; bandwidth by the least bytes of the work.",
        "",
        "| work | dtype | cases | over nchw | over channels_last | over compile | of copy bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Row]]] = {}
    for (work, dtype, *_), contenders in by_case(result["results"]).items():
        groups.setdefault((work, dtype), []).append(contenders)
    for (work, dtype), cases in sorted(groups.items()):
        own = [case for case in cases if "seconds" in case.get("fastfer", {})]
        cells = []
        for peer in ("torch_nchw", "torch_channels_last", "torch_compile"):
            ratios = [c[peer]["seconds"] / c["fastfer"]["seconds"] for c in own if "seconds" in c.get(peer, {})]
            cells.append(f"{geometric_mean(ratios):.2f}" if ratios else "")
        shares = [c["fastfer"]["bytes"] / c["fastfer"]["seconds"] / 1e9 / ceilings["copy"] for c in own]
        share = f"{geometric_mean(shares):.0%}" if shares else "failed"
        lines.append(f"| {work} | {dtype} | {len(cases)} | {' | '.join(cells)} | {share} |")
    if result["left_out"]:
        lines += ["", f"Not measured, the time was over: {len(result['left_out'])} cases."]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path, name: str) -> None:
    """``folder/name.json`` and ``folder/name.md``, each replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(result, indent=1) + "\n"), (".md", table(result))):
        partial = folder / f"{name}{suffix}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / f"{name}{suffix}")
