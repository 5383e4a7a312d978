# SPDX-License-Identifier: Apache-2.0
"""The lines of JSON of ``bench.gpu``, the table and the three lines that they come to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_PEERS = ("torch_channels_last", "torch_compile")


class Lines:
    """A file of JSON lines, each on the disk before the next is computed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        path.write_text("", encoding="utf-8")

    def write(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """The rows; a last line that was cut is left out."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def by_case(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, Row]]:
    """Contenders' rows by work, precision, network and shape."""
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row["kind"] != "result":
            continue
        key = tuple(str(row[name]) for name in ("work", "precision", "network", "shape"))
        group, name = cases.setdefault(key, {}), row["contender"]
        name = "torch_compile" if name.startswith("torch_compile") else name
        # Compiled peers were timed later, beside fastfer again: the faster of its two times stands for it.
        if row.get("seconds", math.inf) <= group.get(name, {}).get("seconds", math.inf):
            group[name] = row
    return cases


def _of(rows: Iterable[Row], kind: str) -> Row:
    return next((row for row in rows if row["kind"] == kind), {})


def table(rows: list[Row]) -> str:
    """Markdown: for each work and precision fastfer's speed over each peer, its bandwidth and its products."""
    machine, ceilings = _of(rows, "machine"), _of(rows, "ceilings")
    copy = ceilings.get("copy", math.nan)
    lines = [
        f"{machine.get('gpu', machine.get('device'))}, torch {machine.get('torch')}, copies {copy:.0f} GB/s. Speed of "
        "fastfer over each peer, geometric means over the layers; bandwidth by the least bytes of the work.",
        "",
        "| work | precision | cases | over channels_last | over compile | GB/s | of copies | TFLOP/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Row]]] = {}
    for (work, precision, *_), contenders in by_case(rows).items():
        groups.setdefault((work, precision), []).append(contenders)
    for (work, precision), cases in sorted(groups.items()):
        own = [case for case in cases if "seconds" in case.get("fastfer", {})]
        cells = []
        for peer in _PEERS:
            ratios = [c[peer]["seconds"] / c["fastfer"]["seconds"] for c in own if "seconds" in c.get(peer, {})]
            cells.append(f"{geometric_mean(ratios):.2f}" if ratios else "")
        rate = geometric_mean(c["fastfer"]["bytes"] / c["fastfer"]["seconds"] / 1e9 for c in own)
        flops = geometric_mean(2 * c["fastfer"]["macs"] / c["fastfer"]["seconds"] / 1e12 for c in own if _macs(c))
        cells += [f"{rate:.0f}", f"{rate / copy:.0%}", "" if math.isnan(flops) else f"{flops:.1f}"]
        lines.append(f"| {work} | {precision} | {len(cases)} | {' | '.join(cells if own else ['failed'] * 5)} |")
    left_out = _of(rows, "left_out").get("cases")
    lines += ["", "The run was cut."] if left_out is None else []
    lines += ["", f"Not measured, the time was over: {len(left_out)} cases."] if left_out else []
    return "\n".join(lines) + "\n"


def _macs(case: dict[str, Row]) -> bool:
    return bool(case["fastfer"]["macs"])


def summary(rows: list[Row]) -> str:
    """Three lines: cases that won over the best peer, those that lost, those without a ratio."""
    ratios, without = {}, []
    for key, case in by_case(rows).items():
        peers = [case[peer]["seconds"] for peer in _PEERS if "seconds" in case.get(peer, {})]
        if peers and "seconds" in case.get("fastfer", {}):
            ratios[" ".join(key)] = min(peers) / case["fastfer"]["seconds"]
        else:
            without.append(" ".join(key))
    ordered = sorted(ratios.items(), key=lambda item: -item[1])
    won = [f"{name} {ratio:.2f}" for name, ratio in ordered if ratio >= 1]
    lost = [f"{name} {ratio:.2f}" for name, ratio in reversed(ordered) if ratio < 1]
    named = (("won", won), ("lost", lost), ("no ratio", without))
    return "\n".join(f"{word} {len(names)}: {', '.join(names[:8])}" for word, names in named)
