# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.figures NAME SOURCE...``: exit code 0, 2 for bad input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastfer.figures.figure import FIGURES, Faces, FigureError, draw


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastfer.figures", description="Draw a figure from run folders, tables or weights."
    )
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(FIGURES)}; without it they are listed")
    parser.add_argument("sources", nargs="*", type=Path, help="run folders, table folders or a weight file")
    parser.add_argument("--data", help="data set of the faces, for maps and tsne")
    parser.add_argument("--root", type=Path, help="where that data set is")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--limit", type=int, default=2000, help="faces at most (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs", "figures"), help="folder (default: runs/figures)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.name is None:
        for name, kind in FIGURES.items():
            print(f"{name:10} {kind.title}; from {kind.source}; papers: {kind.papers}")
        return 0
    try:
        if args.limit < 1:
            raise FigureError(f"limit: expected a number from 1, got {args.limit}")
        faces = Faces(args.data, args.root, args.split, args.limit, args.seed)
        path = draw(args.name, args.sources, args.out, faces)
    except (FigureError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
