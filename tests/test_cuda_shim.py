# SPDX-License-Identifier: Apache-2.0
"""The host machine that runs CUDA kernels finds planted errors, each by its message, and lets right kernels pass."""

from __future__ import annotations

import pytest
import torch
from cuda_host import SHIM, HostLibrary


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    return HostLibrary(tmp_path_factory.mktemp("planted"), [SHIM / "planted.cu"], SHIM / "planted.inc")


def three_point(library: HostLibrary, error: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(192, generator=torch.Generator().manual_seed(0))
    y = torch.zeros_like(x)
    library.launch(f"three_point<{error}>", (3, 1, 1), 64, (x.data_ptr(), y.data_ptr(), 192))
    padded = torch.nn.functional.pad(x, (1, 1))
    return y, padded[:-2] + padded[1:-1] + padded[2:]


def branches(library: HostLibrary, error: int) -> torch.Tensor:
    y = torch.zeros(64)
    library.launch(f"branches<{error}>", (1, 1, 1), 64, (y.data_ptr(),))
    return y


def test_right_kernels_pass(planted: HostLibrary) -> None:
    torch.testing.assert_close(*three_point(planted, 0))
    assert torch.equal(branches(planted, 0), torch.arange(64).view(-1, 2).flip(1).reshape(-1).flip(0).float())


def test_wrong_lane(planted: HostLibrary) -> None:
    """A reduction that leaves one step out gives a wrong sum: shuffles are those of a warp, not of a lane."""
    x, y = torch.randn(64, generator=torch.Generator().manual_seed(1)).double().float(), torch.zeros(2)
    for error, right in ((0, True), (1, False)):
        planted.launch(f"warp_total<{error}>", (2, 1, 1), 32, (x.data_ptr(), y.data_ptr()))
        assert torch.allclose(y, x.view(2, 32).sum(1), atol=1e-5) is right


@pytest.mark.parametrize(
    ("kernel", "k", "right"),
    [
        ("product<bf16, 0>", 16, True),
        ("product<f16, 0>", 16, True),
        ("product<tf32, 0>", 8, True),
        ("product<bf16, 1>", 16, False),
    ],
)
def test_tensor_cores(planted: HostLibrary, kernel: str, k: int, right: bool) -> None:
    """Whole numbers, exact in every type: each lane's words go where the hardware takes them, and wrong ones show."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 9, (rows, k), generator=generator).float() for rows in (16, 8))
    y = torch.zeros(16, 8)
    planted.launch(kernel, (1, 1, 1), 32, (a.data_ptr(), b.data_ptr(), y.data_ptr()))
    assert torch.equal(y, a @ b.t()) is right


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (1, r"line \d+: tile\[65\] is read before any thread wrote it"),
        (2, r"line \d+: tile\[\d+\] is read (before any thread wrote it|with no barrier after thread \d+'s access)"),
        (3, r"line \d+: tile\[-1\] is outside its 66 elements"),
    ],
    ids=["unwritten", "missing barrier", "halo off by one"],
)
def test_shared_memory_errors(planted: HostLibrary, error: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        three_point(planted, error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (1, r"divergent barrier: thread \d+ (waits|is) at line \d+"),
        (2, r"divergent warp collective: thread \d+ waits at line \d+"),
        (3, r"divergent barrier: thread 0 is at line \d+, thread 32 at line \d+"),
        (4, r"tile\[\d+\] is (read|written) with no barrier after thread \d+'s access"),
    ],
    ids=["barrier", "collective", "two barriers", "overwritten"],
)
def test_divergence_and_races(planted: HostLibrary, error: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        branches(planted, error)


@pytest.mark.parametrize("grid", [(2**31, 1, 1), (1, 65536, 1), (1, 1, 65536), (0, 1, 1)])
def test_grids_have_cudas_limits(planted: HostLibrary, grid: tuple[int, int, int]) -> None:
    with pytest.raises(RuntimeError, match=r"grid side [012]: expected 1 to \d+ blocks"):
        planted.launch("branches<0>", grid, 64, (0,))


def test_samples_of_a_grid(planted: HostLibrary) -> None:
    """The first block, the last and some between write; the others do not run."""
    x, y = torch.ones(64 * 100), torch.zeros(64 * 100)
    with planted.sampled(10):
        planted.launch("three_point<0>", (100, 1, 1), 64, (x.data_ptr(), y.data_ptr(), 6400))
    ran = [i for i, block in enumerate(y.view(100, 64)) if block.any()]
    assert ran[0] == 0
    assert ran[-1] == 99
    assert 10 <= len(ran) <= 12
    planted.launch("three_point<0>", (100, 1, 1), 64, (x.data_ptr(), y.data_ptr(), 6400))
    assert bool(y.view(100, 64).any(1).all())


def test_blocks_and_names(planted: HostLibrary) -> None:
    assert "three_point<0>" in planted.names()
    with pytest.raises(RuntimeError, match="whole warps"):
        planted.launch("branches<0>", (1, 1, 1), 33, (0,))
    with pytest.raises(RuntimeError, match="no such kernel"):
        planted.launch("branches<9>", (1, 1, 1), 32, (0,))
    with pytest.raises(RuntimeError, match="wrong number of arguments"):
        planted.launch("branches<0>", (1, 1, 1), 64, ())
