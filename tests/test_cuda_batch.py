# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels at the shapes of a batch of 256 images: launches and bytes of the networks, grids, sampled values.

Counts are those of `bench.launches`. Values are computed by a sample of each launch's blocks on the host machine, into
memory that was NaN, and compared where something was written; reductions over 256 small images run whole.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_host import HostLaunch, HostLibrary
from flat import Flat
from torch import Tensor

from fastfer._checks import ACTIVATIONS
from fastfer.backends.cuda import conv2d, norm, separable_conv
from fastfer.backends.cuda.launch import Launch
from fastfer.backends.cuda.loader import Bound
from fastfer.backends.reference import conv2d as reference_conv2d
from fastfer.backends.reference import norm as reference_norm
from fastfer.backends.reference import separable_conv as reference_separable

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "bench" / "launches.py").is_file(), reason="bench is not beside the tests")

LIMITS = (2**31 - 1, 65535, 65535)
HARDSWISH, EPS = ACTIVATIONS.index("hardswish"), 1e-3


@functools.cache
def counted(network: str, work: str) -> Any:
    from bench.launches import count

    return count(network, work)


def committed() -> list[dict[str, str]]:
    with (ROOT / "bench" / "results" / "launches.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", committed() if ROOT.joinpath("bench/results/launches.csv").is_file() else [])
def test_launches_and_bytes(row: dict[str, str]) -> None:
    """No more than the committed table says; `python -m bench.launches` writes it again where they fell."""
    launches, size = counted(row["network"], row["work"]).total()
    assert launches <= int(row["launches"])
    assert size <= (int(row["megabytes"]) + 0.5) * 1e6


@pytest.mark.parametrize(
    ("network", "work", "most"),
    [("fgw_fer", "training step", 300), ("fgw_fer", "inference", 50), ("sepconv_attention", "inference", 50)],
)
def test_launches_stay_few(network: str, work: str, most: int) -> None:
    assert counted(network, work).launches.total() <= most


def test_counts_are_of_one_step() -> None:
    """Every norm of the network is there once in each direction, and its running statistics in one update for all."""
    from fastfer.models import create_model

    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in create_model("fgw_fer").modules())
    launches = counted("fgw_fer", "training step").launches
    assert launches["norm_sums"] == norms
    assert launches["norm_grad"] + launches["norm_pool_bwd"] == norms
    assert launches["torch _foreach_lerp_"] == launches["torch _foreach_add_"] == 1
    assert not launches["torch lerp_"]


@pytest.mark.parametrize("work", ["training step", "inference"])
@pytest.mark.parametrize("network", sorted({row["network"] for row in committed()}))
def test_grids_and_chains(network: str, work: str) -> None:
    """Each grid is one that CUDA takes, and no sum over parts is the work of few threads for long.

    A block adds the parts of up to 32 words with 256 threads, so a thread adds one in eight.
    """
    for kernel, grid, threads, arguments in counted(network, work).calls:
        assert all(1 <= side <= limit for side, limit in zip(grid, LIMITS, strict=True)), (kernel, grid)
        assert 32 <= threads <= 1024
        name = kernel.partition("<")[0]
        parts = {"sum_blocks": 2, "moments": -1, "norm_sums": -1, "column_sums": -1}.get(name)
        if parts is not None:
            added = grid[0] if parts < 0 else arguments[parts]
            assert added / 8 <= 256, (kernel, added)
        if name in ("pointwise_fwd", "conv2d_fwd"):
            assert grid[0] / 4 <= 256  # tiles of 64 columns


def test_many_images_fit_into_a_grid() -> None:
    """4,096 images of 512 channels were more groups of channels than a grid is deep."""
    from bench.launches import Count, CountLaunch

    count = Count()
    functions = Flat(Bound(separable_conv, CountLaunch(count)))
    with torch.device("meta"):
        x = torch.empty(8192, 512, 6, 6).contiguous(memory_format=torch.channels_last)
        weight = torch.empty(512, 1, 3, 3)
        y = functions.depthwise_conv2d(x, weight, None, [1, 1], [1] * 4)
        functions.depthwise_conv2d_backward(y, x, weight, [1, 1], [1] * 4, [True] * 3)
    grids = {kernel.partition("<")[0]: grid for kernel, grid, *_ in count.calls}
    assert {"depthwise_tile", "depthwise_bwd_tile"} <= set(grids)
    assert all(side <= limit for grid in grids.values() for side, limit in zip(grid, LIMITS, strict=True))


class Sampled(HostLaunch):
    """Launches with the grids of a large device, of which a few blocks run."""

    def strided(self, kernel: str, like: Tensor, items: int, threads: int, *args: Any, multiple: int = 1) -> None:
        Launch.strided(self, kernel, like, items, threads, *args, multiple=multiple)

    def multiprocessors(self, device: torch.device) -> int:
        return 132


@contextmanager
def unwritten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New memory is NaN, so that what no block wrote shows."""
    empty, empty_like = torch.empty, torch.empty_like

    def filled(t: Tensor) -> Tensor:
        return t.fill_(math.nan) if t.is_floating_point() else t.zero_()

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *args, **options: filled(empty(*args, **options)))
        patch.setattr(torch, "empty_like", lambda *args, **options: filled(empty_like(*args, **options)))
        yield


def image(*size: int) -> Tensor:
    x = torch.randn(size, generator=torch.Generator().manual_seed(len(size) + size[1]))
    return x.contiguous(memory_format=torch.channels_last)


def parameters(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(channels)
    weight, bias, mean, var = (torch.randn(channels, generator=g) for _ in range(4))
    return weight, bias, mean, var.abs() + 0.5


def wide(*arguments: Any) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


def compare(got: Tensor, want: Tensor, least: int) -> None:
    """Where something was written, at least ``least`` elements and not all, the values are float64's."""
    written = ~got.isnan()
    assert least <= int(written.sum()) < got.numel()
    scale = float(want.abs().max())
    assert float((got.double() - want)[written].abs().max()) <= 2e-6 * scale


