# SPDX-License-Identifier: Apache-2.0
"""Continuing a run bit for bit, and refusing to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import FILES, STATE_FILES, arguments, assert_same_run, contents, interrupt, read_metrics, tiny

from fastfer.data import Augment
from fastfer.train import InputError, TrainConfig, state, train
from fastfer.train.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("schedule", "ema"), [("onecycle", 0.0), ("cosine", 0.9), ("plateau", 0.0)])
def test_resume_is_bit_identical(tmp_path: Path, schedule: str, ema: float) -> None:
    """Interrupted in the middle of an epoch, which is then done again from its start."""
    options: dict[str, Any] = {"schedule": schedule, "ema": ema, "augment": Augment(erase=0.5), "epochs": 2}
    train(tiny(tmp_path / "whole", **options))
    interrupt(tiny(tmp_path / "parts", **options), epoch=2)
    assert [row["epoch"] for row in read_metrics(tmp_path / "parts")] == ["1"]
    torch.manual_seed(12345)
    report = train(tiny(tmp_path / "parts", **options), resume=True)
    assert report["epochs"] == {"done": 2, "planned": 2}
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resume_before_the_first_epoch_ended_begins_again(finished: Path, tmp_path: Path) -> None:
    interrupt(tiny(tmp_path / "run"), epoch=1)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml"}
    train(tiny(tmp_path / "run"), resume=True)
    assert_same_run(finished, tmp_path / "run")


def test_resume_of_a_finished_run_changes_nothing(finished: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run"))
    before = contents(tmp_path / "run")
    train(tiny(tmp_path / "run"), resume=True)
    assert contents(tmp_path / "run") == before


def test_resume_takes_its_options_from_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(out, "--schedule", "plateau", "--seed", "5")) == 0
    moved = out.rename(tmp_path / "moved")
    assert main(["--resume", "--out", str(moved), "--epochs", "3"]) == 0
    train(tiny(tmp_path / "whole", schedule="plateau", seed=5))
    assert_same_run(tmp_path / "whole", moved)


def test_resume_recovers_from_a_crash_between_the_renames(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupt(tiny(out), epoch=3)
    (out / "last").rename(out / "last.old")
    (out / "last.new").mkdir()
    train(tiny(out), resume=True)
    assert_same_run(finished, out)
    assert {path.name for path in out.iterdir()} == FILES


def test_a_failing_disk_leaves_the_earlier_epoch_whole(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    interrupt(tiny(out), epoch=2)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full)
        assert main(["--resume", "--out", str(out)]) == 1
        assert "No space left" in capsys.readouterr().err
    assert not (out / "last.new").exists()
    train(tiny(out), resume=True)
    assert_same_run(finished, out)


RESUME_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "other rate": ({"lr": 0.1}, "lr: 0.1 instead of"),
    "other length": ({"epochs": 9}, "epochs: 9 instead of 3"),
    "other data": ({"train_images": 21}, "train_images"),
}


@pytest.mark.parametrize(("options", "expected"), RESUME_ERRORS.values(), ids=RESUME_ERRORS)
def test_resume_with_other_options_is_refused(finished: Path, options: dict[str, Any], expected: str) -> None:
    before = contents(finished)
    with pytest.raises(InputError, match=expected):
        train(tiny(finished, **options), resume=True)
    assert contents(finished) == before


@pytest.mark.parametrize("name", sorted(STATE_FILES))
def test_resume_from_a_damaged_state_is_refused(tmp_path: Path, finished: Path, name: str) -> None:
    out = tmp_path / "run"
    (out / "last").mkdir(parents=True)
    for file, content in contents(finished).items():
        (out / file).write_bytes(content)
    damaged = out / "last" / name
    damaged.write_bytes(damaged.read_bytes()[:200])
    before = contents(out)
    with pytest.raises(InputError, match="last"):
        train(tiny(out), resume=True)
    assert contents(out) == before


def test_resume_with_changed_data_is_refused(tmp_path: Path) -> None:
    rows = [f"{i % 7},{' '.join([str(i)] * 2304)},{'Training' if i < 7 else 'PublicTest'}" for i in range(14)]
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(["emotion,pixels,Usage", *rows]))
    config = TrainConfig(data="fer2013", root=str(path), out=str(tmp_path / "run"), epochs=1, threads=1)
    train(config)
    path.write_text("\n".join(["emotion,pixels,Usage", rows[0].replace("0 0", "0 9", 1), *rows[1:]]))
    with pytest.raises(InputError, match="is not the data"):
        train(config, resume=True)


def test_resume_from_another_layout_says_what_to_do(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "last").mkdir(parents=True)
    state_file = json.loads((finished / "last" / "state.json").read_text())
    (out / "last" / "state.json").write_text(json.dumps({**state_file, "layout": 1}))
    with pytest.raises(InputError, match="expected layout 2, got 1: another version of fastfer wrote it"):
        train(tiny(out), resume=True)
