# SPDX-License-Identifier: Apache-2.0
"""Devices, precision, and several processes against one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
pytest.importorskip("accelerate", reason="the trainer's packages are not installed")

from train_runs import arguments, read_metrics, tiny

from fastfer import _processes
from fastfer.backends.reference import norm
from fastfer.train import InputError, TrainConfig, train
from fastfer.train.__main__ import main
from fastfer.train.placement import Placement

pytestmark = pytest.mark.usefixtures("one_thread")

STILL = [f"--augment.{name}=0" for name in ("flip", "degrees", "shift", "zoom", "contrast")]
COMMON = [
    "--train-images=11", "--validation-images=7", "--batch-size=8", "--epochs=2", "--threads=1", "--device=cpu",
    "--backend=reference", "--optimizer=sgd", "--lr=0.02", *STILL,
]  # fmt: skip


def run_processes(count: int, *argv: str) -> None:
    """``python -m fastfer.train`` in so many processes under torchrun's environment, over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "fastfer.train", *argv],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=900)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in started:
            process.kill()


def curve(out: Path) -> list[float]:
    return [float(row[key]) for row in read_metrics(out) for key in ("loss", "validation_loss")]


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    """To rounding, with synchronised norms; the last batch of three images is shared two to one.

    The optimiser is SGD: Adam's steps have a fixed length, so that the biases before a norm, whose gradient is nothing
    but rounding, would walk apart.
    """
    options = [*COMMON, "--loss.center=0.1", "--clip-norm=1"]
    run_processes(2, *options, "--sync-norms=true", "--resident=always", "--out", str(tmp_path / "two"))
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)
    environment = json.loads((tmp_path / "two" / "report.json").read_text())["environment"]
    assert (environment["processes"], environment["device"]) == (2, "cpu")


def test_unsynchronised_norms_are_those_of_the_parts() -> None:
    """What the curves would differ by: statistics of halves are not those of the whole."""
    draws = torch.Generator().manual_seed(0)
    y = torch.randn(4, 3, 5, 5, generator=draws)
    ones, zeros = torch.ones(3), torch.zeros(3)
    whole, half = (norm.statistics(part, zeros, ones, 1e-5, True) for part in (y, y[:2]))
    assert not torch.allclose(whole, half, atol=1e-3)


@pytest.mark.parametrize("act", [0, 1])
def test_synchronised_norms_against_the_whole_batch(act: int) -> None:
    """Two processes of different size in one: a sum over them adds what the other one's call gave."""
    draws = torch.Generator().manual_seed(1)
    y, dz = (torch.randn(5, 3, 4, 4, generator=draws, dtype=torch.float64) for _ in range(2))
    weight, bias, mean, var = torch.rand(4, 3, generator=draws, dtype=torch.float64)
    parts = [(y[:2], dz[:2]), (y[2:], dz[2:])]

    def together(call: Any) -> list[Any]:
        """Each part's result of ``call``, repeated until every sum knows the other part's terms."""
        known: list[list[torch.Tensor]] = [[], []]
        results: list[Any] = [None, None]
        for _ in range(3):
            for own in (0, 1):
                terms: list[torch.Tensor] = []

                def total(value: torch.Tensor, own: int = own, terms: list[torch.Tensor] = terms) -> torch.Tensor:
                    other = known[1 - own]
                    terms.append(value)
                    return value + other[len(terms) - 1] if len(terms) <= len(other) else value

                with _processes.synchronised(total):
                    results[own] = call(*parts[own])
                known[own] = terms
        return results

    stats = norm.statistics(y, mean, var, 1e-5, True)
    for found in together(lambda y, dz: norm.statistics(y, mean, var, 1e-5, True)):
        torch.testing.assert_close(found, stats)
    whole = norm.norm_act_backward(dz, y, weight, bias, stats, act, True)
    found = together(lambda y, dz: norm.norm_act_backward(dz, y, weight, bias, stats, act, True))
    torch.testing.assert_close(torch.cat([each[0] for each in found]), whole[0])
    for number in (1, 2):  # the parameters' gradients are summed by whoever averages gradients
        torch.testing.assert_close(found[0][number] + found[1][number], whole[number])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bfloat16_trains_and_keeps_float32_weights(tmp_path: Path, backend: str) -> None:
    """Linear layers and attention's products run in it; fastfer's own ops store it, or lift their input to float32."""
    options: dict[str, Any] = {"model": "sepconv_attention", "epochs": 2, "lr": 1e-3, "backend": backend}
    full, half = (train(tiny(tmp_path / p, precision=p, **options)) for p in ("fp32", "bf16"))
    assert half["environment"]["precision"] == "bf16"
    assert half["last"]["loss"] != full["last"]["loss"]
    assert half["last"]["loss"] == pytest.approx(full["last"]["loss"], rel=0.1)
    weights = load_file(tmp_path / "bf16" / "last" / "weights.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())


def test_one_process_is_the_identity() -> None:
    placement = Placement("cpu")
    x = torch.arange(6.0).view(3, 2)
    assert (placement.processes, placement.rank, placement.is_main) == (1, 0, True)
    assert torch.equal(placement.part(x), x)
    assert torch.equal(placement.gathered(x), x)
    assert placement.agreed("same") == "same"
    assert placement.scaler_state() == {}


BAD: dict[str, tuple[list[str], str]] = {
    "fp16 on the CPU": (["--device", "cpu", "--precision", "fp16"], "precision: expected fp32 or bf16 on the CPU"),
    "unknown device": (["--device", "tpu"], "device"),
    "synchronised norms of other backends": (["--sync-norms", "true"], "sync_norms: expected backend reference"),
}


@pytest.mark.parametrize(("more", "expected"), BAD.values(), ids=BAD)
def test_what_cannot_run_here_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    assert main(arguments(tmp_path / "run", *more)) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_cuda_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch finds no CUDA device here"):
        train(TrainConfig(out=str(tmp_path / "run"), device="cuda"))
