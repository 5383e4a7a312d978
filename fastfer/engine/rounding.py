# SPDX-License-Identifier: Apache-2.0
"""What bytes hold of weights and maps, with the rounding of the engine's kernels: to the nearest, ties to even.

A map has one scale and a zero point between 0 and 255, and its range reaches to 0; the weights of an output channel
have one scale, which takes the largest to 127.
"""

from __future__ import annotations

import numpy as np

from fastfer.engine.graph import Array

_LEAST_SCALE = np.float32(1e-30)


def map_scale(least: float, largest: float) -> tuple[np.float32, np.float32]:
    """Scale and zero point of bytes for numbers from ``least`` to ``largest``, in float32, as a plan takes them."""
    low, high = np.float32(min(least, 0.0)), np.float32(max(largest, 0.0))
    if not high > low:
        return np.float32(1), np.float32(0)
    scale = np.float32(max(high / np.float32(255) - low / np.float32(255), _LEAST_SCALE))
    return scale, np.float32(np.clip(_half_up(-low / scale), 0, 255))


def _half_up(value: np.float32) -> np.float32:
    """C's round, which takes halves away from zero; of numbers that are not negative."""
    return np.float32(np.floor(np.float64(value) + 0.5))


def as_stored(x: Array, scale: np.float32, zero: np.float32) -> Array:
    """The numbers that bytes keep of ``x``."""
    stored = np.clip(np.rint(x * (np.float32(1) / scale) + zero), 0, 255)
    result: Array = (stored - zero) * scale
    return result


def weights_as_stored(weight: Array) -> Array:
    """The numbers that bytes keep of the weights (O, ...) of a dense convolution."""
    weight = np.asarray(weight, np.float32)
    most = np.abs(weight).reshape(len(weight), -1).max(1)
    scale = np.where(most > 0, most / np.float32(127), np.float32(1)).astype(np.float32)
    scale = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    result: Array = np.rint(weight / scale) * scale
    return result
