# SPDX-License-Identifier: Apache-2.0
"""What every native caller needs: dense tensors, and memory for results.

Small activations live with torch's allocator, large ones on huge pages that are kept for reuse: glibc gives every block
above 32 MiB back at free, and each op that needs one faults its pages in again. Tensors made here are ordinary ones;
only their storage cannot be resized.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastfer import _C, _environment, _memory

_SETTING = _environment.variable("FASTFER_HUGE_PAGES") or "1"
if _SETTING not in ("0", "1"):
    raise ValueError(f"FASTFER_HUGE_PAGES: expected 0 or 1, got {_SETTING!r}")
_LARGE = 1 << 20 if _SETTING == "1" else 1 << 62


_MOST = 1 << 47
"""Bytes that a process can address; sizes beyond would not fit the sums of the kernels."""

CPU = torch.device("cpu")
"""For every tensor made here: torch's default device, and the device of a ``with``, may be another."""


def flat(t: Tensor | None) -> Tensor | None:
    """Contiguous, None for None."""
    return None if t is None else t.contiguous()


def nhwc(x: Tensor) -> Tensor:
    """Dense channels_last; an error for a tensor whose storage was freed, which torch would copy from nowhere."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x  # the extension looks at its address
    _memory.check_address("fastfer", "input", x)
    return x.contiguous(memory_format=torch.channels_last)


def _large(like: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    size = math.prod(shape) * like.element_size()
    if size > _MOST:
        raise ValueError(f"fastfer: output: expected at most {_MOST} bytes, got {size} for shape {tuple(shape)}")
    made: Tensor = from_dlpack(_C.huge_empty(like.dtype == torch.float64, list(shape), list(strides)))
    return made


def empty(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised contiguous tensor with the dtype of ``like``."""
    if math.prod(shape) * like.element_size() < _LARGE:
        return torch.empty(shape, dtype=like.dtype, device=CPU)
    return _large(like, shape, [math.prod(shape[i + 1 :]) for i in range(len(shape))])


def empty_nhwc(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Uninitialised channels_last (N, channels, height, width) with the N and dtype of ``like``."""
    n = like.shape[0]
    if n * channels * height * width * like.element_size() < _LARGE:
        shape = (n, channels, height, width)
        return torch.empty(shape, dtype=like.dtype, device=CPU, memory_format=torch.channels_last)
    return _large(like, (n, channels, height, width), [height * width * channels, 1, width * channels, channels])
