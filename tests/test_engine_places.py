# SPDX-License-Identifier: Apache-2.0
"""Concatenations, slices and shuffles of channels: without copies where they can be, right where they cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastfer

pytestmark = pytest.mark.skipif(
    not fastfer.list_backends()["native"].available, reason=fastfer.list_backends()["native"].reason
)


def _conv(i: int, o: int, k: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, groups=groups), nn.ReLU())


class _Joined(nn.Module):
    """Branches of one map joined, then read by a depthwise convolution, which wants a border, and by a product."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = _conv(3, 20, 3)
        self.branches = nn.ModuleList(_conv(20, width, 1 + 2 * (i % 2)) for i, width in enumerate(widths))
        self.deep, self.last = _conv(sum(widths), sum(widths), 3, sum(widths)), _conv(sum(widths), 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.last(self.deep(torch.cat([branch(x) for branch in self.branches], 1)))
        return y


class _Dense(nn.Module):
    """Each map joined with all before it, one of them with itself, and parts of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 3)
        self.layers = nn.ModuleList(_conv(16 * (i + 1), 16, 3) for i in range(3))
        self.part, self.last = _conv(32, 8, 3), _conv(80, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.last(torch.cat([x, x[:, 32:48]], 1)), self.part(x[:, 16:48]), x[:, 48:].relu()


class _Shuffles(nn.Module):
    """ShuffleNet's units: half passes by, then all channels are shuffled."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.stem, self.last = _conv(3, 2 * half, 3), _conv(2 * half, 4)
        self.units = nn.ModuleList(_conv(half, half, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            a, b = x.chunk(2, 1)
            y = torch.cat([a, unit(b)], 1)
            n, c, h, w = y.shape
            x = y.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        result: Tensor = self.last(x)
        return result


def _steps(model: nn.Module, size: tuple[int, int], threads: int = 1, **options: Any) -> list[str]:
    """The names of the plan's steps, after its outputs are found to be the network's."""
    torch.manual_seed(0)
    x = torch.randn(3, 3, *size)
    engine = fastfer.compile(model.eval(), x.shape, threads=threads, **options)
    got = engine(x)
    with torch.no_grad():
        want = model.double()(x.double())
    for ours, exact in zip(*([r] if isinstance(r, Tensor) else list(r) for r in (got, want)), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=3e-6 * float(exact.abs().max()))
    return [step.name for step in engine.profile(repeats=1).steps]


@pytest.mark.parametrize("widths", [(16, 32, 16), (16, 5, 32), (32, 7), (8, 8), (3, 4, 5, 16), (1,) * 40])
def test_what_is_joined(widths: tuple[int, ...]) -> None:
    steps = _steps(_Joined(widths), (9, 7), 2)
    assert ("concat" in steps) == any(sum(widths[:i]) % 16 for i in range(len(widths)))


def test_joined_again_and_again() -> None:
    steps = _steps(_Dense(), (8, 10))
    assert steps.count("concat") == 1, "the part that is joined a second time"
    assert not {"gather", "channels"} & set(steps)


@pytest.mark.parametrize("half", [5, 16, 29])
def test_shuffles(half: int) -> None:
    """A unit's two halves are each one pass over what they come from."""
    steps = _steps(_Shuffles(half), (7, 9), 2)
    assert not {"gather", "concat"} & set(steps)
    assert steps.count("channels") <= 6 + (half != 16)


@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (7, 2), (4, 4), (2, 2), ((1, 5), 1), (3, 3)])
def test_depthwise_of_any_window(kernel: Any, stride: int) -> None:
    _steps(nn.Sequential(nn.Conv2d(3, 20, 1), nn.Conv2d(20, 20, kernel, stride, groups=20), nn.SiLU()), (15, 29))


class _Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() + 0.5).log()


def test_bfloat16_after_a_logarithm() -> None:
    """What fills up a block of float32 is any number; products of pairs of channels must not read it."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), _Logarithm(), nn.Conv2d(3, 8, 1)).eval(), torch.randn(2, 3, 6, 6)
    got = fastfer.compile(model, x.shape, dtype="bfloat16", threads=1)(x)
    with torch.no_grad():
        torch.testing.assert_close(got, model(x), rtol=0, atol=0.05)
