# SPDX-License-Identifier: Apache-2.0
"""The trainer: files, report, exact continuation, bad input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

import fastfer
from fastfer.data import BASIC_NAMES, Augment, Preprocess, drawn, load_dataset
from fastfer.models import load_weights, read_metadata
from fastfer.train import InputError, NonFiniteError, TrainConfig, state, train
from fastfer.train.__main__ import main
from fastfer.train.cli import parse_args
from fastfer.train.evaluate import Evaluator
from fastfer.train.loop import Trainer
from fastfer.train.objective import Targets
from fastfer.train.progress import Display

FILES = {"config.yaml", "metrics.csv", "report.json", "confusion.png", "best.safetensors", "last"}
STATE_FILES = {"weights.safetensors", "optimizer.safetensors", "state.json"}


def tiny(out: Path, **options: Any) -> TrainConfig:
    """Three steps an epoch, the last one of half a batch."""
    values: dict[str, Any] = {"epochs": 3, "batch_size": 8, "train_images": 20, "validation_images": 14, "threads": 1}
    return TrainConfig(out=str(out), **{**values, **options})


def arguments(out: Path, *more: str) -> list[str]:
    sizes = ["--train-images", "20", "--validation-images", "14", "--batch-size", "8", "--threads", "1"]
    return ["--out", str(out), "--epochs", "2", *sizes, *more]


class InterruptedDisplay(Display):
    """Ctrl-C in step ``step`` of epoch ``epoch``, counted over this display's life."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(Console(quiet=True))
        self.at = (epoch, step)
        self.epochs = 0

    @contextmanager
    def epoch(self, title: str, steps: int) -> Iterator[Callable[[float], None]]:
        self.epochs += 1
        done = 0

        def on_step(loss: float) -> None:
            nonlocal done
            done += 1
            if (self.epochs, done) == self.at:
                raise KeyboardInterrupt

        yield on_step


def interrupt(config: TrainConfig, epoch: int, step: int = 2) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, display=InterruptedDisplay(epoch, step))


def read_metrics(out: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without the speeds, which no two runs share."""
    with (out / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if "per_second" not in k} for row in csv.DictReader(file)]


def assert_same_run(a: Path, b: Path) -> None:
    """Equal bits in every tensor (the order of a safetensors header is not fixed), equal numbers in the other files."""
    for name in ("best.safetensors", "last/weights.safetensors"):
        headers = [read_metadata(out / name) for out in (a, b)]
        for header in headers:
            header["config"].pop("epochs")  # may grow under the plateau schedule
        assert headers[0] == headers[1]
    for name in ("best.safetensors", "last/weights.safetensors", "last/optimizer.safetensors"):
        first, second = load_file(a / name), load_file(b / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), f"{name}: {key}"
    assert read_metrics(a) == read_metrics(b)
    states = [json.loads((out / "last" / "state.json").read_text()) for out in (a, b)]
    assert states[0]["scheduler"] == states[1]["scheduler"]
    assert states[0]["groups"] == states[1]["groups"]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(out))
    return out


# what a run leaves


def test_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    assert {path.name for path in (finished / "last").iterdir()} == STATE_FILES
    assert Image.open(finished / "confusion.png").size[0] > 400


def test_metrics_have_a_row_per_epoch(finished: Path) -> None:
    rows = read_metrics(finished)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert float(row["loss"]) > 0
        recalls = [float(row[f"recall_{name}"]) for name in BASIC_NAMES]
        assert sum(recalls) / 7 == pytest.approx(float(row["accuracy"]), abs=1e-5)  # 2 images of each class


def test_report(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    rows = read_metrics(finished)
    best = max(rows, key=lambda row: float(row["accuracy"]))
    assert report["best"]["accuracy"] == float(best["accuracy"])
    assert report["best"]["epoch"] == int(best["epoch"])
    assert report["last"]["epoch"] == 3
    assert set(report["best"]["recall"]) == set(BASIC_NAMES)
    confusion = torch.tensor(report["last"]["confusion"])
    assert confusion.sum(1).tolist() == [2] * 7
    assert confusion.diagonal().sum() / 14 == pytest.approx(report["last"]["accuracy"])
    assert report["parameters"] == 64_176
    assert report["images"]["train"] == load_dataset("drawn", train_images=20, validation_images=14)["train"].counts()
    assert report["images_per_second"]["training"] > 0
    assert report["images_per_second"]["evaluation"] > 0
    assert report["backends"] == fastfer.backend.plan()
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["threads"] == 1
    assert report["config"]["lr"] > 0
    assert report["seed"] == 0


def test_best_weights_reproduce_the_best_score(finished: Path) -> None:
    model = load_weights(finished / "best.safetensors")
    metadata = read_metadata(finished / "best.safetensors")
    assert model.class_names == BASIC_NAMES
    assert str(finished.parent) not in json.dumps(metadata)
    validation = load_dataset("drawn", train_images=20, validation_images=14)["validation"]
    preprocess = Preprocess.from_metadata(metadata)
    scores = Evaluator(validation, preprocess)(model)
    report = json.loads((finished / "report.json").read_text())
    assert scores.accuracy == report["best"]["accuracy"] == metadata["validation"]["accuracy"]
    assert scores.loss == pytest.approx(report["best"]["loss"], rel=1e-5)


def test_the_seed_decides(finished: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "same"))
    assert_same_run(finished, tmp_path / "same")
    train(tiny(tmp_path / "other", seed=1))
    assert read_metrics(finished) != read_metrics(tmp_path / "other")


# continuing


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


# numbers


def test_lower_loss_after_some_epochs(tmp_path: Path) -> None:
    report = train(tiny(tmp_path / "run", epochs=4, train_images=56, lr=2e-3))
    rows = read_metrics(tmp_path / "run")
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 0.1
    assert report["config"]["lr"] == 2e-3


class Fixed(nn.Module):
    """Logits by the brightness of the image's left half; sees nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = x[..., : x.shape[3] // 2].mean((1, 2, 3))
        return torch.stack([left, -left], 1)


def test_evaluator_counts() -> None:
    faces = drawn.load(7, 7)["train"].images.copy()
    faces[:, :, :24], faces[:, :, 24:] = 0, 255
    faces[:3] = faces[:3, :, ::-1]  # bright left: class 0
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1]).numpy()
    split = replace(drawn.load(7, 7)["train"], images=faces, labels=labels, names=("bright", "dark"))
    preprocess = Preprocess((0.5,), (0.5,))
    scores = Evaluator(split, preprocess)(Fixed())
    assert scores.confusion == ((2, 0), (1, 4))
    assert scores.accuracy == pytest.approx(6 / 7)
    assert scores.recall == (1.0, 0.8)
    assert scores.macro_f1 == pytest.approx((2 * 2 / 5 + 2 * 4 / 9) / 2, abs=1e-6)
    # The mirror image says the opposite, so the average is undecided and the loss that of a coin.
    assert Evaluator(split, preprocess, flip_test=True)(Fixed()).loss == pytest.approx(0.6931, abs=1e-3)


