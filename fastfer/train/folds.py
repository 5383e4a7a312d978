# SPDX-License-Identifier: Apache-2.0
"""k-fold cross-validation: one run per fold, and one report with mean and standard deviation.

``out/fold-01`` and so on are runs like any other. A fold is validated on while its epochs are chosen, so the mean over
the best epochs is optimistic; the report gives the mean over the last epochs beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastfer.data import load_folds
from fastfer.data.files import write_text
from fastfer.train import report
from fastfer.train.config import CONFIG_FILE, InputError, TrainConfig, to_yaml
from fastfer.train.folder import check_folder, claimed
from fastfer.train.placement import is_main_process
from fastfer.train.progress import Display, Silent
from fastfer.train.public import public_config
from fastfer.train.run import train

_SCORES = ("accuracy", "macro_f1")
_ALONE = "leave-one-subject-out"


def train_folds(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Run every fold of ``config.folds`` and return the content of report.json in the output folder.

    ``resume`` goes on with the fold that was interrupted. Errors as `fastfer.train.train`.
    """
    config, display = config.resolved(), display or Silent()
    _check_count(config)
    runs = fold_configs(config)
    out = Path(str(config.out))
    _check_folders(out, runs, resume, overwrite)
    with claimed(out, "training folds"):
        _check_folders(out, runs, resume, overwrite)  # as another may have been here before the folder was ours
        return _train_folds(config, runs, resume, overwrite, display)


def _train_folds(
    config: TrainConfig, runs: Sequence[TrainConfig], resume: bool, overwrite: bool, display: Display
) -> dict[str, Any]:
    out = Path(str(config.out))
    reports = []
    for number, run in enumerate(runs, start=1):
        begun = (Path(str(run.out)) / CONFIG_FILE).exists()
        display.line(f"fold {number} of {len(runs)}")
        reports.append(train(run, resume=resume and begun, overwrite=overwrite, display=display))
        if number == 1 and is_main_process():  # so the input is sound, and --resume needs no other options from here
            write_text(out / CONFIG_FILE, to_yaml(config))
    content = summary(config, reports)
    if is_main_process():
        report.write_report(out, content)
        best = content["best"]
        title = f"{config.model} on {config.data}, {len(runs)} folds: {best['accuracy']['mean']:.1%}"
        report.write_confusion(out, content["confusion"], content["classes"], title)
    return content


def fold_configs(config: TrainConfig) -> list[TrainConfig]:
    """The run of each fold. InputError for options of another split."""
    wanted = _rule(config)
    return [_fold(config, wanted, fold) for fold in range(config.folds)]


def _fold(config: TrainConfig, split: str, fold: int) -> TrainConfig:
    options = replace(config.data_options, split=split, fold=fold)
    return replace(config, folds=0, data_options=options, out=str(Path(str(config.out), f"fold-{fold + 1:02d}")))


def summary(config: TrainConfig, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over the folds, and the sum of their confusion matrices (best epochs)."""
    first = reports[0]
    confusion = np.sum([np.asarray(each["best"]["confusion"]) for each in reports], axis=0)
    return {
        **{key: first[key] for key in ("model", "parameters", "data", "classes", "seed", "recipe", "environment")},
        "folds": len(reports),
        **{epoch: {score: _spread([each[epoch][score] for each in reports]) for score in _SCORES}
           for epoch in ("best", "last")},
        "confusion": confusion.tolist(),
        "config": public_config(config),
        "runs": [
            {
                "fold": number,
                "protocol": each["protocol"],
                "images": {part: sum(counts.values()) for part, counts in each["images"].items()},
                **{epoch: {key: each[epoch][key] for key in ("epoch", *_SCORES)} for epoch in ("best", "last")},
            }
            for number, each in enumerate(reports, start=1)
        ],
    }  # fmt: skip


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}


def _rule(config: TrainConfig) -> str:
    """The split of the folds. InputError for options of another one."""
    split = config.data_options.split
    wanted = split if split == _ALONE else f"{config.folds}-fold"
    if split not in (None, wanted):
        raise InputError(f"data_options.split: expected {wanted} or {_ALONE} for folds={config.folds}, got {split!r}")
    return wanted


def _check_count(config: TrainConfig) -> None:
    """InputError unless the data set has as many folds as are asked for."""
    try:
        first = _fold(config, _rule(config), 0)
        count = len(load_folds(config.data, config.root, options=first.data_options))
    except ValueError as error:
        raise InputError(str(error)) from error
    if count != config.folds:
        raise InputError(
            f"folds: expected {count}, as {config.data} has by {first.data_options.split}; got {config.folds}"
        )


def _check_folders(out: Path, runs: Sequence[TrainConfig], resume: bool, overwrite: bool) -> None:
    if resume:
        if not any((Path(str(run.out)) / CONFIG_FILE).exists() for run in runs):
            raise InputError(f"resume: {out} holds no folds")
        return
    try:
        for folder in (out, *(Path(str(run.out)) for run in runs)):
            check_folder(folder, resume=False, overwrite=overwrite)
    except ValueError as error:
        raise InputError(str(error)) from error
