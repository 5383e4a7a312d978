# SPDX-License-Identifier: Apache-2.0
"""Activation names and dtypes that ops, backends and the engine agree on."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid")
"""Activation names; the index is the code that kernels receive."""

DTYPES = (torch.float32, torch.float64)
HALF_DTYPES = (torch.bfloat16, torch.float16)
_COMPUTE = dict.fromkeys(HALF_DTYPES, torch.float32)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What ``x`` is computed in, the dtype of parameters beside it: float32 for bfloat16 and float16, else its own."""
    return _COMPUTE.get(x.dtype, x.dtype)
