# SPDX-License-Identifier: Apache-2.0
"""The trainer: files, report, numbers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from data_trees import raf_official
from train_runs import FILES, STATE_FILES, arguments, assert_same_run, read_metrics, tiny

import fastfer
from fastfer.data import BASIC_NAMES, DataOptions, Preprocess, drawn, load_dataset
from fastfer.models import load_weights, read_metadata
from fastfer.train import NonFiniteError, TrainConfig, train
from fastfer.train.__main__ import main
from fastfer.train.evaluate import Evaluator
from fastfer.train.loop import Trainer
from fastfer.train.objective import Targets

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_no_path_of_the_machine_leaves_with_the_weights(finished: Path, tmp_path: Path) -> None:
    """Files that options name are recorded by their bare name and digest."""
    hidden = tmp_path / "secret folder"
    root = raf_official(hidden / "raf", train=28, test=14)
    listed = hidden / "names.txt"
    listed.write_text("\n".join(f"test_{k:04}.jpg" for k in range(1, 15)))
    weights = hidden / "start.safetensors"
    weights.write_bytes((finished / "best.safetensors").read_bytes())
    config = TrainConfig(
        data="raf_db",
        root=str(root),
        out=str(hidden / "run"),
        epochs=1,
        batch_size=16,
        threads=1,
        data_options=DataOptions(size=48, channels=1, subset=str(listed), validation="test"),
        from_weights=str(weights),
        teacher=str(weights),
    )
    report = train(config)
    header = read_metadata(hidden / "run" / "best.safetensors")
    for entry in (report, header, json.loads((hidden / "run" / "report.json").read_text())):
        assert "secret folder" not in json.dumps(entry)
        assert entry["config"]["data_options"]["subset"] == {
            "name": "names.txt",
            "sha256": hashlib.sha256(listed.read_bytes()).hexdigest(),
        }
        assert entry["config"]["teacher"]["name"] == "start.safetensors"
        assert entry["config"]["from_weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert "secret folder" not in (hidden / "run" / "best.safetensors").read_bytes().decode("latin-1")


def test_the_seed_decides(finished: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "same"))
    assert_same_run(finished, tmp_path / "same")
    train(tiny(tmp_path / "other", seed=1))
    assert read_metrics(finished) != read_metrics(tmp_path / "other")


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


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")
@pytest.mark.parametrize(("bad", "fails"), [((2, 3, 4), True), ((1, 2, 3, 4), True), ((1, 2, 3), False), ((4,), False)])
def test_skipping_every_later_step_fails(monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...], fails: bool) -> None:
    """Steps from 1 to 4 whose gradients are not finite: once all that follow are such, nothing is learnt any more."""
    trainer = make_trainer(on_nan="skip", batch_size=4)
    steps = iter(range(1, 5))
    monkeypatch.setattr(trainer, "_finite_gradients", lambda: next(steps) not in bad)
    if not fails:
        assert trainer.train_epoch(1).skipped == len(bad)
        return
    with pytest.raises(NonFiniteError, match=f"the last {len(bad)} of 4 steps of epoch 1 were skipped"):
        trainer.train_epoch(1)


def test_divergence_exits_with_1_and_names_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "run", "--lr", "1e38")) == 1
    assert "epoch 1" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml"}
