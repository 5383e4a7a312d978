# SPDX-License-Identifier: Apache-2.0
"""The separable block in one CUDA kernel, on the host machine: sizes around its tiles and stages, slices, NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cuda_host import HostLaunch, HostLibrary
from flat import Flat
from tolerance import assert_close
from torch import Tensor

from fastfer._checks import ACTIVATIONS
from fastfer.backends.cuda import separable_conv
from fastfer.backends.cuda.loader import Bound
from fastfer.backends.reference import separable_conv as oracle

reference = Flat(oracle)

EPS, HARDSWISH, RELU = 1e-3, ACTIVATIONS.index("hardswish"), ACTIVATIONS.index("relu")
WINDOWS = ((3, 1), (3, 2), (5, 1))


@pytest.fixture
def launch(host_kernels: HostLibrary) -> HostLaunch:
    return HostLaunch(host_kernels)


def draw(c: int, o: int, k: int, bare: bool = False) -> list[Any]:
    """The block's tensors in float64, their values exact in float32; without norms and biases where it is bare."""
    g = torch.Generator().manual_seed(c + 100 * o)

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=g).double()

    def norm(channels: int) -> tuple[Any, ...]:
        mean, var = values(channels), (torch.rand(channels, generator=g) + 0.5).double()
        return (None,) * 4 if bare else (values(channels), values(channels), mean, var)

    dw, pw = values(c, 1, k, k) / k, values(o, c, 1, 1).float().double() / 4
    biases = (None, None) if bare else (values(c), values(o))
    return [dw, biases[0], *norm(c), EPS, HARDSWISH, pw, biases[1], *norm(o), EPS, RELU]


def run(launch: HostLaunch, x: Tensor, layers: list[Any], stride: int, padding: list[int]) -> tuple[Tensor, Tensor]:
    """On the kernel in the type of x, and in float64 by the reference."""
    own = [t.to(x.dtype) if isinstance(t, Tensor) else t for t in layers]
    got = Flat(Bound(separable_conv, launch)).separable_conv2d(x, *own, [stride] * 2, padding)
    return got, reference.separable_conv2d(x.double(), *layers, [stride] * 2, padding)


@pytest.mark.parametrize(("k", "stride"), WINDOWS)
def test_sizes(launch: HostLaunch, k: int, stride: int) -> None:
    """Pixels around a tile, channels around a stage, outputs around a tile of a product; unequal padding."""
    for n, c, o, h, w in (
        (1, 1, 1, k, k),
        (2, 15, 63, 8, 9),
        (1, 16, 64, 16, 7),
        (1, 17, 65, 17, 15),
        (2, 33, 128, 9, 5),
    ):
        x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(c)).contiguous(
            memory_format=torch.channels_last
        )
        got, want = run(launch, x, draw(c, o, k, bare=c == 16), stride, [1, 2, 0, k - 1])
        assert_close(got, want, "chain", k * k + c)
        assert got.is_contiguous(memory_format=torch.channels_last)
    assert launch.launched == {f"separable_tile<float, float, {k}, {stride}>"}


def test_no_padding_and_none_inside(launch: HostLaunch) -> None:
    for padding in ([0] * 4, [4, 0, 0, 5]):  # windows whole inside, and windows of nothing but padding
        got, want = run(launch, torch.randn(1, 3, 6, 5), draw(3, 4, 3), 1, padding)
        assert_close(got, want, "chain", 12)


def test_slices(launch: HostLaunch) -> None:
    base = torch.full((3, 8, 13, 21), math.nan)
    x = base[1:, 2:7, 1:-1, 1::2]
    x.copy_(torch.randn(x.shape))
    got, want = run(launch, x, draw(5, 6, 3), 2, [1] * 4)
    assert_close(got, want, "chain", 14)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite(launch: HostLaunch, value: float) -> None:
    """In its windows, for all outputs, also through zero weights, and nowhere else."""
    x, layers = torch.randn(1, 5, 11, 12), draw(5, 6, 3, bare=True)
    x[0, 2, 4, 8] = value
    layers[8][1, 2] = 0
    got, want = run(launch, x, layers, 1, [1] * 4)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
def test_storage_types(launch: HostLaunch, stored: torch.dtype) -> None:
    for k, stride in WINDOWS:
        x, layers = torch.randn(2, 37, 9, 10).to(stored), draw(37, 70, k)
        own = [t.float() if isinstance(t, Tensor) else t for t in layers]
        got = Flat(Bound(separable_conv, launch)).separable_conv2d(x, *own, [stride] * 2, [k // 2] * 4)
        want = reference.separable_conv2d(x.double(), *layers, [stride] * 2, [k // 2] * 4)
        assert got.dtype == stored
        assert float((got.double() - want).norm()) < 2 * torch.finfo(stored).eps * float(want.norm())
    assert {name.partition("<")[0] for name in launch.launched} == {"separable_tile"}


@pytest.mark.parametrize(
    ("dtype", "o", "kernel", "stride"),
    [(torch.float32, 129, 3, 1), (torch.float32, 8, 5, 2), (torch.float32, 8, 4, 1), (torch.float64, 8, 3, 2)],
)
def test_other_blocks_take_two_kernels(
    launch: HostLaunch, dtype: torch.dtype, o: int, kernel: int, stride: int
) -> None:
    got, want = run(launch, torch.randn(1, 3, 7, 8).to(dtype), draw(3, o, kernel), stride, [1] * 4)
    assert_close(got, want, "chain", 28)
    ran = {name.partition("<")[0] for name in launch.launched}
    tiled = kernel != 4 and dtype != torch.float64
    assert ran == ({"depthwise_tile", "pointwise_fwd"} if tiled else {"depthwise_any", "norm_act", "pointwise_fwd"})


def test_empty(launch: HostLaunch) -> None:
    assert run(launch, torch.zeros(0, 3, 5, 5), draw(3, 4, 3), 1, [1] * 4)[0].shape == (0, 4, 5, 5)
    assert not launch.launched
