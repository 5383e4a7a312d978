# SPDX-License-Identifier: Apache-2.0
"""Attention maps against what the modules put out, Grad-CAM against its definition, the choice of images, the files."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("captum", reason="the packages of explanations are not installed")
pytest.importorskip("matplotlib", reason="the packages of explanations are not installed")

from fastfer.data import BASIC_NAMES
from fastfer.explain import attention_maps, grad_cam
from fastfer.explain.__main__ import main
from fastfer.explain.choose import choose
from fastfer.explain.grad_cam import LAYERS
from fastfer.explain.run import TITLES
from fastfer.explain.sheet import combined, example_sheet, overlay, stretched
from fastfer.models import FerModel, create_model, list_models, save_weights
from fastfer.nn import BatchNorm2d, CoordinateAttention

SIDE = {"mobilenetv3_cpsca": 64, "vgg16_csa": 64, "patt_lite": 224}


def settled(name: str, **options: Any) -> FerModel:
    """In float64, with running statistics that are not the initial ones."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model(name, **options).double().eval()
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def images(model: FerModel, count: int = 2) -> Tensor:
    side = SIDE.get(model.name, 48)
    return torch.randn(count, model.in_chans, side, side, dtype=torch.float64)


def passed_through(model: FerModel, x: Tensor, kind: str) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], Tensor]]:
    """Inputs and output of each module that has a map of this kind."""
    seen: dict[str, Any] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: (m, i, o)}))
        for name in attention_maps(model, x)[kind]
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def explained(kind: str, module: Any, inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
    """The module's output, or what follows from it, with the map in the place of its own weights."""
    x = inputs[0]
    gate = maps[:, None]
    if kind == "cbam":
        return module.channel(x) * gate
    if kind in ("csa", "spatial"):
        y = x * gate + (module.channel(x) if kind == "csa" else 0)
        return nn.functional.max_pool2d(y, 2) if getattr(module, "pool", False) else y
    if kind == "scse":
        squeeze = torch.relu(module.fc1(x.mean((2, 3), keepdim=True)))
        return x * (gate + torch.sigmoid(module.fc2(squeeze)))
    if kind == "patches":
        return module.proj(module.pool(x)) * gate
    weights = maps.flatten(1) / maps[0].numel()
    return (weights[:, :, None] * inputs[-1 if kind == "dot_product" else 0]).sum(1)


@pytest.mark.parametrize(
    ("name", "options", "kind", "count"),
    [
        ("fgw_fer", {}, "cbam", 5),
        ("vgg16_csa", {}, "csa", 5),
        ("vgg16_csa", {"attention": "sa"}, "spatial", 5),
        ("vgg16_csa", {"attention": "scse"}, "scse", 5),
        ("vgg16_csa", {"attention": "cbam", "position": "after_pool"}, "cbam", 5),
        ("patt_lite", {}, "dot_product", 1),
        ("patt_lite", {"extraction": "attention"}, "patches", 1),
        ("sepconv_attention", {}, "dot_product", 1),
        ("sepconv_attention", {}, "additive", 1),
    ],
)
def test_maps_explain_the_output(name: str, options: dict, kind: str, count: int) -> None:
    model = settled(name, **options)
    x = images(model)
    maps, seen = attention_maps(model, x)[kind], passed_through(model, x, kind)
    assert len(maps) == len(seen) == count
    assert kind in TITLES
    with torch.no_grad():
        for key, (module, inputs, output) in seen.items():
            want = output.mean(1) if kind == "dot_product" else output
            torch.testing.assert_close(explained(kind, module, inputs, maps[key]), want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["ca", "maxca", "cpsca"])
def test_coordinate_maps(kind: str) -> None:
    """The mean over the channels of what the module multiplies its input by."""
    torch.manual_seed(0)
    module = CoordinateAttention(16, 4, kind=kind).double().eval()
    x = torch.rand(2, 16, 6, 10, dtype=torch.float64) + 0.5
    with torch.no_grad():
        want = (module(x) / x).mean(1)
    torch.testing.assert_close(attention_maps(nn.Sequential(module), x), {"coordinate": {"0": want}})
    model = settled("mobilenetv3_cpsca", attention=kind)
    assert len(attention_maps(model, images(model))["coordinate"]) == 7


def test_networks_without_maps() -> None:
    for name, options in (
        ("vgg16_csa", {"attention": "eca"}),
        ("patt_lite", {"attention": "batch"}),
        ("mobilenetv3_cpsca", {"attention": "se", "high_attention": "none"}),
    ):
        model = settled(name, **options)
        assert attention_maps(model, images(model)) == {}


@pytest.mark.parametrize("name", list_models())
def test_grad_cam(name: str) -> None:
    """Its definition: the channels weighted by the mean gradient of the class's logit, summed, the positive part."""
    model = settled(name)
    x, classes = images(model), torch.tensor([2, 5])
    kept: list[Tensor] = []
    handle = model.get_submodule(LAYERS[name]).register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model(x)
    handle.remove()
    gradient = torch.autograd.grad(logits[torch.arange(2), classes].sum(), kept[0])[0]
    want = torch.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)).detach()
    got = grad_cam(model, x, classes)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)


