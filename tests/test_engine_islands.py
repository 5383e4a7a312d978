# SPDX-License-Identifier: Apache-2.0
"""Networks with ops that no plan has: torch between the plans."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastfer
from fastfer.engine.islands import Islands
from fastfer.models import create_model

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


ISLANDS = [f"aten.{op}" for op in ("atan", "add", "cummax", "reshape", "view", "mean")]


class Mixed(nn.Module):
    """An angle with a link around it, tokens that leave a plan, running maxima, a batch-dependent reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second, self.norm = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.LayerNorm(8)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x.atan() + x
        tokens = self.norm(self.second(y).flatten(2).transpose(1, 2)).cummax(1).values
        pooled = tokens.reshape(-1, 8).view(x.shape[0], -1, 8).mean(1)
        return self.head(pooled).softmax(1)


def check(model: nn.Module, x: Tensor, islands: list[str]) -> Islands:
    engine = fastfer.compile(model, x.shape, fallback="torch", threads=2)
    assert isinstance(engine, Islands)
    assert [name.partition(" in ")[0] for name in engine.islands] == islands
    for count in (1, 2, len(x)):
        with torch.no_grad():
            want = model(x[:count])
        torch.testing.assert_close(engine(x[:count]), want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(engine(x[:count].numpy()), want.numpy(), rtol=1e-4, atol=1e-5)
    return engine


def test_islands(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    engine = check(model, torch.randn(5, 3, 9, 7), ISLANDS)
    assert engine.output_shapes == ((5,),)
    assert engine.memory["weights"] > 0
    for call in (lambda: engine.save(tmp_path / "x.ffe"), engine.profile):
        with pytest.raises(ValueError, match=r"expected an engine without torch islands, got aten\.atan"):
            call()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"expected shape \(N, 3, 9, 7\)"):
        engine(torch.zeros(1, 4, 9, 7))


def test_islands_are_not_calibrated() -> None:
    with pytest.raises(ValueError, match="dtype: expected float32 or bfloat16 with torch islands, got int8"):
        fastfer.compile(Mixed(), (3, 9, 7), dtype="int8", calibration=[torch.zeros(1, 3, 9, 7)], fallback="torch")


def test_a_covered_model_has_no_islands() -> None:
    engine = fastfer.compile(create_model("fgw_fer"), fallback="torch")
    assert not isinstance(engine, Islands)
    with pytest.raises(ValueError, match="fallback: expected 'error' or 'torch', got 'numpy'"):
        fastfer.compile(create_model("fgw_fer"), fallback="numpy")
    with pytest.raises(ValueError, match="fallback: expected 'error' or 'torch', got ' or '"):
        fastfer.compile(create_model("fgw_fer"), fallback=" or ")


def test_pixels_and_torch_first() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.cumprod(3)).mean((2, 3))

    torch.manual_seed(0)
    model = First().eval()
    engine = fastfer.compile(model, (1, 6, 6), fallback="torch", mean=[0.5], std=[0.25])
    pixels = torch.randint(0, 256, (3, 1, 6, 6), dtype=torch.uint8)
    with torch.no_grad():
        want = model((pixels / 255 - 0.5) / 0.25)
    torch.testing.assert_close(engine(pixels), want, rtol=1e-4, atol=1e-5)


def test_patt_lite_as_published() -> None:
    """Its attention over the batch, and what follows, in torch; the whole backbone in one plan."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = create_model("patt_lite", attention="batch", depth=6).eval()
    x = torch.randn(4, 3, 224, 224)
    engine = fastfer.compile(model, fallback="torch")
    assert isinstance(engine, Islands)
    assert "fastfer.dot_product_attention in classifier.attention" in engine.islands
    with torch.no_grad():
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)
