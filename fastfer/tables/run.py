# SPDX-License-Identifier: Apache-2.0
"""Runs of a table's rows, one folder each, and what they gave, in table.json: a row that is there is not run again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastfer.data.files import write_text
from fastfer.data.loading import find_dataset
from fastfer.data.registry import canonical_dataset
from fastfer.tables.measure import Tested, check_subsets, facts, tested
from fastfer.tables.render import to_markdown
from fastfer.tables.table import Row, Table
from fastfer.train import InputError, TrainConfig, configure, train, train_folds
from fastfer.train.config import CONFIG_FILE
from fastfer.train.folder import BEST_FILE, claimed
from fastfer.train.placement import is_main_process
from fastfer.train.progress import Display, Silent

RESULTS_FILE, MARKDOWN_FILE = "table.json", "table.md"
_LAYOUT = 2
_WHERE = ("out", "root", "threads", "backend", "device")  # decide nothing of what a row gives


@dataclass(frozen=True)
class Cell:
    """What a row gave on a data set; accuracies and macro-F1 from 0 to 1, over folds their means.

    tested       scores on the images that the paper measured on
    facts        figures of the network, by the names of `table.FACTS`
    best, last   accuracy after the best epoch on the images that are validated on, and after the last
    sd           standard deviation of ``best`` over folds, or None
    epochs       epochs done, in all folds and stages
    config       options of the run
    """

    row: str
    data: str
    tested: Tested
    facts: dict[str, float]
    best: float
    last: float
    macro_f1: float
    sd: float | None
    epochs: int
    parameters: int
    images: int
    protocol: str
    seed: int
    seconds: float
    config: dict[str, Any]
    environment: dict[str, Any]


def run_table(
    table: Table,
    data: str,
    out: Path,
    *,
    rows: Sequence[str] = (),
    argv: Sequence[str] = (),
    subsets: Mapping[str, Path] | None = None,
    overwrite: bool = False,
    display: Display | None = None,
) -> list[Cell]:
    """Run ``rows`` (labels or numbers; none: all) on the data set and return every cell that ``out`` then holds.

    ``argv`` are options of the trainer, which come before those of the rows and of the recipe; ``subsets`` the list
    files of a table of subsets. A table with a ``start`` takes each row's weights from its run there, which is then
    wanted first. Finished rows are kept,
    interrupted ones continued; ``overwrite`` begins them again. After each row table.json and table.md are replaced.
    Raises InputError, before anything is written, for unknown rows and bad options, for finished rows of others, and
    where another process is running a table in ``out``.
    """
    display = display or Silent()
    cells = read_cells(out)
    subsets = subsets or {}
    try:
        chosen = table.chosen(rows)
        check_subsets(table, subsets)
        _check_start(table, argv)
        configs = {row.label: _config(table, row, data, out, argv) for row in chosen}
    except ValueError as error:
        raise InputError(str(error)) from error
    missing = [row for row in chosen if overwrite or not _is_done(cells, configs[row.label])]
    with ExitStack() as stack:
        if missing:
            stack.enter_context(claimed(out, "running a table", (RESULTS_FILE, MARKDOWN_FILE)))
            cells = read_cells(out)  # as another may have been here before the folder was ours
        for row in chosen:
            config = configs[row.label]
            wanted = row in missing and (overwrite or not _is_done(cells, config))
            display.line(f"{table.title}: {row.label} on {config.data}" + ("" if wanted else ": done"))
            if not wanted:
                continue
            cell = _run(table, row, config, subsets, overwrite, display)
            cells = [*(c for c in cells if (c.row, c.data) != (cell.row, cell.data)), cell]
            if is_main_process():
                _write(out, table, cells)
    return cells


def check_roots(
    table: Table, runs: Sequence[tuple[str, Sequence[str]]], out: Path, rows: Sequence[str], argv: Sequence[str]
) -> None:
    """InputError where one of several data sets is not at its root: before the hours that the first of them trains.

    ``runs`` are the data sets, each with options of its own.
    """
    try:
        for data, own in runs[1:]:  # the first is looked at when it begins
            config = _config(replace(table, start=None), table.chosen(rows)[0], data, out, [*argv, *own])
            if config.data != "drawn":
                find_dataset(config.data, config.root, config.data_options)
    except ValueError as error:
        raise InputError(str(error)) from error


def read_cells(out: Path) -> list[Cell]:
    """What table.json in ``out`` holds; nothing where there is none. InputError for a file that is none of ours."""
    path = out / RESULTS_FILE
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["layout"] != _LAYOUT:
            raise ValueError(f"expected layout {_LAYOUT}, got {content['layout']!r}")
        names = [field.name for field in fields(Cell)]
        cells = [{name: cell[name] for name in names} for cell in content["cells"]]
        return [Cell(**{**cell, "tested": Tested(**cell["tested"])}) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the results of a table, got {type(error).__name__}: {error}") from error


def _config(table: Table, row: Row, data: str, out: Path, argv: Sequence[str]) -> TrainConfig:
    """The run of one cell."""
    options = {"model": table.model, **table.options, **(row.options or {}), "data": canonical_dataset(data)}
    if table.start is not None and options["data"] in table.data and options["data"] != table.start:
        options["from_weights"] = str(_start_of(table, row, out))
    folder = out / f"{row.key}-{options['data']}"
    recipe_of, model = table.model, options["model"]
    if model == recipe_of:
        return configure(table.recipe(data), argv, **options, out=str(folder)).resolved()
    # Another network's row: trained as the table's own, whose options of the network do not concern it.
    own = configure(table.recipe(data), (), model=recipe_of, data=options["data"])
    shared = {k: v for k, v in asdict(own).items() if k not in ("model", "model_options", "out", "recipe")}
    return configure(None, argv, shared, **options, out=str(folder)).resolved()


def _check_start(table: Table, argv: Sequence[str]) -> None:
    own = [arg for arg in argv if arg.split("=")[0] in ("--from", "--from_weights", "--from-weights")]
    if table.start is not None and own:
        raise ValueError(
            f"{own[0].split('=')[0]}: expected none, as each row of {table.name} starts from its own weights of "
            f"--data {table.start}"
        )


def _start_of(table: Table, row: Row, out: Path) -> Path:
    """The row's weights on the data set that it starts from. ValueError where that has not been run."""
    path = out / f"{row.key}-{table.start}" / BEST_FILE
    if not path.is_file():
        raise ValueError(
            f"data: {row.label!r} starts from its weights on {table.start}, which are not in {path.parent}: run "
            f"--data {table.start} first, or several at once as --data {','.join(table.data)}"
        )
    return path


