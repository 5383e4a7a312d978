# SPDX-License-Identifier: Apache-2.0
"""Engines with images of other sizes, outputs that are whole numbers; their tables and copies."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastfer
from fastfer.engine.recipe import MOST_SIZES

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


class Flexible(nn.Module):
    """Takes any size: a resized link, windows that do not divide, a norm of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(F.gelu(self.conv(x)))
        up = F.interpolate(y, size=x.shape[2:], mode="bilinear") * x.mean(1, keepdim=True)
        return self.head(F.adaptive_avg_pool2d(up, 3).amax((2, 3))), up


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 6 * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def agree(engine: Any, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        want = model(x)
    for ours, theirs in zip(engine(x), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(engine(x.numpy()), want, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "torch"])
def test_any_size_by_a_plan_of_its_own(dtype: str) -> None:
    model = Flexible().eval()
    kept = copy.deepcopy(model)
    engine = fastfer.compile(model, (3, 12, 10), threads=1, fallback="torch")
    with torch.no_grad():
        model.head.weight.zero_()  # too late for the engine, at any size
    for size in ((12, 10), (9, 13), (20, 20), (9, 13), (1, 1)):
        agree(engine, kept, torch.randn(2, 3, *size))
    assert engine.sizes is not None
    assert len(engine.sizes.engines) == 3
    assert engine.input_shape == (3, 12, 10)


def test_plans_are_bounded_and_made_once() -> None:
    model = Flexible().eval()
    engine = fastfer.compile(model, (3, 8, 8), threads=1)
    assert engine.sizes is not None
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: engine(torch.zeros(1, 3, 5, n % 3 + 4)), range(12)))
    assert set(engine.sizes.engines) == {(3, 5, 4), (3, 5, 5), (3, 5, 6)}
    for width in range(9, 9 + MOST_SIZES + 2):
        engine(torch.zeros(1, 3, 5, width))
    assert len(engine.sizes.engines) == MOST_SIZES


def test_sizes_that_a_network_does_not_take() -> None:
    engine = fastfer.compile(Fixed().eval(), (3, 6, 5), threads=1)
    with pytest.raises(
        ValueError,
        match=r"expected shape \(N, 3, 6, 5\), or another size that the network takes, got images of \(3, 6, 6\)",
    ):
        engine(torch.zeros(1, 3, 6, 6))
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 3, 6, 5\), got \(1, 4, 6, 5\)"):
        engine(torch.zeros(1, 4, 6, 5))
    fixed = fastfer.compile(Flexible().eval(), (3, 6, 5), sizes="fixed")
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 3, 6, 5\), got \(1, 3, 6, 6\)"):
        fixed(torch.zeros(1, 3, 6, 6))


def test_sizes_in_copies() -> None:
    model = Flexible().eval()
    engine = fastfer.compile(model, (3, 8, 8), threads=1)
    for again in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        agree(again, model, torch.randn(2, 3, 9, 7))
    model.place = lambda: 0  # what no pickle holds
    again = pickle.loads(pickle.dumps(fastfer.compile(model, (3, 8, 8), threads=1)))
    assert again.sizes is None
    agree(again, model, torch.randn(2, 3, 8, 8))


class Places(nn.Module):
    def forward(self, x: Tensor) -> Any:
        values, places = x.topk(3, 1)
        return x.argmax(1), values, places, x > 0.25, (x * 3).to(torch.int32), x.flatten(1).argmin(1)


def test_outputs_that_are_whole_numbers() -> None:
    x = torch.randn(2, 5, 4, 3)
    engine = fastfer.compile(Places().eval(), x.shape, threads=1)
    want = Places()(x)
    for got in (engine(x), pickle.loads(pickle.dumps(engine))(x)):
        for ours, theirs in zip(got, want, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(engine(x.numpy()), want, strict=True):
        assert ours.dtype == theirs.numpy().dtype
        assert np.array_equal(ours, theirs.numpy())


def test_the_plan_as_a_table() -> None:
    engine = fastfer.compile(Flexible().eval(), (3, 8, 8), threads=1)
    lines = engine.plan().splitlines()
    assert lines[0].startswith("Engine(Flexible: (3, 8, 8) -> ((4,), (8, 8, 8)), float32, threads=1); weights ")
    assert lines[2].split() == ["step", "node", "MMAC", "KiB", "tasks"]
    assert {"stem", "unary", "statistics", "normalise", "resample"} <= {line.split()[0] for line in lines[4:]}
    islands = fastfer.compile(
        nn.Sequential(nn.Conv2d(3, 4, 1), Angle(), nn.Conv2d(4, 2, 1)), (3, 8, 8), fallback="torch"
    )
    assert "torch: aten.atan in 1" in islands.plan()


class Angle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.atan()
