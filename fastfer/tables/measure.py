# SPDX-License-Identifier: Apache-2.0
"""What a finished run of a row is worth on the images that the paper measured on.

A data set with a test part of its own: the best weights on that part, which chose nothing. One that is divided into two
parts, or whose test part was validated on: the part held out, after the last epoch, since the best epoch was chosen on
it. The two stand apart from the score of the best epoch on the validation images.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastfer.data import DataError
from fastfer.data.options import parse_split
from fastfer.evaluate import evaluate
from fastfer.evaluate.cost import measure_cost
from fastfer.evaluate.source import Weights, load, load_parts
from fastfer.tables.table import ACCURACY, Table
from fastfer.train import TrainConfig
from fastfer.train.folder import BEST_FILE

MEAN_RECALL = "mean_recall"


@dataclass(frozen=True)
class Tested:
    """Scores on the paper's part, by column, from 0 to 1.

    part    which images, in words: the test part, or the part held out
    images  how many
    why     why there are no scores; empty where there are
    """

    part: str = ""
    images: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


def facts(table: Table, run: Path) -> dict[str, float]:
    """The figures of the network that the table shows, by the names of `table.FACTS`."""
    weights = load(run / BEST_FILE)
    size = weights.spec.preprocess.size or weights.model.input_size
    seconds = 0.5 if "seconds" in table.facts else 0.0
    file_size = (run / BEST_FILE).stat().st_size
    cost = measure_cost(weights.model, (weights.model.in_chans, *size), file_size, seconds)
    found = {"parameters": float(cost.parameters), "gmac": cost.macs / 1e9, "size_mb": file_size / 2**20}
    return found | ({"seconds": cost.latency_ms[1] / 1e3} if 1 in cost.latency_ms else {})


def tested(table: Table, config: TrainConfig, report: Mapping[str, Any], subsets: Mapping[str, Path]) -> Tested:
    """Scores of a run, of folds their means. ``subsets``: list files by the table's names of subsets."""
    if table.subsets:
        return _on_subsets(table, config, subsets)
    if "runs" in report:
        parts = [run["last"] for run in report["runs"]]
        if table.columns == (ACCURACY,):
            scores = {ACCURACY: statistics.fmean(part[ACCURACY] for part in parts)}
            return Tested(f"{len(parts)} folds, each held out", sum(map(sum, report["confusion"])), scores)
        return Tested(why="folds record accuracies only")
    if _held_out(config):
        last = report["last"]
        scores = _columns(table, last["accuracy"], last["recall"])
        return Tested("the part held out", sum(map(sum, last["confusion"])), scores)
    return _on_test_part(table, config)


def _held_out(config: TrainConfig) -> bool:
    """Whether the validation images are those that the paper measures on."""
    if config.data_options.validation == "test":
        return True
    split = config.data_options.split
    return split is not None and parse_split(split).kind != "official" and split.count("-") == 1


def _columns(table: Table, accuracy: float, recall: Mapping[str, float]) -> dict[str, float]:
    known = {ACCURACY: accuracy, MEAN_RECALL: statistics.fmean(recall.values()), **recall}
    return {column: known[column] for column in table.columns if column in known}


def _on_test_part(table: Table, config: TrainConfig) -> Tested:
    weights = load(Path(str(config.out)) / BEST_FILE)
    try:
        images, accuracy, recall = _score(weights, config, {})
    except DataError as error:
        return Tested(why=f"no test part: {error}")
    return Tested("the test part", images, _columns(table, accuracy, recall))


def _on_subsets(table: Table, config: TrainConfig, subsets: Mapping[str, Path]) -> Tested:
    if not subsets:
        names = " ".join(f"--subset {name}=FILE" for name in table.subsets)
        return Tested(why=f"the lists of images are not part of the data set: {names}")
    weights = load(Path(str(config.out)) / BEST_FILE)
    scores: dict[str, float] = {}
    count = 0
    for name, path in subsets.items():
        try:
            images, scores[name], _ = _score(weights, config, {"subset": str(path)})
        except DataError as error:
            return Tested(why=f"{name}: {error}")
        count += images
    return Tested("the listed images of the test part", count, scores)


def _score(weights: Weights, config: TrainConfig, asked: Mapping[str, Any]) -> tuple[int, float, dict[str, float]]:
    """Number of test images, accuracy, recall by class."""
    root = None if config.root is None else Path(config.root)
    loaded = load_parts(weights, config.data, root, "test", asked, with_train=False)
    metrics = evaluate(weights.model, loaded.split, weights.preprocess, flip=config.flip_test).metrics
    return metrics.images, metrics.accuracy, dict(zip(loaded.split.names, metrics.recall, strict=True))


def check_subsets(table: Table, subsets: Mapping[str, Path]) -> None:
    """ValueError, before anything is trained, for lists that the table does not have, or that are not there."""
    if subsets and set(subsets) != set(table.subsets):
        expected = ", ".join(f"{name}=FILE" for name in table.subsets) or f"none, as {table.name} has no subsets"
        raise ValueError(f"subset: expected {expected}; got {', '.join(subsets)}")
    missing: Sequence[Path] = [path for path in subsets.values() if not path.is_file()]
    if missing:
        raise ValueError(f"subset: expected a file of image names, got {missing[0]}, which is not there")
