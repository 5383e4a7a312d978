# SPDX-License-Identifier: Apache-2.0
"""Stages, frozen layers, early stops, optimisers and schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import assert_same_run, interrupt, read_metrics, tiny

import fastfer
from fastfer.data import Preprocess, drawn
from fastfer.models import PattLite
from fastfer.nn import BatchNorm2d
from fastfer.train import InputError, TrainConfig, train
from fastfer.train.freezing import StageModes, freeze, keras_layers
from fastfer.train.loop import Trainer
from fastfer.train.optim import Schedule, make_optimizer
from fastfer.train.options import EarlyStop, InverseTime, LossOptions, Plateau, Stage
from fastfer.train.stopping import exhausted, position

pytestmark = pytest.mark.usefixtures("one_thread")


# layers by Keras' count


@pytest.fixture(scope="module")
def patt_lite() -> PattLite:
    model = fastfer.create_model("patt_lite", num_classes=7)
    assert isinstance(model, PattLite)
    return model


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_backbone_has_as_many_layers_as_in_keras() -> None:
    """conv_dw_9_relu is the 29th layer from the end of Keras' 87 (with the padding before conv1)."""
    whole = fastfer.create_model("patt_lite", extraction="none")
    assert len(keras_layers(whole.backbone)) == 87  # type: ignore[arg-type]
    assert len(keras_layers(fastfer.create_model("patt_lite").backbone)) == 87 - 28  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("unfreeze", "first"),
    [
        (2, None),
        (3, "9.weight"),
        (6, "8.pointwise.weight"),
        (40, "3.pointwise.weight"),
        (46, "2.pointwise.weight"),
        (49, "2.depthwise.weight"),
        (59, "0.weight"),
        (99, "0.weight"),
    ],
)
def test_the_last_layers_train(patt_lite: PattLite, unfreeze: int, first: str | None) -> None:
    """The depthwise half of block 9 is three layers, block 8 six, the padding before a stride of 2 one."""
    norms = freeze(patt_lite, unfreeze)
    names = [name.removeprefix("backbone.") for name in sorted(trained(patt_lite)) if name.startswith("backbone.")]
    assert not any("norm" in name for name in names)
    assert len(norms) == 18
    expected = [
        name.removeprefix("backbone.")
        for name, _ in patt_lite.named_parameters()
        if name.startswith("backbone.") and "norm" not in name
    ]
    assert set(names) == (set() if first is None else set(expected[expected.index(first) :]))
    assert {name for name in trained(patt_lite) if not name.startswith("backbone.")} == {
        name for name, _ in patt_lite.named_parameters() if not name.startswith("backbone.")
    }


def test_a_frozen_backbone_stays_as_it_was_and_the_rest_learns() -> None:
    split = drawn.load(14, 7)["train"]
    torch.manual_seed(0)
    model = fastfer.create_model("patt_lite", in_chans=3)
    preprocess = Preprocess.symmetric(3, size=(224, 224), colour="rgb")
    config = TrainConfig(batch_size=7, epochs=1, lr=1e-3).resolved()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model, split, preprocess, config, Stage(epochs=1, unfreeze=0, spatial_dropout=0.2, dropout=0.3))
    trainer.train_epoch(1)
    after = model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("backbone.") for name in moved)
    assert {"patches.0.depthwise.weight", "classifier.norm.running_mean", "head.weight"} <= moved
    assert isinstance(model.classifier, torch.nn.Module)
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.3]
    trainer.modes.undo()
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_patches_are_dropped_whole(patt_lite: PattLite) -> None:
    modes = StageModes(patt_lite, Stage(spatial_dropout=0.5))
    x = torch.randn(2, 512, 14, 14).contiguous(memory_format=torch.channels_last)
    modes.train()
    dropped = (patt_lite.patches(x) == 0).flatten(2).all(2).double().mean()
    assert dropped > 0.3
    patt_lite.eval()
    kept = patt_lite.patches(x)
    modes.undo()
    assert torch.equal(kept, patt_lite.patches(x))


