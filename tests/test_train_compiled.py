# SPDX-License-Identifier: Apache-2.0
"""Runs with --compile: the same bits as without, through kills and resumes, and refusals before a run begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
pytest.importorskip("accelerate", reason="the trainer's packages are not installed")

from train_runs import assert_same_run, interrupt, read_metrics, tiny

from fastfer import backend
from fastfer.step.gradients import Gradients
from fastfer.train import InputError, train
from fastfer.train.options import LossOptions

if not backend.list_backends()["native"].available:
    pytest.skip(backend.list_backends()["native"].reason, allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")


class Counted:
    """How often steps were recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, record = 0, Gradients._record

        def counted(gradients: Gradients, inputs: tuple[torch.Tensor, ...]) -> Any:
            self.times += 1
            return record(gradients, inputs)

        monkeypatch.setattr(Gradients, "_record", counted)


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9, "clip_norm": 0.5, "model_options": {"dropout": 0.2}},
        {
            "optimizer": "sgd",
            "schedule": "cosine",
            "on_nan": "skip",
            "label_smoothing": 0.1,
            "loss": LossOptions(center=0.01, center_on="embedding", triplet=0.1),
        },
    ],
)
def test_a_run_is_the_same_to_the_bit(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Counted(monkeypatch)
    outs = [tmp_path / name for name in ("eager", "compiled")]
    for out in outs:
        train(tiny(out, compile=out.name == "compiled", **options))
    assert recorded.times == 2  # whole batches, and the last of each epoch
    for name in ("best.safetensors", "last/weights.safetensors", "last/optimizer.safetensors"):
        want, got = (load_file(out / name) for out in outs)
        assert want.keys() == got.keys()
        assert all(torch.equal(value, got[key]) for key, value in want.items()), name
    assert read_metrics(outs[0]) == read_metrics(outs[1])


def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Cut short in epoch 2, resumed without recording for an epoch and with it again."""
    train(tiny(tmp_path / "whole", compile=True, schedule="constant"))
    interrupt(tiny(tmp_path / "cut", compile=True, schedule="constant"), epoch=2)
    train(tiny(tmp_path / "cut", schedule="constant", epochs=2), resume=True)
    train(tiny(tmp_path / "cut", compile=True, schedule="constant"), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "compile: expected one process on the CPU in fp32, got precision bf16"),
        ({"backend": "reference"}, "compile: backend: expected native for all families, got reference"),
    ],
)
def test_what_cannot_be_recorded_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny(tmp_path / "run", compile=True, **options))
    assert not (tmp_path / "run").exists()


def test_without_the_extension_the_trainer_is_there_and_steps_say_why() -> None:
    code = """
import sys
sys.modules["fastfer._C"] = None
import fastfer, fastfer.train.loop
try:
    fastfer.compile_step
except fastfer.step.StepError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "compile_step: expected the native kernels, which are not available" in done.stdout
