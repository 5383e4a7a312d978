# SPDX-License-Identifier: Apache-2.0
"""Every CUDA family in the 16-bit storage types on the host machine, and every kernel instance that ships."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_host import HostLaunch, HostLibrary, families
from cuda_types import CASES, SILU, Check

from fastfer.backends.cuda import elementwise
from fastfer.backends.cuda.loader import DTYPES


@pytest.fixture(scope="module")
def launch(host_kernels: HostLibrary) -> HostLaunch:
    return HostLaunch(host_kernels)


@pytest.fixture(scope="module")
def ran() -> set[tuple[str, torch.dtype]]:
    """Families and types whose cases have run."""
    return set()


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage_type(launch: HostLaunch, ran: set[Any], family: str, dtype: torch.dtype) -> None:
    CASES[family](Check(launch, family, dtype))
    ran.add((family, dtype))


def products(launch: HostLaunch, precision: str, eps: float | None) -> set[str]:
    """The kernels that the float32 cases of the families with products launch while torch allows ``precision``."""
    before = torch.backends.cuda.matmul.fp32_precision
    own = HostLaunch(launch.library)
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        for family in ("conv2d", "separable_conv"):
            CASES[family](Check(own, family, torch.float32, eps=eps))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    launch.launched |= own.launched
    return {name for name in own.launched if name.startswith(("conv2d", "pointwise"))}


def test_tf32_only_where_torch_allows_it(launch: HostLaunch) -> None:
    names = products(launch, "tf32", 2**-10)
    assert names
    assert all(name.endswith("<float, tf32>") for name in names)
    assert {name.replace("tf32", "float") for name in names} == products(launch, "ieee", None)


def test_every_instance_that_ships_runs(launch: HostLaunch, ran: set[Any], host_kernels: HostLibrary) -> None:
    """What nvcc builds is what these cases launch: no instance ships untried, and none is asked for that does not."""
    for family in families():
        for dtype in DTYPES:
            if (family, dtype) not in ran:
                CASES[family](Check(launch, family, dtype))
    products(launch, "tf32", 2**-10)
    assert set(host_kernels.names()) - launch.launched == set()
    assert elementwise.kernel("activation_fwd", "bf16", SILU, 8) in launch.launched
