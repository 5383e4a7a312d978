# SPDX-License-Identifier: Apache-2.0
"""Ranges of a graph's values over a set of images, from which int8 plans take the scales of their activations.

The graph runs in float32 as a plan whose outputs are its values, a few at a time. Kept are the least and the largest
element of each value over all images; scales of weights are the kernels' matter, one a channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastfer.engine.file import to_bytes
from fastfer.engine.graph import Array, Graph, Shape
from fastfer.runtime import Engine

_OUTPUTS = 8
"""Values that one plan gives at a time."""


def calibrated(graph: Graph, images: Iterable[Any], threads: int) -> list[tuple[float, float]]:
    """(least, largest) of each value, in the order of ``graph.values``.

    ``images`` gives float32 batches (N, C, H, W), arrays or tensors, or pairs with such a batch first. Raises
    ValueError where there are none, where one does not fit, and where a value is not finite.
    """
    shape = graph.values[graph.input]
    engines = _engines(graph, threads)
    least, largest = np.full(len(graph.values), np.inf), np.full(len(graph.values), -np.inf)
    for number, item in enumerate(images):
        batch = _batch(item, shape, number)
        _widen(least, largest, graph.input, batch)
        for values, engine in engines:
            results = engine(batch)
            for value, result in zip(values, results if isinstance(results, tuple) else (results,), strict=True):
                _widen(least, largest, value, result)
    if not np.isfinite([least, largest]).all():
        reason = "no images" if np.isinf(least[graph.input]) else "a value that is not finite"
        raise ValueError(f"compile: calibration: expected images with finite activations, got {reason}")
    return list(zip(least.tolist(), largest.tolist(), strict=True))


def _engines(graph: Graph, threads: int) -> list[tuple[list[int], Engine]]:
    """Plans that together give every value but the input, each with the numbers of its outputs."""
    written = [node.output for node in graph.nodes]
    engines = []
    for start in range(0, len(written), _OUTPUTS):
        values = written[start : start + _OUTPUTS]
        part = Graph(graph.values, graph.input, graph.nodes, tuple(values)).pruned()
        engines.append((values, Engine(to_bytes(part, {}), threads=threads)))
    return engines


def _batch(item: Any, shape: Shape, number: int) -> Array:
    """The images of what a loader gave."""
    batch = item[0] if isinstance(item, (list, tuple)) else item
    array = batch.detach().cpu().numpy() if hasattr(batch, "detach") else batch
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape[1:] != tuple(shape):
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        want = f"(N, {shape.channels}, {shape.height}, {shape.width})"
        raise ValueError(f"compile: calibration: batch {number}: expected float32 images {want}, got {got}")
    return array


def _widen(least: Array, largest: Array, value: int, got: Array) -> None:
    if got.size:
        least[value] = np.minimum(least[value], got.min())  # NaN stays
        largest[value] = np.maximum(largest[value], got.max())
