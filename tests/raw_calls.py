# SPDX-License-Identifier: Apache-2.0
"""Random calls of the registered forward ops, most with shapes that do not fit: ``raw_calls.py SEED COUNT``.

A crash of this process is the failure that its caller looks for; errors are what the calls are meant to raise.
"""

from __future__ import annotations

import contextlib
import random
import sys
from typing import Any

import torch
from properties import draw_case
from property_rows import ROWS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Call = tuple[Any, tuple[Any, ...]]


class Recorded(TorchDispatchMode):
    """Right calls of fastfer's forward ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastfer" and "backward" not in func._schema.name:
            self.calls.append((func, tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)))
        return func(*args, **(kwargs or {}))


def altered(r: random.Random, t: Tensor) -> Tensor:
    """``t`` cut or doubled along an axis, flattened or empty."""
    how, axis = r.randrange(4), r.randrange(max(t.dim(), 1))
    if how == 0 and t.dim():
        return t.narrow(axis, 0, r.randrange(t.shape[axis] + 1))
    if how == 1 and t.dim() and t.shape[axis]:
        return torch.cat([t, t], axis)
    return t.flatten()[: r.randrange(t.numel() + 1)] if how == 2 else t.new_empty(0)


def main(seed: int, count: int) -> None:
    torch.set_num_threads(1)
    r, recorded = random.Random(seed), Recorded()
    for row in ROWS:
        case, _ = draw_case(row, seed)
        with recorded:
            case.run(case.draw.dtype)
    for func, args in recorded.calls:
        func(*args)  # as they came they are right
    for _ in range(count):
        func, args = r.choice(recorded.calls)
        given = list(args)
        for i in r.choices([i for i, a in enumerate(args) if isinstance(a, Tensor)], k=r.choice((1, 1, 2))):
            given[i] = altered(r, given[i])
        with contextlib.suppress(Exception):
            func(*given)
    print("alive")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
