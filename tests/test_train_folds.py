# SPDX-License-Identifier: Apache-2.0
"""Cross-validation: a run per fold, one report, and going on after an interruption."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import InterruptedDisplay, read_metrics, write_fer2013

from fastfer.data import DataOptions, load_dataset
from fastfer.train import InputError, TrainConfig, train_folds
from fastfer.train.__main__ import main
from fastfer.train.cli import parse_args
from fastfer.train.folder import FolderLock
from fastfer.train.folds import fold_configs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fer2013(tmp_path_factory.mktemp("data"), 28, 7)


def config(csv: Path, out: Path, **options: Any) -> TrainConfig:
    values = {"data": "fer2013", "root": str(csv), "epochs": 1, "batch_size": 8, "folds": 2, "threads": 1}
    return TrainConfig(out=str(out), **{**values, **options})


def test_one_report_over_the_folds(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    argv = [
        "--data",
        "fer2013",
        "--root",
        str(csv),
        "--out",
        str(out),
        "--epochs",
        "1",
        "--threads",
        "1",
        "--folds",
        "2",
    ]
    assert main(argv) == 0
    report = json.loads((out / "report.json").read_text())
    parts = [json.loads((out / f"fold-{fold}" / "report.json").read_text()) for fold in ("01", "02")]
    accuracies = [part["best"]["accuracy"] for part in parts]
    assert report["best"]["accuracy"] == {"mean": statistics.mean(accuracies), "sd": statistics.stdev(accuracies)}
    assert report["confusion"] == np.sum([part["best"]["confusion"] for part in parts], axis=0).tolist()
    assert sum(map(sum, report["confusion"])) == sum(run["images"]["validation"] for run in report["runs"])
    assert [run["fold"] for run in report["runs"]] == [1, 2]
    assert "fold" in report["runs"][0]["protocol"]["validation"]
    assert report["seed"] == 0
    assert "sd" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} >= {"config.yaml", "confusion.png", "fold-01", "fold-02"}


def test_the_folds_share_no_validation_image(csv: Path) -> None:
    runs = fold_configs(config(csv, Path("unused")).resolved())
    splits = [load_dataset("fer2013", csv, options=run.data_options) for run in runs]
    ids = [set(split["validation"].ids or ()) for split in splits]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert all(not ids[k] & set(splits[k]["train"].ids or ()) for k in range(2))


def test_an_interrupted_fold_goes_on(csv: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_folds(config(csv, tmp_path / "parts"), display=InterruptedDisplay(2, 1))
    assert (tmp_path / "parts" / "config.yaml").exists()
    assert not (tmp_path / "parts" / "report.json").exists()
    resumed = train_folds(config(csv, tmp_path / "parts"), resume=True)
    whole = train_folds(config(csv, tmp_path / "whole"))
    assert resumed["best"] == whole["best"]
    for fold in ("fold-01", "fold-02"):
        assert read_metrics(tmp_path / "parts" / fold) == read_metrics(tmp_path / "whole" / fold)


def test_two_commands_do_not_share_a_folder(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with FolderLock(out, "training folds"):
        held = sorted(path.name for path in out.iterdir())
        for resume in (False, True):
            with pytest.raises(
                InputError, match=rf"out: process {os.getpid()} on .* is training folds in|holds no folds"
            ):
                train_folds(config(csv, out), resume=resume)
        assert sorted(path.name for path in out.iterdir()) == held
        assert main(["--data", "fer2013", "--root", str(csv), "--folds", "2", "--epochs", "1", "--out", str(out)]) == 2


def test_bad_folds(csv: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 2-fold or leave-one-subject-out for folds=2, got '8-1-1'"):
        train_folds(config(csv, tmp_path / "run", data_options=DataOptions(split="8-1-1")))
    with pytest.raises(InputError, match="holds no folds"):
        train_folds(config(csv, tmp_path / "run"), resume=True)
    with pytest.raises(ValueError, match="folds: expected 0, or 2 to 9999, got 1"):
        config(csv, tmp_path / "run", folds=1)
    assert list(tmp_path.iterdir()) == []


def test_folds_decide_against_a_recipe_and_the_user_against_both() -> None:
    """Of vgg16_csa's recipe, which divides 90-10, and of patt_lite's, which has ten folds."""
    vgg = ["--model", "vgg16_csa", "--recipe", "paper", "--data", "ck_plus"]
    config = parse_args([*vgg, "--folds", "10"]).config
    assert (config.folds, config.data_options.split) == (10, None)
    assert fold_configs(config)[9].data_options.split == "10-fold"
    assert parse_args(vgg).config.data_options.split == "90-10"
    patt = ["--model", "patt_lite", "--recipe", "paper", "--data", "ck_plus", "--data-options.split", "8-1-1"]
    config = parse_args(patt).config
    assert (config.folds, config.data_options.split) == (0, "8-1-1")
    both = parse_args([*vgg, "--folds", "10", "--data-options.split", "8-1-1"]).config
    with pytest.raises(InputError, match="expected 10-fold or leave-one-subject-out for folds=10, got '8-1-1'"):
        fold_configs(both)


def test_leaving_one_subject_out_has_a_fold_per_subject(tmp_path: Path) -> None:
    for number, code in enumerate(("AN", "HA", "SA")):
        for subject in ("KA", "KL"):
            Image.new("L", (48, 48), 40 * number).save(tmp_path / f"{subject}.{code}1.{number + 1}.tiff")
    jaffe = {"data": "jaffe", "root": str(tmp_path), "data_options": DataOptions(split="leave-one-subject-out")}
    runs = fold_configs(config(tmp_path, tmp_path / "run", **jaffe).resolved())
    assert [run.data_options.fold for run in runs] == [0, 1]
    assert runs[0].data_options.split == "leave-one-subject-out"
    with pytest.raises(InputError, match="folds: expected 2, as jaffe has by leave-one-subject-out; got 3"):
        train_folds(config(tmp_path, tmp_path / "run", folds=3, **jaffe))
    assert not (tmp_path / "run").exists()


def test_folds_that_are_there_are_not_overwritten(csv: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "fold-02").mkdir(parents=True)
    (tmp_path / "run" / "fold-02" / "report.json").write_text("{}")
    with pytest.raises(InputError, match="--overwrite"):
        train_folds(config(csv, tmp_path / "run"))
    assert not (tmp_path / "run" / "fold-01").exists()
