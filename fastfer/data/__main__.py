# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.data sheet --out FILE``: a contact sheet of a data set's training images, as PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastfer.data import DataError, list_datasets, load_dataset
from fastfer.data.sheet import save_contact_sheet


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastfer.data", description="Look at data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="write a contact sheet, one row of images per class")
    sheet.add_argument("--data", default="drawn", help=f"one of {', '.join(list_datasets())} (default: drawn)")
    sheet.add_argument("--root", type=Path, help="where the data set lies; the drawn faces need none")
    sheet.add_argument("--out", type=Path, required=True, help="PNG file to write")
    sheet.add_argument("--columns", type=int, default=12, help="images per class (default: 12)")
    sheet.add_argument("--zoom", type=int, default=2, help="enlargement (default: 2)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for bad input)."""
    args = _parser().parse_args(argv)
    try:
        if min(args.columns, args.zoom) < 1:
            raise ValueError(f"columns and zoom: expected 1 or more, got {args.columns} and {args.zoom}")
        if not args.out.parent.is_dir():
            raise ValueError(f"out: the folder {args.out.parent} does not exist")
        split = load_dataset(args.data, args.root)["train"]
        save_contact_sheet(split, args.out, args.columns, args.zoom)
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
