# SPDX-License-Identifier: Apache-2.0
"""pytest-benchmark's result files as rows: one piece of work at one shape, with every contender's numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUBJECT = "fastfer_native"
SECOND = "fastfer_numba"
FACTS = (
    "work", "network", "shape", "batch", "count", "contender", "backend", "isa", "threads", "allocator",
    "median_ms", "p10_ms", "error", "gradient_error", "gb_per_s", "gmac_per_s", "ceiling_percent", "bound",
    "cached", "other_cores", "stolen", "peak_mib",
)  # fmt: skip


@dataclass
class Row:
    """The contenders' facts by name, for one work, network, shape, batch and allocator setting."""

    work: str
    network: str
    shape: str
    batch: int
    allocator: str
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Milliseconds; NaN for a contender that was not timed."""
        return float(self.contenders[name]["median_ms"]) if name in self.contenders else math.nan

    @property
    def best_compiled(self) -> float:
        """Milliseconds of the fastest contender through ``torch.compile``; NaN where none was timed."""
        names = [name for name in self.contenders if name.startswith("torch_compile")]
        return min((self.median(name) for name in names), default=math.nan)

    @property
    def peaks(self) -> dict[str, float]:
        """Peak memory in MiB of the contenders whose memory was measured."""
        return {name: float(facts["peak_mib"]) for name, facts in self.contenders.items() if facts.get("peak_mib")}

    @property
    def best_torch(self) -> str:
        """The fastest stock PyTorch contender; empty where none was timed."""
        names = [name for name in self.contenders if name.startswith("torch")]
        return min(names, key=self.median, default="")

    def speedup(self, name: str = SUBJECT) -> float:
        """Time of the fastest stock contender over that of ``name``; NaN where either is missing."""
        return self.median(self.best_torch) / self.median(name)


@dataclass
class Results:
    """Rows of all files, and the machine's description from each."""

    rows: list[Row]
    machines: list[dict[str, Any]]
    date: str
    commit: str

    @property
    def allocators(self) -> list[str]:
        return list(dict.fromkeys(machine["allocator"] for machine in self.machines))

    def of(self, work: str, allocator: str, network: str | None = None) -> list[Row]:
        """Rows of one table."""
        return [
            row
            for row in self.rows
            if row.work == work and row.allocator == allocator and network in (None, row.network)
        ]


def read(files: Sequence[Path]) -> Results:
    """ValueError, with the file's name, for one that these benchmarks did not write."""
    rows: dict[tuple[Any, ...], Row] = {}
    machines, date, commit = [], "", ""
    for file in files:
        content = json.loads(file.read_text())
        try:
            machines.append(content["machine_info"]["fastfer"])
            date = max(date, content["datetime"][:10])
            info = content["commit_info"]
            commit = str(info.get("id", ""))[:12] + (" with changes" if info.get("dirty") else "")
            facts_of_all = [entry["extra_info"] for entry in content["benchmarks"]]
            for facts in facts_of_all:
                key = tuple(facts[name] for name in ("work", "network", "shape", "batch", "allocator"))
                rows.setdefault(key, Row(*key)).contenders[facts["contender"]] = facts
        except (KeyError, TypeError) as missing:
            raise ValueError(f"{file}: expected a result file of these benchmarks, found no {missing}") from missing
    return Results(list(rows.values()), machines, date, commit)


def geometric_mean(values: Iterable[float]) -> float:
    """Of the finite values; NaN for none."""
    logs = [math.log(value) for value in values if math.isfinite(value)]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