def test_dropout_after_the_attention(patt_lite: PattLite) -> None:
    """Half of the embedding, doubled: what the last layer of the second stage reads; none in evaluation."""
    modes = StageModes(patt_lite, Stage(attention_dropout=0.5))
    x = torch.randn(64, 256, 2, 2)
    patt_lite.eval()
    whole = patt_lite.classifier(x)
    patt_lite.classifier.training = True  # itself alone, so that its norm keeps its statistics
    dropped = patt_lite.classifier(x)
    kept = dropped != 0
    assert 0.4 < kept.double().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    modes.undo()
    assert torch.equal(patt_lite.classifier(x), whole)
    plain = fastfer.create_model("patt_lite", attention="none")
    with pytest.raises(
        ValueError, match="attention_dropout: expected 0 for patt_lite, which has no attention classifier"
    ):
        StageModes(plain, Stage(attention_dropout=0.5))


def test_networks_without_backbone_refuse() -> None:
    with pytest.raises(ValueError, match="fgw_fer, which has no pretrained backbone"):
        freeze(fastfer.create_model("fgw_fer"), 3)
    with pytest.raises(ValueError, match="fgw_fer, which has no patches"):
        StageModes(fastfer.create_model("fgw_fer"), Stage(spatial_dropout=0.5))
    with pytest.raises(ValueError, match="frozen layers would keep random weights"):
        TrainConfig(model="patt_lite", unfreeze=0)


def test_a_second_stage_that_cannot_be_is_refused_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spatial_dropout: expected 0 for fgw_fer"):
        train(tiny(tmp_path / "run", fine_tune=Stage(epochs=1, spatial_dropout=0.5)))
    assert list(tmp_path.iterdir()) == []


def test_every_norm_of_the_backbone_is_held(patt_lite: PattLite) -> None:
    modes = StageModes(patt_lite, Stage(unfreeze=0))
    modes.train()
    assert not any(m.training for m in patt_lite.backbone.modules() if isinstance(m, BatchNorm2d))
    assert all(m.training for m in patt_lite.classifier.modules())
    modes.undo()


# stopping


@pytest.mark.parametrize(
    ("scores", "stop", "expected"),
    [
        ([1, 2, 3, 3], EarlyStop(1), True),
        ([1, 2, 3, 3], EarlyStop(2), False),
        ([1, 1.5, 1.9], EarlyStop(2, min_delta=1.0), True),
        ([3, 2, 1], EarlyStop(0), False),
        ([], EarlyStop(1), False),
        ([1, float("nan"), float("nan")], EarlyStop(2), True),
    ],
)
def test_exhausted(scores: list[float], stop: EarlyStop, expected: bool) -> None:
    assert exhausted(scores, stop) is expected


def test_position_follows_the_history() -> None:
    stages = (Stage(epochs=3, stop=EarlyStop(1, "loss")), Stage(epochs=1))

    def row(stage: int, loss: float) -> dict[str, Any]:
        return {"stage": stage, "validation_loss": loss, "accuracy": 0.5}

    assert position(stages, []) == (0, 0)
    assert position(stages, [row(1, 2.0)]) == (0, 1)
    assert position(stages, [row(1, 2.0), row(1, 2.0)]) == (1, 0)
    assert position(stages, [row(1, 2.0), row(1, 1.0), row(1, 0.5), row(2, 0.5)]) is None


def test_an_early_stop_ends_the_run(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", epochs=9, stop=EarlyStop(1, "loss", min_delta=100.0))
    report = train(config)
    assert report["epochs"] == {"done": 2, "planned": 9}
    train(config, resume=True)
    assert len(read_metrics(tmp_path / "run")) == 2


# two stages


SECOND = Stage(epochs=2, lr=1e-4, schedule="inverse_time", inverse_time=InverseTime(1, 1))
STAGED: dict[str, Any] = {"epochs": 2, "ema": 0.5, "fine_tune": SECOND}


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "staged"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tiny(out, **STAGED))
    torch.set_num_threads(threads)
    return out


def test_the_second_stage_has_its_own_schedule(staged: Path) -> None:
    rows = read_metrics(staged)
    assert [row["stage"] for row in rows] == ["1", "1", "2", "2"]
    assert [float(row["lr"]) for row in rows[2:]] == [1e-4, 5e-5]
    assert json.loads((staged / "report.json").read_text())["epochs"] == {"done": 4, "planned": 4}


