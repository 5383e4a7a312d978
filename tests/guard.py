# SPDX-License-Identifier: Apache-2.0
"""Marked memory around every tensor that a backend allocates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_MARK = -777.0
_WIDTH = 64
EMPTY = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::new_empty_strided"}


class Guarded(TorchDispatchMode):
    """Inside it, torch.empty and its kin return tensors between marks; results of ops are tensors as ever.

    Call the functions of a backend's module inside it: below ``torch.ops`` the mode is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: list[tuple[Tensor, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result: Any = func(*args, **(kwargs or {}))
        name: Callable[[], str] = func.name
        if name().partition(".")[0] not in EMPTY or not result.dtype.is_floating_point:
            return result
        size = result.numel()
        storage = torch.full((size + 2 * _WIDTH,), _MARK, dtype=result.dtype)
        self._storages.append((storage, size))
        return storage.as_strided(result.shape, result.stride(), _WIDTH)

    def check(self, at_least: int = 1) -> None:
        """Asserts that the marks stand, around ``at_least`` tensors."""
        assert len(self._storages) >= at_least
        for storage, size in self._storages:
            marks = torch.cat([storage[:_WIDTH], storage[_WIDTH + size :]])
            touched = (marks != _MARK).nonzero().flatten().tolist()
            assert not touched, (
                f"written outside an output of {size} elements, at {touched[:8]} (of {2 * _WIDTH} marks)"
            )
