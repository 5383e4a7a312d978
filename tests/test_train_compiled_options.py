# SPDX-License-Identifier: Apache-2.0
"""Recorded steps of the trainer with every loss, a teacher, several sizes and frozen layers: the bits of eager ones."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
pytest.importorskip("accelerate", reason="the trainer's packages are not installed")

import fastfer
from fastfer import backend, step
from fastfer.data import Split, drawn
from fastfer.models import FerModel, save_weights
from fastfer.train.config import TrainConfig
from fastfer.train.loop import Trainer
from fastfer.train.options import Distill, Input, LossOptions, Stage
from fastfer.train.teacher import Teacher

if not backend.list_backends()["native"].available:
    pytest.skip(backend.list_backends()["native"].reason, allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 6
PATT = {"model": "patt_lite", "input": Input("symmetric", size=112, colour="rgb"), "from_weights": "-"}


@cache
def network(name: str) -> FerModel:
    torch.manual_seed(0)
    return fastfer.create_model(name, num_classes=7)


@cache
def images() -> Split:
    """Two batches an epoch, the second of another size."""
    return drawn.load(BATCH + 4, 7)["train"]


def soft(mode: str) -> Split:
    """The same with distributions for labels, of two classes each."""
    split = images()
    own = torch.nn.functional.one_hot(torch.from_numpy(split.labels), 7).float()
    return replace(split, soft=(0.75 * own + 0.25 * own.roll(1, 1)).numpy(), soft_mode=mode)


def trainers(
    split: Split, teacher: Teacher | None = None, compiles: tuple[bool, bool] = (False, True), **options: Any
) -> tuple[Trainer, Trainer]:
    """Of equal networks: one computes as ever, with torch's own step of the optimiser, the other records."""
    stage: Stage | None = options.pop("stage", None)
    values: dict[str, Any] = {"epochs": 2, "batch_size": BATCH, "threads": 1, "schedule": "constant", **options}
    configs = [TrainConfig(**values, compile=each).resolved() for each in compiles]
    eager, recorded = (
        Trainer(copy.deepcopy(network(c.model)), split, c.input.preprocess(split), c, stage, teacher=teacher)
        for c in configs
    )
    eager.take_step = eager.optimizer.step
    return eager, recorded


def train_alike(eager: Trainer, recorded: Trainer, plans: tuple[int, int] = (2, 2)) -> None:
    """Two epochs, after which there are so many plans; none is made anew where the shapes stay."""
    assert recorded.compiled is not None
    seen: list[set[int]] = []
    for epoch in (1, 2):
        assert eager.train_epoch(epoch).loss == recorded.train_epoch(epoch).loss
        seen.append({id(plan) for plan in recorded.compiled.plans()})
    assert tuple(map(len, seen)) == plans
    assert seen[0] <= seen[1]
    same_state(eager, recorded)


def same_state(eager: Trainer, recorded: Trainer) -> None:
    """Weights, statistics, centres and what the optimisers keep."""
    for want, got in ((eager.model, recorded.model), (eager.objective, recorded.objective)):
        state = got.state_dict()
        assert not [name for name, t in want.state_dict().items() if not torch.equal(t, state[name])]
    states = [each.optimizer.state_dict()["state"] for each in (eager, recorded)]
    assert states[0].keys() == states[1].keys()
    for key, values in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in values.items())


LOSSES: dict[str, dict[str, Any]] = {
    "label smoothing and a summed centre loss": {
        "label_smoothing": 0.1,
        "loss": LossOptions(center=0.01, center_on="logits", center_reduction="sum"),
    },
    "balanced classes": {"loss": LossOptions(class_weights="balanced")},
    "the head learns to read": {
        "model": "mobilenetv3_cpsca",
        "input": Input("symmetric", size=32, colour="rgb"),
        "loss": LossOptions(center=0.1, triplet=0.5, softmax_trains="head"),
    },
    "no cross-entropy": {"loss": LossOptions(softmax=0, center=1.0)},
}


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
def test_losses(options: dict[str, Any]) -> None:
    train_alike(*trainers(images(), **options))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_eager_training_updates_as_torch_does(name: str) -> None:
    """Under a schedule of torch's, which counts the steps."""
    options: dict[str, Any] = {"optimizer": name, "schedule": "onecycle", "clip_norm": 0.5}
    torchs, ours = trainers(images(), compiles=(False, False), **options)
    assert isinstance(ours.take_step, step.Update)
    for epoch in (1, 2):
        assert torchs.train_epoch(epoch).loss == ours.train_epoch(epoch).loss
    same_state(torchs, ours)
    assert torchs.schedule.state_dict() == ours.schedule.state_dict()


@pytest.mark.parametrize("mode", ["crossentropy", "probability", "multi_target"])
def test_soft_labels(mode: str) -> None:
    train_alike(*trainers(soft(mode)))


def test_a_teacher(tmp_path: Path) -> None:
    path, split = tmp_path / "teacher.safetensors", images()
    save_weights(
        network("sepconv_attention"),
        path,
        {"classes": list(split.names), "input": [48, 48], "preprocess": Input().preprocess(split).to_json()},
    )
    teacher = Teacher(str(path), split.names, Input().preprocess(split), Distill(temperature=2.0), torch.device("cpu"))
    train_alike(*trainers(split, teacher))


def test_rising_sizes() -> None:
    """Two sizes of images, with two of batches each."""
    train_alike(*trainers(images(), resolution="24:1,48:1"), plans=(2, 4))


@pytest.mark.parametrize(
    "options", [{"unfreeze": 0}, {"unfreeze": 3, "feature_copies": 1}], ids=["frozen", "kept features"]
)
def test_a_frozen_backbone(options: dict[str, Any]) -> None:
    train_alike(*trainers(images(), **PATT, **options))


def test_the_second_stage_of_a_recipe() -> None:
    """Half of the backbone thaws, its norms do not; dropout of layers, of patches and after the attention."""
    stage = Stage(epochs=2, lr=1e-4, unfreeze=20, dropout=0.2, spatial_dropout=0.1, attention_dropout=0.3)
    train_alike(*trainers(images(), **PATT, unfreeze=0, stage=stage))