def make_trainer(**options: Any) -> Trainer:
    split = drawn.load(14, 7)["train"]
    torch.manual_seed(0)
    config = tiny(Path("unused"), **options).resolved()
    return Trainer(fastfer.create_model("fgw_fer"), split, Preprocess.of(split), config)


def poisoned_trainer(on_nan: str) -> tuple[Trainer, torch.Tensor, torch.Tensor]:
    trainer = make_trainer(on_nan=on_nan)
    trainer.model.train()
    x = torch.randn(8, 1, 48, 48)
    x[3, 0, 5, 5] = float("nan")
    return trainer, x, torch.arange(8) % 7


def test_a_skipped_step_leaves_no_trace() -> None:
    trainer, x, labels = poisoned_trainer("skip")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer._step(x, Targets(labels), "here") is None
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    loss = trainer._step(torch.randn(8, 1, 48, 48), Targets(labels), "here")
    assert loss is not None
    assert not torch.equal(trainer.model.state_dict()["head.weight"], before["head.weight"])


def test_the_average_follows_the_weights() -> None:
    trainer = make_trainer(ema=0.5)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train_epoch(1)
    assert trainer.average is not None
    trainer.average.model.load_state_dict(before)
    trainer.average.update(1)
    weight = 1 - 2 / 11  # the ramp is below the decay in the first steps
    for name, value in trainer.evaluated.state_dict().items():
        now = trainer.model.state_dict()[name]
        expected = torch.lerp(before[name], now, weight) if value.is_floating_point() else now
        assert torch.equal(value, expected), name


def test_label_smoothing_changes_the_loss() -> None:
    plain, smooth = (make_trainer(label_smoothing=s).train_epoch(1).loss for s in (0.0, 0.5))
    assert smooth != plain


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    trainer, x, labels = poisoned_trainer("stop")
    with pytest.raises(NonFiniteError, match="nan at epoch 2, step 7"):
        trainer._step(x, Targets(labels), "epoch 2, step 7 of 9")


def test_divergence_exits_with_1_and_names_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "run", "--lr", "1e38")) == 1
    assert "epoch 1" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml"}


# the command line


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
