# SPDX-License-Identifier: Apache-2.0
"""Ranges of a graph's values over a set of images, from which int8 plans take the scales of their activations.

A float32 plan whose steps are not fused measures them. Kept are the least and the largest element of each value over
all images; scales of weights are the kernels' matter, one a channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastfer.engine.file import Ranges, to_bytes
from fastfer.engine.graph import Array, Graph, Shape
from fastfer.runtime import native


def calibrated(graph: Graph, images: Iterable[Any], threads: int) -> Ranges:
    """(least, largest) of each value, in the order of ``graph.values``.

    ``images`` gives float32 batches (N, C, H, W), arrays or tensors, or pairs with such a batch first. Raises
    ValueError where there are none, where one does not fit, and where a value is not finite.
    """
    shape = graph.values[graph.input]
    plan = native().EnginePlan(to_bytes(graph, {}), threads, apart=True)
    found = np.empty((0, len(graph.values), 2))
    for number, item in enumerate(images):
        batch = np.ascontiguousarray(_batch(item, shape, number))
        if len(batch):
            if not np.isfinite(batch).all():
                raise ValueError(f"compile: calibration: batch {number}: expected finite images, got NaN or infinity")
            ranges = np.array(plan.ranges(batch.ctypes.data, "float32", len(batch)), np.float64)
            ranges[graph.input] = batch.min(), batch.max()  # no step of the plan writes it
            found = np.concatenate([found, ranges[None]])
    if not len(found):
        raise ValueError("compile: calibration: expected images, got none")
    least, largest = found[:, :, 0].min(0), found[:, :, 1].max(0)
    if not np.isfinite([least, largest]).all():
        raise ValueError("compile: calibration: expected finite activations, got NaN or infinity")
    return list(zip(least.tolist(), largest.tolist(), strict=True))


def _batch(item: Any, shape: Shape, number: int) -> Array:
    """The images of what a loader gave."""
    batch = item[0] if isinstance(item, (list, tuple)) else item
    array = batch.detach().cpu().numpy() if hasattr(batch, "detach") else batch
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape[1:] != tuple(shape):
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        want = f"(N, {shape.channels}, {shape.height}, {shape.width})"
        raise ValueError(f"compile: calibration: batch {number}: expected float32 images {want}, got {got}")
    return array