def test_sampled_values(host_kernels: HostLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks all over the grids of 256 images: where they stand in memory is as right as in a small batch."""
    launch = Sampled(host_kernels)
    own = {module: Flat(Bound(module, launch)) for module in (conv2d, norm, separable_conv)}
    separable, reference = own[separable_conv], Flat(reference_separable)
    x, layer = image(256, 40, 12, 12), parameters(40)
    taps, weight = torch.randn(40, 1, 3, 3), torch.randn(70, 40, 1, 1) / 6
    dense, window = torch.randn(24, 40, 3, 3) / 19, ([1, 1], [1] * 4)
    block = (x, dense, None, *parameters(24), EPS, HARDSWISH, *window)
    cases: list[tuple[Any, Any, tuple[Any, ...]]] = [
        (separable.depthwise_conv2d, reference.depthwise_conv2d, (x, taps, None, [2, 2], [1] * 4)),
        (separable.pointwise_conv2d, reference.pointwise_conv2d, (x, weight, None)),
        (own[conv2d].conv2d, Flat(reference_conv2d).conv2d, block),
        (own[norm].batch_norm, Flat(reference_norm).batch_norm, (x, *layer, EPS, HARDSWISH)),
    ]
    for function, wanted, arguments in cases:
        with unwritten(monkeypatch), host_kernels.sampled(12):
            got = function(*arguments)
        compare(got, wanted(*wide(*arguments)), 1000)
    dy = image(256, 70, 12, 12)
    with unwritten(monkeypatch), host_kernels.sampled(12):
        dx = separable.pointwise_conv2d_backward(dy, x, weight, [True, False, False])[0]
    compare(dx, reference.pointwise_conv2d_backward(*wide(dy, x, weight), [True, False, False])[0], 1000)
    dy = image(256, 40, 12, 12)
    with unwritten(monkeypatch), host_kernels.sampled(12):
        dx = separable.depthwise_conv2d_backward(dy, x, taps, *window, [True, False, False])[0]
    compare(dx, reference.depthwise_conv2d_backward(*wide(dy, x, taps), *window, [True, False, False])[0], 1000)


def check_whole(host_kernels: HostLibrary, channels: int, size: int) -> None:
    """Statistics, sums and weight gradients over 256 images of ``size`` × ``size``, by all blocks of their launches."""
    launch = Sampled(host_kernels)
    own, reference = Flat(Bound(separable_conv, launch)), Flat(reference_separable)
    x, norms = image(256, channels, size, size) + 3, (parameters(channels), parameters(9))
    x = x.contiguous(memory_format=torch.channels_last)
    taps, weight = torch.randn(channels, 1, 3, 3), torch.randn(9, channels, 1, 1) / channels**0.5
    layers = (taps, None, *norms[0], EPS, HARDSWISH, weight, None, *norms[1], EPS, HARDSWISH)
    arguments = (x, *layers, [1, 1], [1] * 4, True)
    results = own.separable_conv2d_train(*arguments)
    wanted = reference.separable_conv2d_train(*wide(*arguments))
    out, y1, y2, *stats = results
    kept = (y1, y2, taps, *norms[0][:2], stats[0], HARDSWISH, weight, *norms[1][:2], stats[1], HARDSWISH)
    backward = (image(*out.shape), x, *kept, [1, 1], [1] * 4, True, [True, True, True, False])
    results = (*results, *own.separable_conv2d_backward(*backward))
    wanted = (*wanted, *reference.separable_conv2d_backward(*wide(*backward)))
    for i, (got, want) in enumerate(zip(results, wanted, strict=True)):
        if got.numel():
            error = float((got.double() - want).norm() / want.norm())
            assert error <= 5e-6, (i, error)


def test_reductions_over_256_images(host_kernels: HostLibrary) -> None:
    check_whole(host_kernels, 5, 3)


@pytest.mark.full
@pytest.mark.parametrize(("channels", "size"), [(8, 24), (40, 12), (96, 6)])
def test_reductions_over_256_larger_images(host_kernels: HostLibrary, channels: int, size: int) -> None:
    check_whole(host_kernels, channels, size)


def test_tickets_are_given_back(host_kernels: HostLibrary) -> None:
    """The next kernel on the stream begins with zeros, and gives the same bits."""
    launch = Sampled(host_kernels)
    x = image(256, 5, 6, 6)
    first, second = (norm.batch_statistics(launch, x, EPS) for _ in range(2))
    assert torch.equal(first, second)
    tickets = launch.tickets(x, 1)
    assert not tickets.any(), "a ticket was not given back"


def test_pooling_after_a_norm_reads_the_map_itself() -> None:
    """FGW-FER's skip branches: no map before the pooling is written normalised."""
    launches = counted("fgw_fer", "training step").launches
    assert (launches["norm_pool_fwd"], launches["max_pool2d_fwd"], launches["torch gather"]) == (4, 0, 0)