def test_grad_cam_refuses() -> None:
    model = settled("fgw_fer")
    x, classes = images(model), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"layer: expected a module of fgw_fer such as 'blocks.3', got 'x'"):
        grad_cam(model, x, classes, "x")
    with pytest.raises(ValueError, match=r"layer: expected one whose output is a map \(N, C, H, W\), got 'pool'"):
        grad_cam(model, x, classes, "pool")


def test_choice() -> None:
    """Hits by lot and sorted, of mistakes the surest of each kind, nothing for a class's own place."""
    labels = torch.tensor([0] * 6 + [1] * 4)
    logits = torch.zeros(10, 3)
    logits[:6, 0] = torch.arange(1.0, 7)
    logits[6:, 1] = torch.tensor([5.0, 0, 0, 0])
    logits[7:9, 2] = torch.tensor([2.0, 3.0])
    logits[9, 0] = 1.0
    rows = choose(logits, labels, right=3)
    assert len(rows[0].right) == 3
    assert [e.confidence for e in rows[0].right] == sorted((e.confidence for e in rows[0].right), reverse=True)
    assert {e.index for e in rows[0].right} <= set(range(6))
    assert rows[0].wrong == (None, None, None)
    assert [e and e.index for e in rows[1].wrong] == [9, None, 8]
    assert rows[1].wrong[2] is not None
    assert rows[1].wrong[2].confidence == pytest.approx(float(torch.softmax(logits[8], 0)[2]))
    assert rows[2].examples() == []
    assert rows == choose(logits, labels, right=3)
    assert {e.index for e in choose(logits, labels, right=6, seed=3)[0].right} == set(range(6))


def test_maps_are_combined() -> None:
    flat, ramp = torch.full((1, 2, 2), 5.0), torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    assert stretched(flat).tolist() == [[[0, 0], [0, 0]]]
    assert stretched(ramp).tolist() == [[[0, 0.25], [0.5, 1]]]
    both = combined([flat, ramp], (4, 4))
    assert both.shape == (1, 4, 4)
    assert (float(both.min()), float(both.max())) == (0, 1)


def test_overlay_colours_the_hot_place() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    for face in (np.full((48, 48), 128, np.uint8), np.full((3, 48, 48), 128, np.uint8)):
        picture = np.asarray(overlay(face, heat), int)
        red, _, blue = picture[2, 2]
        assert red > blue + 40
        red, _, blue = picture[-3, -3]
        assert abs(red - blue) < 40


def test_sheet_leaves_out_what_is_not_there() -> None:
    logits = torch.eye(2)[torch.tensor([0, 0, 1])] * 4
    rows = choose(logits, torch.tensor([0, 1, 1]), right=1)
    faces = np.zeros((3, 48, 48), np.uint8)
    heat = {i: np.zeros((48, 48), np.float32) for i in range(3)}
    sheet = np.asarray(example_sheet("title", rows, ("a", "b"), faces, heat))
    dark = (sheet.max(2) < 60).reshape(sheet.shape[0], -1)
    assert dark.sum() >= 3 * 2 * 90 * 90  # two hits and one mistake, each as face and as map
    assert (sheet == 255).all(2).mean() > 0.3


DATA = ["--data", "drawn", "--option", "train_images=14", "--option", "validation_images=42"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    header = {"classes": list(reversed(BASIC_NAMES)), "mean": [0.5], "std": [0.25]}
    save_weights(create_model("sepconv_attention"), path, header)
    return path


def test_command_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(weights), *DATA, "--right", "2"]) == 0
    out = tmp_path / "w-drawn-validation-explained"
    assert "dot_product.png" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "additive.png",
        "dot_product.png",
        "explanations.json",
        "grad_cam.png",
    ]
    report = json.loads((out / "explanations.json").read_text())
    assert report["classes"] == list(BASIC_NAMES)
    assert report["kinds"]["grad_cam"] == ["separable.2"]
    hits = [e for e in report["examples"] if e["truth"] == e["predicted"]]
    assert len(hits) < len(report["examples"])
    for example in report["examples"]:
        assert BASIC_NAMES[example["index"] % 7] == example["truth"]
        assert all(0 <= value <= 1 for place in example["maps"].values() for value in (*place["peak"], place["area"]))
    mistakes = {e["predicted"] for e in report["examples"] if e["truth"] != e["predicted"]}
    columns = max(1, *(sum(e["truth"] == name for e in hits) for name in BASIC_NAMES)) + len(mistakes)
    assert 96 * columns < Image.open(out / "grad_cam.png").width < 110 * columns + 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "x"], "layer: expected a module of sepconv_attention"),
        (["--right", "0"], "right, seed: expected 1, 0 or more"),
        (["--split", "test"], r"no test set|drawn"),
        (["--option", "x"], "option: expected NAME=VALUE"),
    ],
)
def test_bad_input(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(weights), *DATA, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_missing_packages_are_named(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert main([str(weights), *DATA]) == 2
    assert "pip install 'fastfer[explain]'" in capsys.readouterr().err
