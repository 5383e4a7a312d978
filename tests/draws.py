# SPDX-License-Identifier: Apache-2.0
"""What the tests of several families draw and name: dtypes, kernels, seeded tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f32", "f64"))


def kernels(op: str, dtype: torch.dtype, *directions: str) -> list[str]:
    return [f"{op}_{direction}_{'f64' if dtype == torch.float64 else 'f32'}" for direction in directions]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
