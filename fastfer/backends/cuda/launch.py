# SPDX-License-Identifier: Apache-2.0
"""What runs CUDA kernels by name: the interface that both loaders, nvcc's and CuPy's, have."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Launch(ABC):
    """Runs kernels, asynchronously on torch's current stream."""

    def __call__(self, kernel: str, like: Tensor, grid: tuple[int, int, int], threads: int, *args: Any) -> None:
        """``kernel`` over ``grid`` blocks of ``threads`` threads on the device of ``like``; nothing where a side is 0.

        ``args`` are tensors, whose addresses are passed, ints (64 bits) and floats (double): hold on to the tensors.
        """
        if 0 in grid:
            return
        words = tuple(arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args)
        self.run(kernel, like.device, grid, threads, words)

    def strided(self, kernel: str, like: Tensor, items: int, threads: int, *args: Any) -> None:
        """A grid-stride kernel over ``items``, in at most the blocks that the device holds at once."""
        blocks = min(-(-items // threads), self.multiprocessors(like.device) * (2048 // threads))
        self(kernel, like, (blocks, 1, 1), threads, *args)

    @abstractmethod
    def run(
        self, kernel: str, device: torch.device, grid: tuple[int, int, int], threads: int, words: tuple[Any, ...]
    ) -> None:
        """Launch with ``words`` of 8 bytes: addresses, ints, floats."""

    def multiprocessors(self, device: torch.device) -> int:
        """Multiprocessors of ``device``."""
        return _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
