# SPDX-License-Identifier: Apache-2.0
"""Which elements of an axis, and how much of each, make one of a resized or pooled axis. Needs no torch."""

from __future__ import annotations

from math import ceil, floor

import numpy as np

from fastfer.engine.graph import Array

Taps = tuple[Array, Array]
"""Of each new element the old ones (n, taps), -1: none, and their weights."""


def nearest(size: int, new: int, scale: float | None = None, exact: bool = False) -> Array:
    """Indices of the nearest elements; ``scale`` is new / old, where it was given."""
    step = np.float32(size / new if scale is None else 1 / scale)
    places = np.arange(new, dtype=np.float32)
    index = np.floor((places + np.float32(0.5)) * step if exact else places * step)
    return np.asarray(index.clip(0, size - 1).astype(np.int64))


def _places(size: int, new: int, corners: bool, scale: float | None) -> Array:
    """Where the new elements lie among the old."""
    places = np.arange(new, dtype=np.float64)
    if corners:
        return places * ((size - 1) / (new - 1) if new > 1 else 0.0)
    return (places + 0.5) * (size / new if scale is None else 1 / scale) - 0.5


def linear(size: int, new: int, corners: bool = False, scale: float | None = None) -> Taps:
    """Linear interpolation, as torch's; ``corners``: the first and last elements stay where they are."""
    at = _places(size, new, corners, scale).clip(min=0)
    low = np.floor(at).astype(np.int64).clip(0, size - 1)
    high, rate = (low + 1).clip(max=size - 1), at - low
    return np.stack([low, high], 1), np.stack([1 - rate, rate], 1)


def cubic(size: int, new: int, corners: bool = False, scale: float | None = None, a: float = -0.75) -> Taps:
    """Cubic convolution, the border repeated."""
    at = _places(size, new, corners, scale)
    low = np.floor(at)
    index = low[:, None] + np.arange(-1, 3)
    far = np.abs(at[:, None] - index)
    near = ((a + 2) * far - (a + 3)) * far**2 + 1
    weights = np.where(far <= 1, near, ((far - 5) * far + 8) * far * a - 4 * a)
    return index.clip(0, size - 1).astype(np.int64), weights


def adaptive(size: int, new: int) -> Taps:
    """Windows of an adaptive pooling, weights of its mean."""
    bounds = [(floor(i * size / new), ceil((i + 1) * size / new)) for i in range(new)]
    taps = max(end - start for start, end in bounds)
    index = np.full((new, taps), -1)
    weights = np.zeros((new, taps))
    for i, (start, end) in enumerate(bounds):
        index[i, : end - start] = np.arange(start, end)
        weights[i, : end - start] = 1 / (end - start)
    return index, weights


def sliding(
    size: int,
    kernel: int,
    stride: int,
    before: int,
    after: int,
    *,
    dilation: int = 1,
    ceiled: bool = False,
    counted: bool = False,
    divisor: float | None = None,
) -> Taps:
    """Windows of a pooling with padding; weights of its mean, over padding too where it is ``counted``."""
    span = dilation * (kernel - 1) + 1
    room = size + before + after - span
    new = (ceil(room / stride) if ceiled else room // stride) + 1
    if ceiled and (new - 1) * stride >= size + before:
        new -= 1
    index = np.arange(new)[:, None] * stride - before + dilation * np.arange(kernel)
    inside = (index >= 0) & (index < size)
    within = index < size + after
    counts = (within if counted else inside).sum(1, keepdims=True)
    weights = inside / (np.maximum(counts, 1) if divisor is None else divisor)
    return np.where(inside, index, -1), weights


def running(size: int, reverse: bool = False, exclusive: bool = False) -> Taps:
    """All elements up to each: their sum is a running one; from each on, or without it."""
    ends, index = np.arange(size)[:, None], np.arange(size)[None, :]
    if reverse:
        ends, index = -ends, -index
    there = index < ends if exclusive else index <= ends
    return np.where(there, np.abs(index), -1), np.ones((size, size))
