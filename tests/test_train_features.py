# SPDX-License-Identifier: Apache-2.0
"""Features of frozen layers, computed once: the same training as without, their files, and what is refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import assert_same_run, interrupt, read_metrics, tiny

import fastfer
from fastfer.data import Augment, drawn
from fastfer.data.split import Split
from fastfer.models import FerModel, save_weights
from fastfer.train import InputError, TrainConfig, train
from fastfer.train.features import FrozenFeatures, as_input, entered_at, frozen_blocks
from fastfer.train.feed import generator
from fastfer.train.freezing import freeze
from fastfer.train.loop import Trainer
from fastfer.train.options import Distill, Input, Stage
from fastfer.train.placement import Placement

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 112  # the smallest multiple of 56 that the patches divide
STILL = Augment(flip=0.0, degrees=0.0, shift=0.0, zoom=0.0, contrast=0.0)
MOVING = Augment()
SHORT: dict[str, Any] = {
    "model": "patt_lite",
    "input": Input("symmetric", size=SIDE, colour="rgb"),
    "unfreeze": 0,
    "schedule": "constant",
    "lr": 1e-3,
    "batch_size": 7,
}


@functools.cache
def _network() -> FerModel:
    """A network whose running statistics are those of drawn faces, as a trained one's would be."""
    torch.manual_seed(0)
    model = fastfer.create_model("patt_lite", num_classes=7)
    split = drawn.load(14, 7)["train"]
    images = SHORT["input"].preprocess(split)(torch.from_numpy(split.images))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.01
    return model


def network() -> FerModel:
    return copy.deepcopy(_network())


@pytest.fixture(scope="module")
def split() -> Split:
    return drawn.load(14, 7)["train"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, split: Split) -> Path:
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    save_weights(network(), path, {"classes": list(split.names)})
    return path


def config(weights: Path, **options: Any) -> TrainConfig:
    values = {**SHORT, "from_weights": str(weights), "epochs": 2, "feature_precision": "fp32", **options}
    return TrainConfig(**values).resolved()


def trainer(split: Split, chosen: TrainConfig) -> Trainer:
    return Trainer(network(), split, chosen.input.preprocess(split), chosen)


def close(a: FerModel, b: FerModel, atol: float) -> None:
    for (name, mine), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


# the same training


@pytest.mark.parametrize("unfreeze", [0, 3])
def test_training_on_features_is_training_on_images(weights: Path, split: Split, unfreeze: int) -> None:
    """Without augmentation: two epochs of two steps, dropout drawn alike; the last blocks train with unfreeze 3."""
    images, features = (
        trainer(split, config(weights, augment=STILL, optimizer="sgd", unfreeze=unfreeze, feature_copies=copies))
        for copies in (0, 1)
    )
    for epoch in (1, 2):
        losses = [each.train_epoch(epoch).loss for each in (images, features)]
        assert losses[0] == pytest.approx(losses[1], rel=2e-4)
    close(images.model, features.model, 2e-5)
    assert all(torch.equal(a, b) for a, b in zip(
        network().backbone[:3].state_dict().values(), features.model.backbone[:3].state_dict().values(), strict=True
    ))  # fmt: skip


def test_fixed_copies_are_those_of_the_augmentation(weights: Path, split: Split) -> None:
    """Copy c of every image is what the generator of epoch c + 1 makes of them, in their order; epochs take turns."""
    chosen = config(weights, augment=MOVING, feature_copies=2)
    made = trainer(split, chosen)
    features = made.features
    assert features is not None
    preprocess, backbone = chosen.input.preprocess(split), made.model.backbone.eval()
    for epoch, number in ((1, 0), (2, 1), (3, 0)):
        x = MOVING(preprocess(torch.from_numpy(split.images)), generator(chosen.seed, "augment", number + 1))
        with torch.no_grad():
            expected = backbone(x)
        found = as_input(features.table(epoch))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert not torch.equal(features.table(1), features.table(2))
    assert features.table(1) is features.table(3)


def test_uncached_training_on_the_same_copies_is_equal(weights: Path, split: Split) -> None:
    """Steps on the augmented images themselves, with the feed's order and dropout."""
    cached, plain = (trainer(split, config(weights, augment=MOVING, optimizer="sgd", feature_copies=n)) for n in (2, 0))
    pixels = plain.preprocess(torch.from_numpy(split.images))
    for epoch in (1, 2):
        table = MOVING(pixels, generator(plain.config.seed, "augment", epoch))
        order = torch.randperm(len(split), generator=generator(plain.config.seed, "order", epoch))
        batches = iter(torch.split(order, 7))
        plain.augment = lambda x, draws, table=table, batches=batches: table[next(batches)]  # type: ignore[assignment,misc]
        assert cached.train_epoch(epoch).loss == pytest.approx(plain.train_epoch(epoch).loss, rel=2e-4)
    close(cached.model, plain.model, 2e-5)


def test_bfloat16_features_lose_their_last_bits_alone(weights: Path, split: Split) -> None:
    tables = {}
    for precision in ("fp32", "bf16"):
        made = trainer(split, config(weights, augment=STILL, feature_copies=1, feature_precision=precision))
        assert made.features is not None
        tables[precision] = as_input(made.features.table(1))
    assert torch.equal(tables["bf16"], tables["fp32"].bfloat16().float())
    assert not torch.equal(tables["bf16"], tables["fp32"])