def _is_done(cells: Sequence[Cell], config: TrainConfig) -> bool:
    folder = Path(str(config.out))
    found = [cell for cell in cells if f"{Row(cell.row).key}-{cell.data}" == folder.name]
    if not found:
        return False
    mine, theirs = (_decisive(values) for values in (asdict(config), found[0].config))
    if mine != theirs:
        unlike = [
            f"{key}: {mine[key]!r} instead of {theirs.get(key)!r}" for key in mine if mine[key] != theirs.get(key)
        ]
        raise InputError(f"{folder.name} was run with other options ({'; '.join(unlike)}): use another --out")
    return True


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in config.items() if k not in _WHERE}
    if kept.get("from_weights") is not None:  # whose, not where: the run's folder and the file
        kept["from_weights"] = "/".join(Path(kept["from_weights"]).parts[-2:])
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]


def _run(
    table: Table, row: Row, config: TrainConfig, subsets: Mapping[str, Path], overwrite: bool, display: Display
) -> Cell:
    out = Path(str(config.out))
    begun = any((folder / CONFIG_FILE).exists() for folder in (out, out / "fold-01")) and not overwrite
    start = time.perf_counter()
    run = train_folds if config.folds else train
    report = run(config, resume=begun, overwrite=overwrite, display=display)
    best, last = report["best"], report["last"]
    runs = report.get("runs")
    return Cell(
        row=row.label,
        data=config.data,
        tested=tested(table, config, report, subsets),
        facts=facts(table, Path(str(config.out)) / "fold-01" if runs else Path(str(config.out))),
        best=best["accuracy"]["mean"] if runs else best["accuracy"],
        last=last["accuracy"]["mean"] if runs else last["accuracy"],
        macro_f1=best["macro_f1"]["mean"] if runs else best["macro_f1"],
        sd=best["accuracy"]["sd"] if runs else None,
        epochs=sum(each["last"]["epoch"] for each in runs) if runs else report["epochs"]["done"],
        parameters=report["parameters"],
        images=sum(map(sum, report["confusion"])) if runs else sum(map(sum, best["confusion"])),
        protocol=(runs[0] if runs else report)["protocol"]["validation"],
        seed=report["seed"],
        seconds=round(time.perf_counter() - start, 1),
        config=_decisive(asdict(config)),
        environment=report["environment"],
    )


def _write(out: Path, table: Table, cells: Sequence[Cell]) -> None:
    content = {"layout": _LAYOUT, "table": table.name, "title": table.title, "cells": [asdict(cell) for cell in cells]}
    write_text(out / RESULTS_FILE, json.dumps(content, indent=2) + "\n")
    write_text(out / MARKDOWN_FILE, to_markdown(table, cells))
