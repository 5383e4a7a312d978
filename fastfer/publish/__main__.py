# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.publish RUN --root DATA``: exit code 0, 2 for bad input. For those who release fastfer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastfer import weights
from fastfer.data.files import terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastfer.publish", description="Make weights that ship, and their card, of a training run."
    )
    parser.add_argument("run", type=Path, help="folder of the run, with best.safetensors and report.json")
    parser.add_argument("--root", type=Path, required=True, help="where the data set of the run lies")
    parser.add_argument("--weights", type=Path, default=weights.FOLDER, help="folder of the weights that ship")
    parser.add_argument("--cards", type=Path, default=Path("docs", "weights"), help="folder of the cards")
    parser.add_argument("--note", action="append", default=[], help="a sentence for the card; may be repeated")
    args = parser.parse_args(argv)
    try:
        from fastfer.publish.release import release

        row = release(args.run, args.root, args.weights, args.cards, args.note)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(terminal(f"error: {error}"), file=sys.stderr)
        return 2
    size = (args.weights / row.file).stat().st_size
    print(f"{row.name}: {row.accuracy:.2%} on {row.images:,} images, {size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
