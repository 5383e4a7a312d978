# SPDX-License-Identifier: Apache-2.0
"""The memory layout of the reference's results, outside of torch.func's transforms: vmap has no layout to give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_functorch: Any = torch._C._functorch


def _transformed() -> bool:
    return not torch.compiler.is_compiling() and _functorch.maybe_current_level() is not None


def nhwc(y: Tensor) -> Tensor:
    """A copy of ``y`` that is channels_last, also where sides of one pixel leave a choice."""
    return y if _transformed() else torch.empty_like(y, memory_format=torch.channels_last).copy_(y)


def dense(x: Tensor) -> Tensor:
    """``x`` as channels_last, itself where it is."""
    return x if _transformed() else x.contiguous(memory_format=torch.channels_last)
