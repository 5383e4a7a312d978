# SPDX-License-Identifier: Apache-2.0
"""Training images that lie on the device: when they do, and that nothing else depends on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
pytest.importorskip("accelerate", reason="the trainer's packages are not installed")

from train_runs import read_metrics, tiny

from fastfer.data import drawn
from fastfer.train import TrainConfig, train
from fastfer.train.feed import MemoryFeed, is_resident
from fastfer.train.placement import Placement

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("mode", "device", "size", "resident"),
    [
        ("auto", "cuda", 25, True),
        ("auto", "cuda", 26, False),
        ("auto", "cpu", 1, False),
        ("never", "cuda", 1, False),
        ("always", "cuda", 1000, True),
        ("always", "cpu", 1000, True),
    ],
)
def test_where_the_images_lie(mode: str, device: str, size: int, resident: bool) -> None:
    """A quarter of the free memory at most, unless the options say otherwise."""
    assert is_resident(mode, size, torch.device(device), free=100) == resident


def test_batches_are_gathered_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without memory only the indices show it: they and the labels lie there."""
    placement, split = Placement("cpu"), drawn.load(20, 7)["train"]
    placement.device = torch.device("meta")
    feeds = [MemoryFeed(split, tiny(Path("unused"), resident=mode), placement) for mode in ("never", "always")]
    assert [feed.resident for feed in feeds] == [False, True]
    for feed, device in zip(feeds, ("cpu", "meta"), strict=True):
        portions = list(feed.portions(1))
        assert [(len(p.images), p.batch) for p in portions] == [(8, 8), (8, 8), (4, 4)]
        assert {t.device.type for p in portions for t in (p.images, p.targets.labels)} == {device}
        assert {p.images.dtype for p in portions} == {torch.uint8}


def test_the_run_does_not_depend_on_it(tmp_path: Path) -> None:
    """The same images in the same order: equal bits; and a run may go on with the images elsewhere."""
    runs = {mode: tiny(tmp_path / mode, device="cpu", epochs=2, resident=mode) for mode in ("never", "always")}
    reports = [train(config) for config in runs.values()]
    assert [report["environment"]["resident"] for report in reports] == [False, True]
    assert read_metrics(tmp_path / "never") == read_metrics(tmp_path / "always")
    want, got = (load_file(tmp_path / mode / "last" / "weights.safetensors") for mode in runs)
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert train(replace(runs["never"], resident="always"), resume=True)["environment"]["resident"]


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="resident: expected one of auto, always, never, got 'maybe'"):
        TrainConfig(resident="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resident: expected auto or never for images from shards, got always"):
        TrainConfig(shards="folder", resident="always")
