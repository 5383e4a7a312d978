# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation and explanation on a GPU: precisions, loss scaling, graphs around a step, several processes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    pytest.skip(f"torch {torch.__version__} sees no CUDA device", allow_module_level=True)
pytest.importorskip("torchmetrics", reason="the trainer's packages are not installed")
pytest.importorskip("accelerate", reason="the trainer's packages are not installed")
pytest.importorskip("jsonargparse", reason="the trainer's packages are not installed")
pytest.importorskip("captum", reason="the packages of explanations are not installed")

from safetensors.torch import load_file
from test_networks import small
from test_train_scale import COMMON, curve, run_processes
from train_runs import tiny

import fastfer
from fastfer.data import Augment
from fastfer.evaluate.__main__ import main as evaluate
from fastfer.explain.__main__ import main as explain
from fastfer.models import FerModel, create_model, list_models
from fastfer.train import train
from fastfer.train.__main__ import main
from fastfer.train.options import LossOptions
from fastfer.train.placement import Placement

KERNELS = "the package has no CUDA kernels here"


def need_kernels() -> None:
    if not fastfer.backend.half_storage("cuda"):
        pytest.skip(KERNELS)


def still(model: FerModel) -> FerModel:
    """Training without dropout, whose draws differ between a graph and what it was captured from."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    return model


def test_precisions(tmp_path: Path) -> None:
    """The same curve to rounding; weights stay in float32; fp16 keeps its loss scale."""
    options: dict[str, Any] = {"device": "cuda", "epochs": 2, "lr": 1e-3}
    reports = {p: train(tiny(tmp_path / p, precision=p, **options)) for p in ("fp32", "bf16", "fp16")}
    for precision, report in reports.items():
        assert report["environment"]["device"] == "cuda"
        assert report["environment"]["precision"] == precision
        assert report["last"]["loss"] == pytest.approx(reports["fp32"]["last"]["loss"], rel=0.1)
        weights = load_file(tmp_path / precision / "last" / "weights.safetensors")
        assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())
        scaler = json.loads((tmp_path / precision / "last" / "state.json").read_text())["scaler"]
        assert (scaler.get("scale", 0) > 0) == (precision == "fp16")


def test_the_cpu_and_the_gpu_have_the_same_curve(tmp_path: Path) -> None:
    """Augmentation draws on the host, so that both see the same images."""
    options: dict[str, Any] = {"epochs": 2, "lr": 1e-3, "augment": Augment(erase=0.5)}
    losses = [train(tiny(tmp_path / d, device=d, **options))["last"]["loss"] for d in ("cpu", "cuda")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_resume_with_a_loss_scale(tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cuda", "precision": "fp16", "lr": 1e-3, "epochs": 2}
    train(tiny(tmp_path / "run", **options))
    assert train(tiny(tmp_path / "run", **options), resume=True)["epochs"] == {"done": 2, "planned": 2}


def test_an_overflow_skips_the_update_and_lowers_the_scale() -> None:
    placement, layer = Placement("cuda", "fp16"), nn.Linear(4, 2, device="cuda")
    module, stepper = placement.prepare(layer, torch.optim.SGD(layer.parameters(), 0.1))
    before, scale = layer.weight.detach().clone(), placement.scaler_state()["scale"]
    placement.backward(module(torch.full((3, 4), 3e4, device="cuda")).float().square().sum() * 1e30)
    stepper.step()
    assert torch.equal(layer.weight, before)
    assert placement.scaler_state()["scale"] < scale


def step(model: FerModel, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = fastfer.ops.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list_models())
def test_a_graph_around_a_step(name: str, dtype: torch.dtype) -> None:
    """Forward, backward and update, captured once and replayed with other images, are those of eager calls."""
    need_kernels()
    torch.manual_seed(0)
    eager = still(create_model(name)).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    captured = copy.deepcopy(eager)
    batches = [small(eager, 4).cuda() for _ in range(3)]
    labels = torch.arange(4, device="cuda")
    optimizers = [torch.optim.SGD(m.parameters(), 1e-3) for m in (eager, captured)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    static = batches[0].clone()
    with torch.cuda.stream(side):
        step(captured, optimizers[1], static, labels, dtype)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(captured, optimizers[1], static, labels, dtype)
    losses = [float(step(eager, optimizers[0], x, labels, dtype)) for x in batches]
    for x, want in zip(batches[1:], losses[1:], strict=True):
        static.copy_(x)
        graph.replay()
        assert float(loss) == pytest.approx(want, rel=1e-3 if dtype == torch.float32 else 5e-2)
    for got, want in zip(captured.parameters(), eager.parameters(), strict=True):
        assert float((got - want).norm()) <= 1e-2 * float(want.norm()) + 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "ema": 0.9, "clip_norm": 1.0},
        {"loss": LossOptions(center=0.1, triplet=0.1, class_weights="balanced")},
    ],
    ids=["adamw", "sgd", "losses"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_with_a_graph_have_the_curve_of_runs_without(
    precision: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Over warm-up, recording, replays and the smaller last batch of each epoch."""
    need_kernels()
    common = {"device": "cuda", "precision": precision, "schedule": "cosine", "lr": 1e-3, "epochs": 4, **options}
    for graph in (False, True):
        train(tiny(tmp_path / str(graph), cuda_graph=graph, **common))
    rel = 1e-3 if precision == "fp32" else 5e-2
    assert curve(tmp_path / "True") == pytest.approx(curve(tmp_path / "False"), rel=rel)


def test_images_on_the_device(tmp_path: Path) -> None:
    """They lie there by default, and the run is that of images on the host."""
    modes = ("auto", "never")
    reports = [train(tiny(tmp_path / mode, device="cuda", epochs=2, lr=1e-3, resident=mode)) for mode in modes]
    assert [report["environment"]["resident"] for report in reports] == [True, False]
    assert curve(tmp_path / "auto") == pytest.approx(curve(tmp_path / "never"), rel=1e-3)


@pytest.mark.parametrize("name", list_models())
def test_compile(name: str) -> None:
    torch.manual_seed(0)
    model = still(create_model(name)).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = small(model, 2).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        want = model(x)
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_two_gpus_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    """Over NCCL, with synchronised norms."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} GPU, NCCL needs two")
    options = [option for option in COMMON if not option.startswith("--device")] + ["--device=cuda"]
    run_processes(2, *options, "--sync-norms=true", "--out", str(tmp_path / "two"))
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-3)
    environment = json.loads((tmp_path / "two" / "report.json").read_text())["environment"]
    assert (environment["processes"], environment["device"]) == (2, "cuda")


def test_two_gpus_on_the_kernels(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} GPU, NCCL needs two")
    need_kernels()
    options = [option for option in COMMON if not option.startswith(("--device", "--backend"))]
    run_processes(2, *options, "--device=cuda", "--precision=bf16", "--out", str(tmp_path / "run"))
    assert all(loss == loss for loss in curve(tmp_path / "run"))


def test_evaluation_and_explanation(tmp_path: Path) -> None:
    """Of what was trained on the GPU, on both devices: the same predictions."""
    train(tiny(tmp_path / "run", device="cuda", epochs=1))
    weights, data = str(tmp_path / "run" / "best.safetensors"), ["--data", "drawn"]
    reports = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        assert evaluate([weights, *data, "--device", device, "--seconds", "0", "--out", str(out)]) == 0
        reports.append(json.loads((out / "report.json").read_text())["metrics"]["accuracy"])
    assert reports[1] == pytest.approx(reports[0], abs=0.05)
    assert explain([weights, *data, "--device", "cuda", "--out", str(tmp_path / "maps")]) == 0