def test_validation_scores_are_those_of_the_images(tmp_path: Path, weights: Path) -> None:
    """Each epoch's, mirror image included, and with averaged weights."""
    options: dict[str, Any] = {**SHORT, "from_weights": str(weights), "augment": STILL, "flip_test": True, "ema": 0.5}
    for copies in (0, 1):
        given = {**options, "feature_copies": copies, "feature_precision": "fp32", "epochs": 2}
        train(tiny(tmp_path / str(copies), train_images=14, **given))
    for mine, theirs in zip(*(read_metrics(tmp_path / str(n)) for n in (0, 1)), strict=True):
        assert mine["accuracy"] == theirs["accuracy"]
        assert float(mine["validation_loss"]) == pytest.approx(float(theirs["validation_loss"]), rel=1e-3)


# entering the backbone


def test_a_backbone_is_entered_at_any_block() -> None:
    model = network().eval()
    x = torch.randn(2, 3, SIDE, SIDE)
    blocks = list(model.backbone)
    with torch.no_grad():
        whole = model(x)
        for count in (0, 1, 5, len(blocks)):
            with entered_at(model, count):
                torch.testing.assert_close(model(torch.nn.Sequential(*blocks[:count])(x)), whole, rtol=1e-5, atol=1e-6)
        assert torch.equal(model(x), whole)


@pytest.mark.parametrize(("unfreeze", "blocks"), [(None, 0), (0, 10), (2, 10), (3, 9), (6, 8), (46, 2), (59, 0)])
def test_frozen_blocks(unfreeze: int | None, blocks: int) -> None:
    model = fastfer.create_model("patt_lite")
    freeze(model, unfreeze)
    assert frozen_blocks(model) == blocks


# files and runs


def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    calls: list[int] = []
    fill = FrozenFeatures._fill

    def counting(self: FrozenFeatures, table: Tensor, *rest: Any) -> None:
        calls.append(len(table))
        fill(self, table, *rest)

    monkeypatch.setattr(FrozenFeatures, "_fill", counting)
    return lambda: len(calls)


def test_files_are_found_again_and_damage_is_noticed(
    tmp_path: Path, weights: Path, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    folder = tmp_path / "features"

    def table(**options: Any) -> Tensor:
        made = trainer(split, config(weights, feature_copies=1, feature_folder=str(folder), **options))
        assert made.features is not None
        return made.features.table(1)

    first = table(augment=STILL).clone()
    table(augment=STILL).zero_()  # in this process alone: the file stays as it is
    assert torch.equal(table(augment=STILL), first)
    assert calls() == 1
    path = next(folder.glob("*.bin"))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert torch.equal(table(augment=STILL), first)
    assert calls() == 2
    table(augment=MOVING)
    table(augment=STILL, feature_precision="bf16")
    assert calls() == 4
    assert len(list(folder.glob("*.bin"))) == len(list(folder.glob("*.json"))) == 3


def test_resume_is_bit_identical_from_files_and_from_memory(tmp_path: Path, weights: Path) -> None:
    """The second stage trains a block of the backbone, and has other features."""
    second = Stage(epochs=1, lr=1e-4, unfreeze=3, feature_copies=1)
    options: dict[str, Any] = {**SHORT, "from_weights": str(weights), "feature_copies": 2, "fine_tune": second}
    options |= {"epochs": 2, "train_images": 14, "validation_images": 7}
    train(tiny(tmp_path / "whole", **options))
    for name, folder, epoch in (("memory", None, 2), ("files", str(tmp_path / "features"), 3)):
        interrupt(tiny(tmp_path / name, **options, feature_folder=folder), epoch=epoch)
        train(tiny(tmp_path / name, **options), resume=True)
        best = load_file(tmp_path / name / "last" / "weights.safetensors")
        assert all(torch.equal(best[k], v) for k, v in load_file(tmp_path / "whole/last/weights.safetensors").items())
    assert_same_run(tmp_path / "whole", tmp_path / "memory")


# refusals


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing frozen": ({"feature_copies": 1}, "expected unfreeze and no resolution beside it, got no unfreeze"),
    "sizes": (
        {"feature_copies": 1, "unfreeze": 0, "pretrained": "x", "resolution": "24:1,48"},
        "no resolution beside it, got resolution",
    ),
    "shards": ({"feature_copies": 1, "unfreeze": 0, "pretrained": "x", "shards": "s"}, "expected 0 beside shards"),
    "teacher": (
        {"feature_copies": 1, "unfreeze": 0, "pretrained": "x", "teacher": "t", "distill": Distill()},
        "expected 0 beside teacher",
    ),
    "folder alone": ({"feature_folder": "f"}, "feature_folder: expected feature_copies beside it"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_all_unfrozen_is_refused_before_anything_is_written(tmp_path: Path, weights: Path) -> None:
    options: dict[str, Any] = {**SHORT, "from_weights": str(weights), "unfreeze": 59, "feature_copies": 1}
    with pytest.raises(InputError, match="frozen layers at the start of the backbone, got none"):
        train(tiny(tmp_path / "run", train_images=14, **options))
    assert not (tmp_path / "run").exists()


def test_more_than_the_memory_is_refused(weights: Path, split: Split) -> None:
    chosen = config(weights, feature_copies=10**9)
    with pytest.raises(ValueError, match=r"take [0-9.]+ GB of this machine's .* feature_folder"):
        FrozenFeatures(_frozen(), split, chosen.input.preprocess(split), chosen, 10**9, Placement("cpu").device)


def _frozen() -> FerModel:
    model = network()
    freeze(model, 0)
    return model
