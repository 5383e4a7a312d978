# SPDX-License-Identifier: Apache-2.0
"""Convolutions of one map that fill no whole vectors are one, and give what they gave apart."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastfer

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


class Heads(nn.Module):
    """A detector's heads: 1×1 to a few channels, perhaps depthwise behind it, perhaps an activation."""

    def __init__(self, counts: tuple[int, ...], acts: tuple[Any, ...], depthwise: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.heads = nn.ModuleList()
        for count, act in zip(counts, acts, strict=True):
            layers = [nn.Conv2d(24, count, 1)]
            if depthwise:
                layers.append(nn.Conv2d(count, count, 3, padding=1, groups=count))
            self.heads.append(nn.Sequential(*layers, *([act()] if act else [])))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x).relu()
        return [head(x) for head in self.heads]


def steps(engine: Any) -> Counter[str]:
    return Counter(line.split()[0] for line in str(engine.plan()).splitlines()[4:-1])


def near(engine: Any, net: nn.Module, x: Tensor, limit: float = 1e-5) -> None:
    with torch.no_grad():
        want = net.double()(x.double())
    for got, one in zip(engine(x), want, strict=True):
        assert got.shape == one.shape
        assert float((got - one).abs().max()) < limit * max(float(one.abs().max()), 1)


@pytest.mark.parametrize(
    ("acts", "depthwise"),
    [
        ((None, None, None, None), False),
        ((None, nn.Sigmoid, None, nn.ReLU), False),
        ((nn.Sigmoid, nn.Sigmoid, None, None), True),
        ((nn.ReLU,) * 4, True),
    ],
)
def test_heads_are_one_convolution(acts: tuple[Any, ...], depthwise: bool) -> None:
    net = Heads((1, 1, 4, 9), acts, depthwise).eval()
    engine = fastfer.compile(net, (1, 3, 9, 11), threads=2)
    found = steps(engine)
    assert found["conv"] == 1
    assert found["depthwise"] == depthwise
    near(engine, net, torch.randn(3, 3, 9, 11))


@pytest.mark.parametrize("counts", [(16, 16), (8, 40), (12, 12, 12)])
def test_those_that_would_save_less_than_half_stay_apart(counts: tuple[int, ...]) -> None:
    net = Heads(counts, (None,) * len(counts), False).eval()
    engine = fastfer.compile(net, (1, 3, 9, 11), threads=1)
    assert steps(engine)["conv"] == len(counts)
    near(engine, net, torch.randn(2, 3, 9, 11))


def test_a_map_that_another_reads_too_and_one_of_another_window() -> None:
    class Net(Heads):
        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.stem(x).relu()
            a, b = (head[0](x) for head in self.heads)  # type: ignore[index]
            first, second = (head[1](y) for head, y in zip(self.heads, (a, b), strict=True))  # type: ignore[index]
            return [first, second, a * 2, nn.functional.conv2d(x, self.wide, padding=1)]

    net = Net((3, 5), (None, None), True).eval()
    net.register_buffer("wide", torch.randn(2, 24, 3, 3))
    engine = fastfer.compile(net, (1, 3, 9, 11), threads=1)
    near(engine, net, torch.randn(2, 3, 9, 11))


def test_low_precision() -> None:
    net = Heads((1, 1, 4, 9), (nn.Sigmoid, None, None, nn.ReLU), True).eval()
    x = torch.randn(4, 3, 9, 11)
    near(fastfer.compile(net, x.shape, dtype="bfloat16"), net, x, 3e-2)
    net = net.float()
    near(fastfer.compile(net, x.shape, dtype="int8", calibration=[x]), net, x, 6e-2)
