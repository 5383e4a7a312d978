# SPDX-License-Identifier: Apache-2.0
"""Quantisation-aware fine-tuning: bytes where the engine has them, straight gradients, ranges with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import network

import fastfer
from fastfer.engine.rounding import as_stored, map_scale, weights_as_stored
from fastfer.models import load_weights, read_metadata, save_weights
from fastfer.train import InputError, configure, train
from fastfer.train.quantise import OBSERVED, Quantised, _Stored, stored_weights

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


def test_rounding_is_the_engines_and_gradients_go_through() -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scale, zero = map_scale(-0.7, 1.5)
    y = _Stored.apply(x, float(scale), float(zero))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(y.detach().numpy(), as_stored(x.detach().numpy(), scale, zero), rtol=0, atol=1e-6)
    y.sum().backward()
    level = x.detach() / scale + zero
    torch.testing.assert_close(x.grad, ((level > -0.5) & (level < 255.5)).float())
    assert 0 < (x.grad == 0).sum() < 250
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    rounded = stored_weights(weight)
    torch.testing.assert_close(rounded.detach().numpy(), weights_as_stored(weight.detach().numpy()), rtol=0, atol=1e-6)
    rounded.sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())


def test_computes_what_the_int8_plan_computes(tmp_path: Path) -> None:
    """Nearer to the engine with the frozen ranges than either is to float32; a weight file keeps the ranges."""
    model, x = network("sepconv_attention")
    x = torch.randn(6, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    quantised = Quantised(model, tuple(x.shape[1:]))
    with torch.no_grad():
        quantised(x)
        quantised.freeze()
        trained, exact = quantised(x)[0], model(x)
    save_weights(model, tmp_path / "net.safetensors")
    again = load_weights(tmp_path / "net.safetensors")
    assert again.int8_ranges == model.int8_ranges
    assert again.int8_ranges == read_metadata(tmp_path / "net.safetensors")["int8_ranges"]
    engine = fastfer.compile(again, tuple(x.shape), dtype="int8", threads=1)(x)
    assert (trained - engine).abs().mean() < 0.5 * (exact - engine).abs().mean()
    model.int8_ranges = None
    with pytest.raises(ValueError, match="calibration: expected images for dtype int8"):
        fastfer.compile(model, tuple(x.shape), dtype="int8")
    model.int8_ranges = [[3, 3, 1, 9, 0.0, 1.0]]
    with pytest.raises(ValueError, match="expected ranges of this network's convolutions"):
        fastfer.compile(model, tuple(x.shape), dtype="int8")
    model.int8_ranges = [[3, 3, 1, 9, 1.0, 0.0]]
    save_weights(model, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="int8_ranges: expected lists of six numbers"):
        load_weights(tmp_path / "bad.safetensors")


@pytest.mark.full
def test_inverted_bottlenecks() -> None:
    """Their three convolutions are the plan's, in order, and gradients reach their weights."""
    model, _ = network("mobilenetv3_cpsca")
    x = torch.randn(2, model.in_chans, 32, 32, generator=torch.Generator().manual_seed(0))
    quantised = Quantised(model, tuple(x.shape[1:]))
    quantised(x)
    quantised.freeze()
    quantised(x)[0].square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert fastfer.compile(model, tuple(x.shape), dtype="int8", threads=1)(x).isfinite().all()


@pytest.mark.parametrize("images", [8, 2 * OBSERVED + 8])
def test_a_run_ends_with_ranges(images: int, tmp_path: Path) -> None:
    """From a file, by the trainer, to the int8 engine without calibration images."""
    model = fastfer.create_model("fgw_fer")
    names = [str(number) for number in range(7)]
    start = tmp_path / "start.safetensors"
    model.class_names = tuple(names)
    save_weights(model, start)
    options: dict[str, Any] = {
        "model": "fgw_fer", "data": "drawn", "from_weights": str(start), "head": "fresh", "quantize": "int8",
        "epochs": 1, "lr": 1e-3, "batch_size": 2, "train_images": images, "validation_images": 8,
        "out": str(tmp_path / "run"), "threads": 1,
    }  # fmt: skip
    train(configure(**options))
    found = load_weights(tmp_path / "run" / "best.safetensors")
    assert found.int8_ranges is not None
    assert any(row[4] < row[5] for row in found.int8_ranges)
    assert fastfer.compile(str(tmp_path / "run" / "best.safetensors"), dtype="int8", threads=1).dtype == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "quantize: expected trained weights to start from"),
        ({"from_weights": "fgw_fer", "compile": True, "ema": 0.9}, "quantize: expected no compile, ema beside it"),
        ({"from_weights": "fgw_fer", "precision": "bf16"}, "quantize: expected no precision bf16 beside it"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        configure(model="fgw_fer", quantize="int8", **options)
