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

    def strided(self, kernel: str, like: Tensor, items: int, threads: int, *args: Any, multiple: int = 1) -> None:
        """A grid-stride kernel over ``items``, in at most the blocks that the device holds at once.

        Fewer blocks than the items ask for are a multiple of ``multiple``, if there are so many.
        """
        blocks = self.multiprocessors(like.device) * (2048 // threads)
        blocks -= blocks % multiple if blocks > multiple else 0
        self(kernel, like, (min(-(-items // threads), blocks), 1, 1), threads, *args)

    def tickets(self, like: Tensor, count: int) -> Tensor:
        """``count`` zeros by which blocks of a kernel find out which is the last; it leaves zeros there.

        Kernels on one stream run one after the other and share theirs. What is captured into a graph may be replayed
        beside anything, so it gets zeros that nothing else does.
        """
        device = like.device
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        own = _own_tickets(device)
        if capturing:
            return own.take(count)
        own.refill()
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        return _shared_tickets(device, stream, -(-count // _TICKETS) * _TICKETS)

    @abstractmethod
    def run(
        self, kernel: str, device: torch.device, grid: tuple[int, int, int], threads: int, words: tuple[Any, ...]
    ) -> None:
        """Launch with ``words`` of 8 bytes: addresses, ints, floats."""

    def multiprocessors(self, device: torch.device) -> int:
        """Multiprocessors of ``device``."""
        return _multiprocessors(device)


_TICKETS, _OWN_TICKETS = 1024, 1 << 18


class _OwnTickets:
    """Zeros that are given out once. They are made between captures, as long as there are any: a graph would make its
    own again at each replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._left = torch.zeros(0, dtype=torch.int32, device=device)

    def refill(self) -> None:
        if len(self._left) < _OWN_TICKETS // 2:
            self._left = torch.zeros(_OWN_TICKETS, dtype=torch.int32, device=self._device)

    def take(self, count: int) -> Tensor:
        if count > len(self._left):
            return torch.zeros(count, dtype=torch.int32, device=self._device)
        taken, self._left = self._left[:count], self._left[count:]
        return taken


@functools.cache
def _own_tickets(device: torch.device) -> _OwnTickets:
    return _OwnTickets(device)


@functools.cache
def _shared_tickets(device: torch.device, stream: int, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
