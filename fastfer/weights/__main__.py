# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.weights [PATTERN]``: the weights that ship, a line each. Exit code 0, 1 where none match."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastfer import weights


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastfer.weights", description="List the weights that ship.")
    parser.add_argument("pattern", nargs="?", default="*", help="such as '*-ferplus' (default: all)")
    parser.add_argument("--paths", action="store_true", help="print where the files lie instead")
    args = parser.parse_args(argv)
    found = [weights.get(name) for name in weights.list(args.pattern)]
    for row in found:
        if args.paths:
            print(row.path)
            continue
        print(
            f"{row.name:28} {row.data:8} {len(row.classes)} classes  {row.parameters:>9,} parameters  "
            f"{row.path.stat().st_size / 2**20:5.2f} MiB  accuracy {row.accuracy:.2%} on {row.images:,} images"
        )
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
