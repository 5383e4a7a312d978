# SPDX-License-Identifier: Apache-2.0
"""Every public op on a GPU: each storage type against float64, autocast, and the types that compilers are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from half_cases import assert_fakes_agree, compare, drawn, output_dtype
from properties import Row
from property_rows import ROWS

import fastfer
from fastfer.backends.cuda import loader

if not torch.cuda.is_available():
    pytest.skip(f"torch {torch.__version__} sees no CUDA device", allow_module_level=True)

BY_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(params=["cuda", "cupy"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """The ops run on the kernels of each loader that is there."""
    available, reason = loader.availability(request.param)
    if not available:
        pytest.skip(reason)
    with fastfer.use(request.param):
        yield


@BY_ROW
@pytest.mark.parametrize("stored", loader.DTYPES, ids=str)
def test_against_float64(row: Row, stored: torch.dtype) -> None:
    wide = stored if stored == torch.float64 else torch.float32
    for seed in range(3):
        case, want = drawn(row, seed, stored)
        output = wide if row.name == "update_centers_" else stored
        compare(case, case.run(wide, stored, "cuda"), want, output, stored)


@BY_ROW
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(row: Row, dtype: torch.dtype) -> None:
    case, want = drawn(row, 2, dtype)
    with torch.autocast("cuda", dtype):
        got = case.run(torch.float32, torch.float32, "cuda")
    compare(case, got, want, output_dtype(row, torch.float32, dtype), dtype)


@BY_ROW
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_fakes_have_the_same_types(row: Row, stored: torch.dtype) -> None:
    case, _ = drawn(row, 3, stored)
    assert_fakes_agree(lambda: case.run(torch.float32, stored, "cuda"))
