# SPDX-License-Identifier: Apache-2.0
"""Progressive resolution: which epochs see which size, and that everything else knows the final one alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import arguments, assert_same_run, interrupt, read_metrics, tiny

import fastfer
from fastfer.data import InputSpec, Preprocess, drawn
from fastfer.engine.trained import trained
from fastfer.evaluate import evaluate
from fastfer.models import load_weights, read_metadata
from fastfer.train import InputError, TrainConfig, configure, train
from fastfer.train.__main__ import main
from fastfer.train.loop import Trainer
from fastfer.train.options import EarlyStop, Input, Stage
from fastfer.train.resolution import Phase, last_begins, parse_resolution, total_epochs
from fastfer.train.stopping import position

pytestmark = pytest.mark.usefixtures("one_thread")

RISING: dict[str, Any] = {"epochs": None, "resolution": "24:1,32:2"}


# values


def test_phases() -> None:
    assert parse_resolution(None) == ()
    assert parse_resolution("112:40,224:10") == (Phase(112, 40), Phase(224, 10))
    assert parse_resolution("32:1, 48:2, 64") == (Phase(32, 1), Phase(48, 2), Phase(64, None))
    assert [total_epochs(parse_resolution(text)) for text in ("32:1,48:2", "32:1,48")] == [3, None]
    assert last_begins(parse_resolution("32:1,48:2,64")) == 3


BAD = ("", "48", "48:3", "48,64:2", "64:2,48:2", "48:2,48:2", "0:2,48", "48:0,64", "48:2;64:3", "48:-1,64", "a:b,64")


@pytest.mark.parametrize("text", BAD)
def test_other_forms_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match="resolution: expected SIZE:EPOCHS"):
        TrainConfig(resolution=text)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"epochs": 5, "resolution": "24:1,32:2"}, r"epochs that add up to epochs \(5\), got 3"),
    "nothing left": ({"epochs": 2, "resolution": "24:2,32"}, r"before the last size than epochs \(2\), got 2"),
    "size": ({"resolution": "24:1,32:2", "input": Input(size=48)}, r"a last size of input.size \(48\), got 32"),
    "stage": ({"fine_tune": Stage(epochs=3, resolution="24:1,32:1")}, r"add up to epochs \(3\), got 2"),
    "no stage": ({"fine_tune": Stage(resolution="24:1,32:1")}, "fine_tune.epochs beside it"),
}


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_epochs_and_size_follow_from_the_phases() -> None:
    config = TrainConfig(resolution="24:1,32:2").resolved()
    assert (config.epochs, config.input.size) == (3, 32)
    assert TrainConfig(resolution="24:1,32", data="drawn").resolved().epochs == 5
    assert config.resolved() == config
    assert config.stages()[0].phases == (Phase(24, 1), Phase(32, 2))
    second = TrainConfig(fine_tune=Stage(epochs=3, resolution="24:1,32")).resolved()
    assert second.input.size == 32


def test_a_value_of_the_command_line_and_of_a_recipe() -> None:
    recipe = configure("best", model="fgw_fer", data="fer2013", resolution="32:100,48")
    assert (recipe.resolved().epochs, recipe.input.size) == (140, 48)
    with pytest.raises(InputError, match=r"add up to epochs \(140\), got 50"):
        configure("best", ["--resolution", "32:30,48:20"], model="fgw_fer", data="fer2013")


# runs


@pytest.fixture(scope="module")
def rising(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "rising"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tiny(out, **RISING))
    torch.set_num_threads(threads)
    return out


def test_each_epoch_sees_its_size() -> None:
    """Images of 24 pixels a side in the first epoch, then of 32, resized from the stored bytes."""
    split = drawn.load(14, 7)["train"]
    config = TrainConfig(batch_size=7, resolution="24:1,32:2").resolved()
    trainer = Trainer(fastfer.create_model("fgw_fer"), split, config.input.preprocess(split), config)
    seen: list[tuple[int, ...]] = []

    def augment(x: Tensor, draws: torch.Generator) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    trainer.augment = augment  # type: ignore[assignment]
    for epoch in (1, 2, 3):
        trainer.train_epoch(epoch)
    assert seen == [(7, 1, side, side) for side in (24, 24, 32, 32, 32, 32)]


def test_a_run_of_one_size_after_another_equals_epochs_of_each(tmp_path: Path) -> None:
    """The first epoch at 24 pixels, then the second at 32, are the epochs of two trainers."""
    split = drawn.load(14, 7)["train"]
    options: dict[str, Any] = {"batch_size": 7, "schedule": "constant", "optimizer": "sgd", "momentum": 0.0}
    whole, parts = (fastfer.create_model("fgw_fer") for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    config = TrainConfig(resolution="24:1,32:1", **options).resolved()
    both = Trainer(whole, split, config.input.preprocess(split), config)
    for epoch, side in ((1, 24), (2, 32)):
        both.train_epoch(epoch)
        alone = TrainConfig(epochs=2, input=Input(size=side), **options).resolved()
        Trainer(parts, split, alone.input.preprocess(split), alone).train_epoch(epoch)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_files_know_the_final_size_alone(rising: Path) -> None:
    header = read_metadata(rising / "best.safetensors")
    assert (header["input"], header["stored"], header["preprocess"]["size"]) == ([32, 32], [1, 48, 48], [32, 32])
    assert header["config"]["resolution"] == "24:1,32:2"
    assert json.loads((rising / "report.json").read_text())["epochs"] == {"done": 3, "planned": 3}


def test_evaluation_and_engine_agree_with_the_run(rising: Path) -> None:
    """The best epoch, which may be one of small images, was scored at the final size, which the engine takes, too."""
    best = json.loads((rising / "report.json").read_text())["best"]
    spec = InputSpec.from_metadata(read_metadata(rising / "best.safetensors"))
    split = drawn.load(20, 14)["validation"]
    model = load_weights(rising / "best.safetensors")
    assert evaluate(model, split, spec.preprocess).metrics.accuracy == best["accuracy"]
    if fastfer.backend.plan("cpu")["conv2d"] == "native":
        known = trained(rising / "best.safetensors")[1]
        assert known["example"] == (1, 32, 32)
        images = spec(torch.from_numpy(split.images))
        with torch.no_grad():
            torch.testing.assert_close(fastfer.compile(model, **known)(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("epoch", [2, 3])
def test_resume_is_bit_identical_at_any_size(tmp_path: Path, rising: Path, epoch: int) -> None:
    interrupt(tiny(tmp_path / "parts", **RISING), epoch=epoch)
    train(tiny(tmp_path / "parts", **RISING), resume=True)
    assert_same_run(rising, tmp_path / "parts")


def test_resume_with_other_sizes_is_refused(rising: Path) -> None:
    with pytest.raises(InputError, match="resolution: '20:1,32:2' instead of '24:1,32:2'"):
        train(tiny(rising, epochs=None, resolution="20:1,32:2"), resume=True)


def test_sizes_that_the_network_refuses_are_found_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", "patt_lite", "--input.colour", "rgb", "--resolution", "64:1,112:1"]
    assert main(arguments(tmp_path / "run", *given)) == 2
    assert "the model cannot take images of the resolution 64: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_early_stop_waits_for_the_final_size(tmp_path: Path) -> None:
    """No epoch is an improvement by 100: the second at the final size is the one too many."""
    options: dict[str, Any] = {"epochs": None, "resolution": "16:2,24:3", "stop": EarlyStop(1, min_delta=100.0)}
    train(tiny(tmp_path / "run", **options))
    assert len(read_metrics(tmp_path / "run")) == 4
    stage = Stage(epochs=5, resolution="16:2,24:3", stop=EarlyStop(1, min_delta=100.0))
    rows = [{"stage": 1, "accuracy": 0.5, "validation_loss": 1.0}] * 4
    assert [position([stage], rows[:n]) for n in (2, 3, 4)] == [(0, 2), (0, 3), None]


def test_a_second_stage_has_sizes_of_its_own(tmp_path: Path) -> None:
    second = Stage(epochs=2, resolution="16:1,24:1")
    report = train(tiny(tmp_path / "run", epochs=1, fine_tune=second))
    assert report["epochs"] == {"done": 3, "planned": 3}
    assert read_metadata(tmp_path / "run" / "last" / "weights.safetensors")["input"] == [24, 24]


def test_statistics_are_those_of_the_stored_bytes() -> None:
    split = drawn.load(14, 7)["train"]
    sized = TrainConfig(resolution="24:1,32:2").resolved().input.preprocess(split)
    assert (sized.mean, sized.std) == (Preprocess.of(split).mean, Preprocess.of(split).std)