def test_the_second_stage_begins_with_the_best_weights(tmp_path: Path) -> None:
    """A second stage whose rate is nothing keeps the best of the first."""
    quiet = Stage(epochs=1, lr=1e-30, schedule="constant")
    train(tiny(tmp_path / "run", epochs=3, weight_decay=0.0, fine_tune=quiet, lr=0.05))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    best, last = (load_file(tmp_path / "run" / name) for name in ("best.safetensors", "last/weights.safetensors"))
    assert report["best"]["epoch"] <= 3
    assert all(torch.equal(best[key], last[key]) for key in best if key.endswith("weight"))


@pytest.mark.parametrize("epoch", [3, 4])
def test_resume_in_any_stage_is_bit_identical(tmp_path: Path, staged: Path, epoch: int) -> None:
    interrupt(tiny(tmp_path / "parts", **STAGED), epoch=epoch)
    train(tiny(tmp_path / "parts", **STAGED), resume=True)
    assert_same_run(staged, tmp_path / "parts")


JOINT: dict[str, dict[str, Any]] = {
    "joint loss": {"loss": {"center": 0.1}, "model": "sepconv_attention"},
    "sgd, clipped": {"optimizer": "sgd", "clip_norm": 0.1, "lr": 0.01},
}


@pytest.mark.parametrize("options", JOINT.values(), ids=JOINT)
def test_resume_keeps_centres_and_moments(tmp_path: Path, options: dict[str, Any]) -> None:
    values = {**options, "loss": LossOptions(**options.get("loss", {})), "epochs": 2}
    train(tiny(tmp_path / "whole", **values))
    interrupt(tiny(tmp_path / "parts", **values), epoch=2)
    train(tiny(tmp_path / "parts", **values), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


# optimisers and schedules


def rates(
    stage: Stage, epochs: int, steps: int = 2, losses: tuple[float, ...] = (), accuracy: float = 0.5
) -> list[float]:
    optimizer = make_optimizer("sgd", [torch.zeros(1, requires_grad=True)], stage.lr, 0.0, 0.0)
    schedule = Schedule(optimizer, stage, steps)
    seen = []
    for epoch in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        schedule.end_epoch(losses[epoch] if losses else 1.0, accuracy=0.5)
    return seen


def test_rates_of_the_schedules() -> None:
    assert rates(Stage(epochs=3, lr=0.1, schedule="constant"), 3) == [0.1, 0.1, 0.1]
    inverse = Stage(epochs=3, lr=1.0, schedule="inverse_time", inverse_time=InverseTime(2.0, 4.0))
    assert rates(inverse, 3) == pytest.approx([1.0, 1 / 1.5, 1 / 2])
    cosine = rates(Stage(epochs=4, lr=1.0, schedule="cosine"), 4)
    assert cosine == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


@pytest.mark.parametrize("epochs", range(1, 7))
def test_one_cycle_of_any_length(epochs: int) -> None:
    assert len(rates(Stage(epochs=epochs, lr=1.0, schedule="onecycle"), epochs, steps=1)) == epochs


def test_plateau_counts_as_keras() -> None:
    plateau = Stage(epochs=9, lr=1.0, schedule="plateau", plateau=Plateau(patience=2, min_delta=0.1, min_lr=0.05))
    losses = (2.0, 1.0, 0.95, 0.95, 0.95, 0.95, 0.5)
    assert rates(plateau, 7, losses=losses) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.05])
    on_accuracy = Stage(epochs=9, lr=1.0, schedule="plateau", plateau=Plateau(monitor="accuracy", patience=1))
    assert rates(on_accuracy, 3, losses=(3.0, 2.0, 1.0)) == pytest.approx([1, 1, 0.1])


def test_clipping_bounds_the_step() -> None:
    split = drawn.load(7, 7)["train"]

    def moved(clip: float) -> float:
        torch.manual_seed(0)
        model = fastfer.create_model("fgw_fer")
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        options: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
        config = TrainConfig(batch_size=7, lr=1.0, clip_norm=clip, **options).resolved()
        Trainer(model, split, Preprocess.of(split), config).train_epoch(1)
        return float((torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm())

    assert moved(0.5) == pytest.approx(0.5, rel=1e-3)
    assert moved(0.0) > 0.6
