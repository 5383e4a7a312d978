# SPDX-License-Identifier: Apache-2.0
"""Training images that are streamed from shards."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")

from train_runs import assert_same_run, interrupt, tiny, write_fer2013

from fastfer.data import Shards, Split, drawn, write_shards
from fastfer.train import InputError, TrainConfig, train
from fastfer.train.feed import MemoryFeed, ShardFeed, make_feed
from fastfer.train.options import Input, LossOptions
from fastfer.train.placement import Placement

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def split() -> Split:
    return drawn.load(21, 7)["train"]


@pytest.fixture(scope="module")
def shards(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_fer2013(folder, 7, 14)
    write_shards(folder / "shards", split, images=8)
    return folder / "shards"


def config(out: Path, shards: Path, **options: Any) -> TrainConfig:
    """Training images from the shards, validation images from the csv that lies beside them."""
    grey = Input(normalise="symmetric", colour="grey")
    data = {"data": "fer2013", "root": str(shards.parent), "train_images": None, "shards": str(shards)}
    values = {**data, "input": grey, "epochs": 2}
    return tiny(out, **{**values, **options})


def test_both_feeds_give_every_image_once_an_epoch(split: Split, shards: Path) -> None:
    placement = Placement("cpu")
    seen = []
    for source, kind in ((split, MemoryFeed), (Shards(shards), ShardFeed)):
        feed = make_feed(source, config(Path("unused"), shards), placement)
        assert isinstance(feed, kind)
        assert (feed.steps, len(feed)) == (3, 21)
        epochs = [list(feed.portions(epoch)) for epoch in (1, 2)]
        assert [portion.batch for portion in epochs[0]] == [8, 8, 5]
        labels = [torch.cat([portion.targets.labels for portion in portions]) for portions in epochs]
        assert not torch.equal(labels[0], labels[1])
        faces = Counter(bytes(face.numpy()) for portion in epochs[1] for face in portion.images.view(-1, 48, 48))
        seen.append(faces)
    assert seen[0] == seen[1]


def test_a_stream_trains_and_reports(shards: Path, tmp_path: Path, split: Split) -> None:
    train(config(tmp_path / "run", shards, loss=LossOptions(class_weights="balanced")))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["images"]["train"] == split.counts()
    assert report["fingerprints"]["train"] == Shards(shards).fingerprint()
    assert report["preprocess"]["mean"] == [0.5]


def test_a_stream_resumes_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    train(config(tmp_path / "whole", shards))
    interrupt(config(tmp_path / "parts", shards), epoch=2)
    train(config(tmp_path / "parts", shards), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_bad_streams(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match="expected symmetric or imagenet for images from shards, got data"):
        train(config(out, shards, input=Input(colour="grey")))
    with pytest.raises(InputError, match="holds no shards"):
        train(replace(config(out, shards), shards=str(tmp_path)))
    with pytest.raises(ValueError, match="shards: expected neither train_images"):
        config(out, shards, train_images=5)
    other = Split(drawn.load(7, 7)["train"].images, torch.arange(7).numpy() % 2, ("neutral", "anger"))
    write_shards(tmp_path / "other", other)
    with pytest.raises(InputError, match=r"shards: expected the classes neutral, happiness.*, got neutral, anger"):
        train(replace(config(out, shards), shards=str(tmp_path / "other")))
    assert not out.exists()
