# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.data``: look at data sets.

layouts            how the files of each data set may lie
check ROOT         recognise a data set, count its images and say what is wrong; exit code 1 where something is
sheet --out FILE   a contact sheet of a data set's training images, as PNG
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastfer.data import DataError, list_datasets, load_dataset
from fastfer.data.check import check, to_text
from fastfer.data.files import printable
from fastfer.data.labels import CODE_TABLES
from fastfer.data.loading import find_dataset
from fastfer.data.options import DataOptions
from fastfer.data.registry import DATASETS
from fastfer.data.sheet import save_contact_sheet


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastfer.data", description="Look at data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    layouts = commands.add_parser("layouts", help="how the files of each data set may lie")
    layouts.set_defaults(run=_layouts)
    check_ = commands.add_parser("check", help="recognise a data set, count its images and say what is wrong")
    check_.add_argument("root", type=Path, help="file or folder where the data set lies")
    check_.add_argument("--data", default="auto", help=f"auto or one of {', '.join(list_datasets())} (default: auto)")
    check_.add_argument("--layout", default="auto", help="layout, where several are there (default: auto)")
    check_.add_argument("--label-source", choices=["label.csv", "fer2013new.csv"], help="FERPlus: whose votes")
    check_.add_argument("--codes", help=f"meaning of numbers: {', '.join(CODE_TABLES)}, or 0=neutral,1=happy")
    check_.add_argument("--classes", help="6, 7, 8 or names such as happy,sad")
    check_.add_argument("--json", action="store_true", help="print the report as JSON")
    check_.set_defaults(run=_check)
    sheet = commands.add_parser("sheet", help="write a contact sheet, one row of images per class")
    sheet.add_argument("--data", default="drawn", help=f"one of {', '.join(list_datasets())} (default: drawn)")
    sheet.add_argument("--root", type=Path, help="where the data set lies; the drawn faces need none")
    sheet.add_argument("--out", type=Path, required=True, help="PNG file to write")
    sheet.add_argument("--columns", type=int, default=12, help="images per class (default: 12)")
    sheet.add_argument("--zoom", type=int, default=2, help="enlargement (default: 2)")
    sheet.set_defaults(run=_sheet)
    return parser


def _layouts(args: argparse.Namespace) -> int:
    for dataset in DATASETS:
        rule = dataset.usual_split or "official where the folders show one"
        options = f"; options: {', '.join(sorted(dataset.options))}" if dataset.options else ""
        print(f"{dataset.name} (split: {rule}{options})")
        for layout in dataset.layouts:
            print(f"  {layout.name:<14} {layout.expects}")
    return 0


def _check(args: argparse.Namespace) -> int:
    """0 for a sound data set, 1 for one with problems; DataError for what is none."""
    options = DataOptions(
        layout=args.layout, label_source=args.label_source, codes=args.codes, classes=args.classes, skip_corrupt=True
    )
    found = find_dataset(args.data, args.root, options)
    try:
        report = check(args.root, args.data, options)
    except DataError as error:
        what = f"{found.dataset.name}, layout {found.layout.name}, at {found.place}"
        failure = {"dataset": found.dataset.name, "layout": found.layout.name, "problems": [str(error)], "ok": False}
        print(json.dumps(failure, indent=2) if args.json else printable(what) + "\nPROBLEM: " + printable(str(error)))
        return 1
    print(json.dumps(report.as_dict(), indent=2) if args.json else to_text(report))
    return 1 if report.problems else 0


def _sheet(args: argparse.Namespace) -> int:
    if min(args.columns, args.zoom) < 1:
        raise ValueError(f"columns and zoom: expected 1 or more, got {args.columns} and {args.zoom}")
    if not args.out.parent.is_dir():
        raise ValueError(f"out: the folder {args.out.parent} does not exist")
    split = load_dataset(args.data, args.root)["train"]
    save_contact_sheet(split, args.out, args.columns, args.zoom)
    print(f"wrote {args.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for bad input)."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (DataError, ValueError, OSError, ImportError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
