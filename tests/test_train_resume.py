# SPDX-License-Identifier: Apache-2.0
"""Continuing a run bit for bit, and refusing to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import FILES, STATE_FILES, arguments, assert_same_run, contents, interrupt, read_metrics, tiny

from fastfer._files import file_digest
from fastfer.data import Augment
from fastfer.models import load_weights, read_metadata, save_weights
from fastfer.train import InputError, TrainConfig, state, train
from fastfer.train.__main__ import main
from fastfer.train.evaluate import Evaluator
from fastfer.train.folder import FolderLock

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
        patch.setattr(state, "write_bytes", full)
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
    with pytest.raises(InputError, match="expected layout 3, got 1: another version of fastfer wrote it"):
        train(tiny(out), resume=True)


# what is lost or was exchanged


def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_resume_without_the_saved_state_is_refused(finished: Path, tmp_path: Path) -> None:
    """It would begin at epoch 1 and put weaker weights in the place of the best."""
    out = copied(finished, tmp_path)
    shutil.rmtree(out / "last")
    before = contents(out)
    with pytest.raises(InputError, match=r"no last/ to continue from; .* --from .*best.safetensors"):
        train(tiny(out), resume=True)
    assert contents(out) == before
    (out / "best.safetensors").unlink()  # then no start from it is offered
    with pytest.raises(InputError, match=r"no last/ to continue from, nor weights; --overwrite begins anew$"):
        train(tiny(out), resume=True)


def test_best_weights_of_the_saved_epoch_are_written_again(tmp_path: Path) -> None:
    """As after a crash between the two files, or where someone has moved the best weights away."""
    out = tmp_path / "run"
    train(tiny(out, epochs=1))
    want = load_file(out / "best.safetensors"), read_metadata(out / "best.safetensors")
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"half"), _other_weights):
        damage(out / "best.safetensors")
        train(tiny(out, epochs=1), resume=True)
        got = load_file(out / "best.safetensors"), read_metadata(out / "best.safetensors")
        assert got[1] == want[1]
        assert all(torch.equal(value, got[0][key]) for key, value in want[0].items())


def _other_weights(path: Path) -> None:
    model, header = load_weights(path), read_metadata(path)
    torch.nn.init.ones_(next(model.parameters()))
    save_weights(model, path, header)


def test_lost_best_weights_of_an_earlier_epoch_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, accuracies = tmp_path / "run", iter((0.9, 0.5, 0.4))
    score = Evaluator.__call__
    monkeypatch.setattr(
        Evaluator, "__call__", lambda self, *given: replace(score(self, *given), accuracy=next(accuracies))
    )
    train(tiny(out, schedule="constant", epochs=2))
    config = tiny(out, schedule="constant", epochs=3)
    kept = (out / "best.safetensors").read_bytes()
    _other_weights(out / "best.safetensors")
    with pytest.raises(InputError, match="weights of epoch 1, is not the file that the run wrote"):
        train(config, resume=True)
    (out / "best.safetensors").unlink()
    with pytest.raises(InputError, match=r"weights of epoch 1, is missing: .* those of epoch 2: --from .*last"):
        train(config, resume=True)
    (out / "best.safetensors").write_bytes(kept)
    assert train(config, resume=True)["epochs"]["done"] == 3


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", sorted(STATE_FILES))
def test_a_flipped_bit_is_noticed(finished: Path, tmp_path: Path, name: str) -> None:
    out = copied(finished, tmp_path)
    _flip(out / "last" / name)
    before = contents(out)
    with pytest.raises(InputError, match=rf"{name}"):
        train(tiny(out), resume=True)
    assert contents(out) == before


def test_foreign_weights_in_the_saved_state_are_noticed(finished: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path)
    _other_weights(out / "last" / "weights.safetensors")
    with pytest.raises(InputError, match=r"weights.safetensors is not the file that the run wrote"):
        train(tiny(out), resume=True)


def signed(out: Path, change: Callable[[dict[str, Any]], object] = lambda state: None) -> None:
    """Digests as whoever means harm would make them."""
    path = out / "last" / "state.json"
    content = json.loads(path.read_text())
    content["files"] = {name: file_digest(out / "last" / name) for name in content["files"]}
    change(content)
    content.pop("digest")
    path.write_text(json.dumps({**content, "digest": state._digest(content)}))


MOMENTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "int8": (lambda t: t.to(torch.int8), "expected torch.float32"),
    "one element": (lambda t: t.flatten()[:1].clone(), r"expected .*, got torch.float32 \(1,\)"),
    "nan": (lambda t: torch.full_like(t, float("nan")), "expected finite numbers"),
}


@pytest.mark.parametrize(("change", "message"), MOMENTS.values(), ids=MOMENTS)
def test_moments_are_checked(
    finished: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    out = copied(finished, tmp_path)
    path = out / "last" / "optimizer.safetensors"
    moments = load_file(path)
    key = next(key for key, value in moments.items() if key.endswith("exp_avg") and value.ndim == 4)
    save_file({**moments, key: change(moments[key])}, path)
    signed(out)
    with pytest.raises(InputError, match=f"{key}: {message}"):
        train(tiny(out), resume=True)


STATES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no history": (lambda s: s["record"].update(history=7), "none of its history"),
    "empty history": (lambda s: s["record"].update(history=[]), "none of its history"),
    "rows of other things": (lambda s: s["record"].update(history=[7]), "none of its history"),
    "no best epoch": (lambda s: s["record"].update(best={}), "none of its best"),
    "groups of text": (lambda s: s.update(groups="x"), "cannot be continued from"),
    "scheduler of text": (lambda s: s.update(scheduler="x"), "cannot be continued from"),
    "files elsewhere": (lambda s: s["files"].update({"../../passwd": "0"}), "damaged or changed"),
}


@pytest.mark.parametrize(("change", "message"), STATES.values(), ids=STATES)
def test_states_of_other_values_are_refused(
    finished: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    out = copied(finished, tmp_path)
    signed(out, change)
    with pytest.raises(InputError, match=message):
        train(tiny(out), resume=True)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"record": ' + "9" * 5000 + "}"], ids=["deep", "long number"])
def test_json_that_is_too_much_is_refused(finished: Path, tmp_path: Path, text: str) -> None:
    out = copied(finished, tmp_path)
    (out / "last" / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"cannot read .*state\.json"):
        train(tiny(out), resume=True)


# two runs and one folder


def test_two_trainers_do_not_share_a_folder(finished: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path)
    before = contents(out)
    with FolderLock(out):
        held = contents(out)
        with pytest.raises(InputError, match=rf"out: process {os.getpid()} on .* is training in"):
            train(tiny(out), overwrite=True)
        assert contents(out) == held
    assert contents(out) == before


def test_of_two_trainers_started_at_once_one_wins(tmp_path: Path) -> None:
    """Every pair: one ends well, the other with exit code 2, and the files are those of the first."""
    out = tmp_path / "run"
    commands = [[sys.executable, "-m", "fastfer.train", *arguments(out, "--seed", str(seed))] for seed in (1, 2)]
    started = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in commands]
    errors = [process.communicate(timeout=300)[1] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 2], errors
    winner = codes.index(0) + 1
    assert read_metadata(out / "best.safetensors")["config"]["seed"] == winner
    assert json.loads((out / "report.json").read_text())["seed"] == winner
    assert {path.name for path in out.iterdir()} == FILES


def test_a_run_that_came_between_is_noticed(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder was empty at the first look and holds another's run when the lock is had."""
    out = tmp_path / "run"
    enter = FolderLock.__enter__

    def late(self: FolderLock) -> FolderLock:
        shutil.copytree(finished, out, dirs_exist_ok=True)
        return enter(self)

    monkeypatch.setattr(FolderLock, "__enter__", late)
    with pytest.raises(InputError, match="holds a run already"):
        train(tiny(out))
    assert contents(out) == contents(finished)


def test_what_killed_runs_left_is_cleared(finished: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path)
    left = [".best.safetensors.0123456789ab.tmp", ".report.json.77.tmp"]
    for name in [*left, ".notes.tmp"]:
        (out / name).write_text("half")
    (out / "last.new").mkdir()
    train(tiny(out), resume=True)
    assert {path.name for path in out.iterdir()} == {*FILES, ".notes.tmp"}
