# SPDX-License-Identifier: Apache-2.0
"""The trainer's command line: options, exit codes, bad input."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from data_trees import face, save
from train_runs import FILES, InterruptedDisplay, arguments, contents, read_metrics, tiny

from fastfer.data import Augment
from fastfer.train import InputError, train
from fastfer.train.__main__ import main
from fastfer.train.cli import parse_args

pytestmark = pytest.mark.usefixtures("one_thread")


def test_both_spellings_and_yaml(tmp_path: Path, finished: Path) -> None:
    config = parse_args(["--batch-size=32", "--flip-test", "true", "--augment.zoom", "0.3"]).config
    assert (config.batch_size, config.flip_test, config.augment) == (32, True, Augment(zoom=0.3))
    again = parse_args(["--config", str(finished / "config.yaml"), "--seed", "7"]).config
    assert again == replace(tiny(finished).resolved(), seed=7)


def test_ctrl_c_exits_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastfer.train.progress.Display", lambda: InterruptedDisplay(2, 1))
    assert main(arguments(tmp_path / "run")) == 130
    assert "--resume" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


BAD_OPTIONS = {
    "unknown option": (["--speed", "9"], "speed"),
    "unknown model": (["--model", "resnet"], "fgw_fer"),
    "unknown data": (["--data", "imagenet"], "drawn, fer2013"),
    "unknown backend": (["--backend", "magic"], "native"),
    "unknown schedule": (["--schedule", "magic"], "onecycle"),
    "unknown policy": (["--on-nan", "magic"], "skip"),
    "no number": (["--epochs", "many"], "epochs"),
    "no epochs": (["--epochs", "0"], "epochs: expected 1 or more, got 0"),
    "batch of one": (["--batch-size", "1"], "batch_size"),
    "negative rate": (["--lr", "-1"], "lr"),
    "smoothing is no share": (["--label-smoothing", "1"], "label_smoothing: expected 0 or more and below 1"),
    "average never moves": (["--ema", "1"], "ema: expected 0 or more and below 1"),
    "flip is no probability": (["--augment.flip", "2"], "augment.flip: expected 0 to 1"),
    "data without root": (["--data", "fer2013"], "root"),
    "missing data": (["--data", "fer2013", "--root", "/nowhere"], "/nowhere/fer2013.csv"),
    "too few images": (["--validation-images", "3"], "at least 7"),
    "missing config": (["--config", "/nowhere.yaml"], "nowhere.yaml"),
    "resume of nothing": (["--resume"], "holds no run"),
    "resume and overwrite": (["--resume", "--overwrite"], "both"),
}


@pytest.mark.parametrize(("more", "expected"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_exit_with_2_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    assert main(arguments(tmp_path / "run", *more)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert list(tmp_path.iterdir()) == []


def test_messages_name_the_option_as_the_trainer_spells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("happiness", "sadness")):
        for part in ("train", "val"):
            for side in (20, 30):
                save(tmp_path / "data" / part / name / f"{side}.png", face(number, side, side))
    arguments = ["--out", str(tmp_path / "run"), "--data", "image_folder", "--root", str(tmp_path / "data")]
    assert main(arguments) == 2
    assert "error: data_options.size: the images differ in size" in capsys.readouterr().err
    assert main([*arguments, "--data-options.fold", "3"]) == 2
    assert "error: data_options.fold: " in capsys.readouterr().err


def test_bad_data_names_row_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_text("emotion,pixels,Usage\n0,1 2 3,Training\n")
    assert main(arguments(tmp_path / "run", "--data", "fer2013", "--root", str(path))) == 2
    message = capsys.readouterr().err
    assert "line 2" in message
    assert "'pixels'" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["config.yaml", "last", "report.json"])
def test_a_folder_with_a_run_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    if part == "last":
        (out / "last").mkdir()
        (out / "last" / "state.json").write_text("{}")
    else:
        (out / part).write_text("{}")
    before = contents(out)
    assert main(arguments(out)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents(out) == before


def test_overwrite_keeps_other_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(out)) == 0
    (out / "notes.txt").write_text("mine")
    assert main([*arguments(out, "--overwrite"), "--epochs", "1"]) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert len(read_metrics(out)) == 1


def test_out_may_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="not a folder"):
        train(tiny(tmp_path / "run"))
    with pytest.raises(InputError, match="not a folder"):
        train(tiny(tmp_path / "run" / "below"))


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    assert main(arguments(tmp_path / "run")) == 2
    message = capsys.readouterr().err
    assert "torchmetrics" in message
    assert "fastfer[train]" in message
    assert list(tmp_path.iterdir()) == []


def test_exit_code_of_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastfer.train", "--model", "resnet", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "error: model: expected one of" in done.stderr
    assert "Traceback" not in done.stderr
