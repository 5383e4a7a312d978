# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.models [PATTERN] [--json]``: the networks, their size and cost, and what their papers publish."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from fastfer.models.info import ModelInfo, model_info
from fastfer.models.registry import list_models

_HEADINGS = ("name", "input", "parameters", "statistics", "MMAC", "file MB", "published accuracy, %")


def _row(info: ModelInfo) -> tuple[str, ...]:
    return (
        info.name,
        "×".join(map(str, info.input_shape)),
        f"{info.parameters:,}",
        f"{info.running_statistics:,}",
        f"{info.macs / 1e6:.2f}",
        f"{info.file_size / 1e6:.2f}",
        ", ".join(f"{data} {accuracy:g}" for data, accuracy in info.published.items()) or "-",
    )


def table(infos: Sequence[ModelInfo]) -> str:
    """Aligned columns, numbers to the right."""
    rows = [_HEADINGS, *map(_row, infos)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [(cell.ljust(w), cell.rjust(w)) for cell, w in zip(row, widths, strict=True)]
        cells = [both[1 < i < 6] for i, both in enumerate(padded)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 2 for a pattern that matches nothing."""
    parser = argparse.ArgumentParser(prog="python -m fastfer.models", description="List the networks.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern of names (default: all)")
    parser.add_argument("--num-classes", type=int, default=7, help="classes to count for (default: 7)")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    args = parser.parse_args(argv)
    names = list_models(args.pattern)
    try:
        if not names:
            raise ValueError(f"pattern: expected one that matches {', '.join(list_models())}, got {args.pattern!r}")
        infos = [model_info(name, num_classes=args.num_classes) for name in names]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([asdict(info) for info in infos], indent=2, ensure_ascii=False))
        return 0
    print(table(infos))
    for info in infos:
        if info.paper is not None:
            print(f"\n{info.name}: {info.paper.title} ({info.paper.source}). {info.paper.note}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
