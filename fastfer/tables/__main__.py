# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.tables NAME``: exit code 0, 2 for bad input, 1 when training fails, 130 when interrupted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastfer.tables.table import Table

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except ImportError as error:
        return _fail(f"{error}; tables need more packages: pip install 'fastfer[train]'", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues", _INTERRUPTED)


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastfer.tables",
        description="Run a paper's table, or some of its rows, and print it beside the published figures. Further "
        "options are those of the trainer, for every row: --root PATH, --epochs 5, --pretrained PATH.",
    )
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(names)}; without it they are listed")
    parser.add_argument("--list", action="store_true", help="list the tables, as without a name")
    parser.add_argument("--papers", action="store_true", help="print docs/papers.md: each paper, item by item")
    parser.add_argument(
        "--data",
        help="data sets to run on, with commas, of the table or not, or all of the table; without it nothing is run",
    )
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="[DATA=]PATH",
        help="where the data set is; with several data sets once for each, such as fer2013=PATH",
    )
    parser.add_argument(
        "--subset",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="list of test images for a table of subsets, once for each of its subsets",
    )
    parser.add_argument("--rows", help="numbers, from 1, or labels of the rows, with commas (default: all)")
    parser.add_argument("--out", type=Path, help="folder of the runs and results (default: runs/tables/NAME)")
    parser.add_argument("--overwrite", action="store_true", help="run again what is there already")
    return parser


def _run(argv: Sequence[str]) -> int:
    from fastfer.tables import papers
    from fastfer.tables.render import notes, to_rich, why_not
    from fastfer.tables.run import check_roots, read_cells, run_table
    from fastfer.tables.table import list_tables, load_table
    from fastfer.train import InputError, NonFiniteError
    from fastfer.train.placement import is_main_process
    from fastfer.train.progress import Display

    args, options = _parser(list_tables()).parse_known_args(argv)
    if args.papers:
        print(papers.to_markdown(), end="")
        return 0
    display = Display()
    try:
        if args.name is None or args.list:
            for name in list_tables():
                display.line(f"{name:16}{load_table(name).title}")
            return 0
        table = load_table(args.name)
        out = args.out or Path("runs", "tables", table.name)
        if args.data is None and (options or args.rows):
            raise ValueError(f"data: expected a data set to run on, such as {', '.join(table.data)}; got none")
        rows = [row for row in (args.rows or "").split(",") if row.strip()]
        if args.data is None:
            cells = read_cells(out)
        else:
            cells, runs = [], _runs(table, args.data, args.root)
            check_roots(table, runs, out, rows, options)
            for data, own in runs:
                cells = run_table(
                    table,
                    data,
                    out,
                    rows=rows,
                    argv=[*options, *own],
                    subsets=_named("subset", args.subset),
                    overwrite=args.overwrite,
                    display=display,
                )
    except (InputError, ValueError) as error:
        return _fail(str(error), 2)
    except (NonFiniteError, OSError) as error:
        return _fail(str(error), 1)
    if is_main_process():
        display.console.print(to_rich(table, cells))
        for line in [*notes(cells), *why_not(table)]:
            display.line(line)
    return 0


def _runs(table: Table, data: str, roots: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The data sets, the one that the others start from first, each with its own --root."""
    from fastfer.data.registry import canonical_dataset

    sets = list(table.data) if data == "all" else [name.strip() for name in data.split(",") if name.strip()]
    sets.sort(key=lambda name: canonical_dataset(name) != table.start)
    if len(sets) == 1:
        plain = [root.removeprefix(f"{sets[0]}=") for root in roots]
        return [(sets[0], [f"--root={root}" for root in plain])]
    known = _named("root", roots)
    if unknown := sorted(set(known) - set(sets)):
        raise ValueError(f"root: expected some of {', '.join(f'{name}=PATH' for name in sets)}, got {unknown[0]}=")
    return [(name, [f"--root={known[name]}"] if name in known else []) for name in sets]


def _named(option: str, values: Sequence[str]) -> dict[str, Path]:
    pairs = [value.partition("=") for value in values]
    if wrong := [name for name, sign, path in pairs if not (name and sign and path)]:
        raise ValueError(f"{option}: expected NAME=PATH, got {wrong[0]!r}")
    return {name: Path(path) for name, _, path in pairs}


def _fail(message: str, code: int) -> int:
    from fastfer.data.files import terminal

    print(terminal(f"error: {message}"), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
