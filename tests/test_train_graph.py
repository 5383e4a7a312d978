# SPDX-License-Identifier: Apache-2.0
"""Graphs around a training step, without a GPU: refusals, and on a stand-in for CUDA what a replay is fed.

The stand-in for a recording calls the step when it is replayed, and gives every result in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
pytest.importorskip("accelerate", reason="the trainer's packages are not installed")

from train_runs import tiny

import fastfer
from fastfer.data import Augment, drawn
from fastfer.models import create_model
from fastfer.train import InputError, graph, train
from fastfer.train.config import TrainConfig
from fastfer.train.graph import StepGraph, require_capturable
from fastfer.train.loop import Trainer
from fastfer.train.objective import Targets
from fastfer.train.options import LossOptions, Stage

pytestmark = pytest.mark.usefixtures("one_thread")

GRAPH: dict[str, Any] = {"cuda_graph": True, "schedule": "cosine"}


def device(kind: str = "cuda", processes: int = 1) -> Any:
    return SimpleNamespace(device=torch.device(kind), processes=processes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_the_cpu_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cuda_graph: expected device cuda, got cpu"):
        train(tiny(tmp_path / "run", device=name, **GRAPH))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "processes", "reason"),
    [
        ({"precision": "fp16"}, 1, "fp16"),
        ({"on_nan": "skip"}, 1, "on_nan skip"),
        ({"schedule": "onecycle"}, 1, "onecycle"),
        ({"fine_tune": Stage(epochs=1, schedule="onecycle")}, 1, "onecycle"),
        ({}, 2, "2 processes"),
        ({"batch_size": 21}, 1, "20 images, which fill no batch of 21"),
    ],
)
def test_what_cannot_be_recorded(options: dict[str, Any], processes: int, reason: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, **{**GRAPH, **options}).resolved()
    with pytest.raises(ValueError, match=f"cuda_graph: expected a step that can be recorded, got [^;]*{reason}[^;]*$"):
        require_capturable(config, device(processes=processes), 20)


def test_plain_torch_is_refused(tmp_path: Path) -> None:
    with (
        fastfer.use("reference"),
        pytest.raises(ValueError, match=r"cuda_graph: expected the CUDA kernels, got plain torch for .*loss"),
    ):
        require_capturable(tiny(tmp_path, **GRAPH).resolved(), device(), 20)


class Recorder:
    """In place of CUDA: counts steps aside, recordings and replays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.aside = self.recordings = self.replays = 0
        monkeypatch.setattr(graph, "aside", self._aside)
        monkeypatch.setattr(graph, "record", self._record)

    def _aside(self, call: Callable[[], Tensor]) -> Tensor:
        self.aside += 1
        return call()

    def _record(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recordings += 1
        result = torch.zeros(())

        def replay() -> Tensor:
            self.replays += 1
            return result.copy_(call())

        return replay


def trainer(recorded: bool, tmp_path: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    split = drawn.load(20, 7)["train"]
    values = {"schedule": "cosine", "epochs": 4, "lr": 1e-3, "augment": Augment(flip=0.0, degrees=0.0), **options}
    config: TrainConfig = tiny(tmp_path, device="cpu", backend="reference", **values).resolved()
    made = Trainer(create_model("fgw_fer", num_classes=len(split.names)), split, config.input.preprocess(split), config)
    if recorded:
        made.graph = StepGraph(made._whole_step, made.optimizer)
    return made


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_losses_and_weights_are_those_of_eager_steps(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two whole batches an epoch and half a one: three steps of warm-up, then one recording and its replays."""
    recorder = Recorder(monkeypatch)
    curves: list[list[float]] = []
    trainers = [trainer(recorded, tmp_path, optimizer=optimizer, ema=0.9) for recorded in (False, True)]
    with fastfer.use("reference"):
        for each in trainers:
            curves.append([])
            for epoch in range(1, 4):
                each.train_epoch(epoch, curves[-1].append)
    assert (recorder.aside, recorder.recordings, recorder.replays) == (graph.WARM_UP, 1, 6 - graph.WARM_UP)
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert len({round(loss, 6) for loss in curves[1]}) == 9
    want, got = (torch.cat([p.detach().flatten() for p in each.evaluated.parameters()]) for each in trainers)
    assert float((got - want).norm()) <= 1e-3 * float(want.norm())
    want_group, group = (each.optimizer.param_groups[0] for each in trainers)
    assert isinstance(group["lr"], float)
    assert {**group, "params": None} == {**want_group, "params": None}


def test_the_optimiser_is_told_of_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads its rate from the same tensor in every replay, with the value that the schedule has set."""
    Recorder(monkeypatch)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], 0.5, fused=True)
    seen: list[tuple[Any, bool, float]] = []

    def step(x: Tensor, targets: Targets) -> Tensor:
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["capturable"], float(group["lr"])))
        return x.sum() + targets.labels.sum()

    stepper = StepGraph(step, optimizer)
    results = []
    for number in range(graph.WARM_UP + 2):
        optimizer.param_groups[0]["lr"] = 2.0**-number
        results.append(stepper(torch.full((2, 1), float(number)), Targets(torch.tensor([number, 0]))))
    assert [float(result) for result in results] == [3.0 * number for number in range(graph.WARM_UP + 2)]
    assert [rate for _, _, rate in seen] == [2.0**-number for number in range(graph.WARM_UP + 2)]
    assert [capturable for _, capturable, _ in seen] == [False] * graph.WARM_UP + [True] * 2
    assert seen[-1][0] is seen[-2][0]
    assert isinstance(seen[-1][0], Tensor)


def test_a_failed_recording_leaves_the_optimiser_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WARM_UP", 0)
    monkeypatch.setattr(graph, "record", lambda call: call())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.5)

    def step(x: Tensor, targets: Targets) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="cuda_graph: the step cannot be recorded: operation not permitted"):
        StepGraph(step, optimizer)(torch.ones(1), Targets(torch.tensor([0])))
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_soft_targets_keep_their_memory() -> None:
    first, second = (Targets(torch.tensor([n]), torch.tensor([[float(n), 1.0]])) for n in (0, 1))
    held = first.clone()
    memory = held.labels.data_ptr()
    held.copy_(second)
    assert (held.labels.data_ptr(), int(held.labels), int(first.labels)) == (memory, 1, 0)
    assert torch.equal(held.soft, second.soft)  # type: ignore[arg-type]


def test_every_loss_can_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The centres move with each replay."""
    Recorder(monkeypatch)
    loss = LossOptions(center=0.1, triplet=0.1)
    centers = []
    with fastfer.use("reference"):
        for recorded in (False, True):
            each = trainer(recorded, tmp_path, loss=loss, clip_norm=1.0)
            for epoch in (1, 2, 3):
                each.train_epoch(epoch)
            centers.append(each.objective.centers)
    torch.testing.assert_close(centers[1], centers[0], rtol=1e-3, atol=1e-4)


def test_all_steps_aside_have_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory freed on a stream is reused on that stream alone: on three, activations lie there three times."""
    made: list[int] = []

    class Stream:
        def __init__(self, device: int = 0) -> None:
            made.append(device)

        def wait_stream(self, other: object) -> None: ...

    main = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    graph._side_stream.cache_clear()
    try:
        assert [float(graph.aside(lambda: torch.ones(()))) for _ in range(graph.WARM_UP)] == [1.0] * graph.WARM_UP
    finally:
        graph._side_stream.cache_clear()
    assert made == [0, 1]
