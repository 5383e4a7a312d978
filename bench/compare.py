# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.compare A B``: what became of each ratio to a peer between two files of results, A the older.

Ratios, and no times: both runtimes of a ratio ran in turn on the same machine at the same time. The exit code is 1
where a ratio fell by more than ``--fall`` (a tenth), 2 where nothing can be compared. A row that was measured beside
other work is shown and not judged. Files of two machines are compared with ``--across`` only, which judges nothing.
Takes files of ``bench.claims`` and of ``bench.engine``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine_file import identity, is_disturbed, read

Key = tuple[str, int, int, str, str]


@dataclass(frozen=True)
class Ratio:
    """Time of a peer over that of the engine: the median over rounds of the ratio in each round."""

    value: float
    disturbed: bool

    @classmethod
    def of(cls, row: dict[str, Any], peer: dict[str, Any]) -> Ratio:
        own = row["timings"][0]["rounds"]
        ratios = [theirs / ours for theirs, ours in zip(peer["rounds"], own, strict=True)]
        return cls(statistics.median(ratios), is_disturbed(row))


def ratios(content: dict[str, Any]) -> dict[Key, Ratio]:
    """By network, batch, threads, dtype and peer."""
    found = {}
    for row in content.get("ratios", []):
        for peer in row["timings"][1:]:
            key = (row["network"], row["batch"], row["threads"], row.get("dtype", "float32"), peer["name"])
            found[key] = Ratio.of(row, peer)
    return found


@dataclass(frozen=True)
class Change:
    """A ratio in both files."""

    key: Key
    before: Ratio
    after: Ratio

    @property
    def change(self) -> float:
        """-0.1 for a ratio that is a tenth less."""
        return self.after.value / self.before.value - 1

    @property
    def is_judged(self) -> bool:
        return not (self.before.disturbed or self.after.disturbed)

    def fell(self, fall: float) -> bool:
        """Whether it is worse by more than ``fall``; a ratio that is no number is."""
        return not self.change >= -fall


def changes(before: dict[Key, Ratio], after: dict[Key, Ratio]) -> list[Change]:
    """Those in both, the worst first."""
    both = [Change(key, before[key], after[key]) for key in before if key in after]
    return sorted(both, key=lambda one: one.change if math.isfinite(one.change) else -math.inf)


def report(found: list[Change], fall: float) -> Iterator[str]:
    """The lines of a table."""
    yield "| network, images | threads | dtype | peer | before | after | change | |"
    yield "| --- | ---: | --- | --- | ---: | ---: | ---: | --- |"
    for one in found:
        network, batch, threads, dtype, peer = one.key
        remark = "" if one.is_judged else "disturbed"
        if one.fell(fall):
            remark = "**fell**" if one.is_judged else "fell, but disturbed"
        values = f"{one.before.value:.2f}× | {one.after.value:.2f}× | {one.change:+.0%}"
        yield f"| {network}, {batch} | {threads} | {dtype} | {peer} | {values} | {remark} |"


def judge(
    before: dict[str, Any], after: dict[str, Any], fall: float, *, across: bool = False
) -> tuple[int, Iterator[str]]:
    """The exit code, and the lines to print."""
    old, new = ratios(before), ratios(after)
    found = changes(old, new)
    machines = identity(before["machine"]), identity(after["machine"])
    if machines[0] != machines[1] and not across:
        return 2, iter([f"two machines, {machines[0]} and {machines[1]}: --across shows them and judges nothing"])
    if not found:
        return 2, iter(["the files have no ratio in common"])
    judged = [one for one in found if one.is_judged]
    fallen = [one for one in judged if one.fell(fall)]
    lines = [*report(found, fall), ""]
    lines.append(
        f"{len(found)} ratios in both, {len(old) - len(found)} only before, {len(new) - len(found)} only after"
    )
    if across and machines[0] != machines[1]:
        return 0, iter([*lines, "two machines: nothing is judged"])
    if not judged:
        return 2, iter([*lines, "all were measured beside other work: nothing can be judged"])
    lines.append(f"{len(fallen)} of {len(judged)} judged fell by more than {fall:.0%}")
    return int(bool(fallen)), iter(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("before", type=Path, metavar="A")
    parser.add_argument("after", type=Path, metavar="B")
    parser.add_argument("--fall", type=float, default=0.1, help="share by which a ratio may fall (default: 0.1)")
    parser.add_argument("--across", action="store_true", help="files of two machines; nothing is judged")
    options = parser.parse_args(argv)
    try:
        code, lines = judge(read(options.before), read(options.after), options.fall, across=options.across)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(*lines, sep="\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
