# SPDX-License-Identifier: Apache-2.0
"""A batch that several processes share: the reference's norms take its sums over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_total: Callable[[Tensor], Tensor] | None = None


@contextmanager
def synchronised(total: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Batch statistics, and the sums of their backward, over all processes; ``total`` sums a tensor over them."""
    global _total
    before, _total = _total, total
    try:
        yield
    finally:
        _total = before


def share() -> bool:
    """Whether processes share their batches now."""
    return _total is not None


def over_batch(sums: Tensor, count: int) -> tuple[Tensor, Tensor | int]:
    """Sums over a batch and their number of values, at least 1: of this process, or of all within `synchronised`."""
    if _total is None:
        return sums, max(count, 1)
    both = _total(torch.cat([sums.double().flatten(), sums.new_tensor([count], dtype=torch.float64)]))
    return both[:-1].view(sums.shape).to(sums.dtype), both[-1].clamp(min=1)
