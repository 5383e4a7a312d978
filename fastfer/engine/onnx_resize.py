# SPDX-License-Identifier: Apache-2.0
"""ONNX's Resize and Upsample: torch's interpolation where it is the same, else weighted rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import floor
from typing import Any

import numpy as np
import torch

from fastfer.engine.graph import Array
from fastfer.engine.onnx_pointwise import axis_of, fixed, ints
from fastfer.engine.onnx_read import OnnxError, OnnxNode
from fastfer.engine.onnx_trace import Tracer, Value, aten, onnx_op
from fastfer.engine.views import Uncovered


def _sizes(node: OnnxNode, x: Value, scales: Any, sizes: Any, axes: list[int]) -> tuple[list[int], list[float], bool]:
    """New sizes of all axes, the scales of their coordinates, and whether the file says the scales."""
    new, rates = list(x.shape), [1.0] * x.dim()
    if sizes is not None and sizes.numel():
        wanted = ints(sizes, "sizes")
        if len(wanted) != len(axes) or min(wanted) < 1:
            raise OnnxError(f"sizes: expected {len(axes)} numbers >= 1, got {wanted}")
        policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            choose = min if policy == "not_larger" else max
            one = choose(want / x.shape[axis] for want, axis in zip(wanted, axes, strict=True))
            wanted = [floor(one * x.shape[axis] + 0.5) for axis in axes]
        for axis, want in zip(axes, wanted, strict=True):
            new[axis], rates[axis] = want, want / x.shape[axis]
        return new, rates, False
    given = [float(v) for v in fixed(scales, "scales").reshape(-1).tolist()]
    if len(given) != len(axes) or not all(0 < v < 1e6 for v in given):
        raise OnnxError(f"scales: expected {len(axes)} numbers above 0, got {given}")
    for axis, rate in zip(axes, given, strict=True):
        new[axis], rates[axis] = floor(x.shape[axis] * rate), rate
    return new, rates, True


def _coordinates(mode: str, new: int, old: int, rate: float) -> Array:
    """Of each new place, its place in the old image."""
    places, half = np.arange(new, dtype=np.float32), np.float32(0.5)  # as others compute: ties fall where theirs do
    step = np.float32(rate)
    if mode in ("half_pixel", "half_pixel_symmetric") or (mode == "pytorch_half_pixel" and new > 1):
        at: Array = (places + half) / step - half
        if mode == "half_pixel_symmetric":
            at = at + np.float32(old / 2 * (1 - new / (rate * old)))
        return at
    if mode == "pytorch_half_pixel":
        return np.zeros(1)
    if mode == "asymmetric":
        return places / step
    if mode == "align_corners":
        return places * (old - 1) / (new - 1) if new > 1 else np.zeros(1)
    raise Uncovered(f"coordinates of mode {mode}")


_ROUNDED: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@onnx_op("Resize", "Upsample")
def _resize(g: Tracer, node: OnnxNode, x: Value, *parts: Any) -> Any:
    if g.opset < 11:  # scales alone; coordinates as "asymmetric" has them
        scales = torch.tensor(node.attrs["scales"]) if "scales" in node.attrs else parts[0]
        sizes, coordinates, rounding = None, "asymmetric", "floor"
    else:
        scales, sizes = (*parts, None, None, None)[1:3]
        coordinates = node.attrs.get("coordinate_transformation_mode", "half_pixel")
        rounding = node.attrs.get("nearest_mode", "round_prefer_floor")
    given = node.attrs.get("axes")
    axes = list(range(x.dim())) if given is None else [axis_of(x, axis) for axis in given]
    new, rates, said = _sizes(node, x, scales, fixed(sizes, "sizes"), axes)
    if tuple(new) == tuple(x.shape) and all(rate == 1 for rate in rates):
        return x
    if x.dim() != 4 or new[:2] != list(x.shape[:2]):
        raise Uncovered(f"a resize of {tuple(x.shape)} to {tuple(new)}, expected height and width of an image")
    if node.attrs.get("antialias"):
        raise Uncovered("a resize with antialiasing")
    mode = node.attrs.get("mode", "nearest")
    at = [_coordinates(coordinates, new[i], x.shape[i], rates[i]) for i in (2, 3)]
    if mode == "nearest":
        if rounding not in _ROUNDED:
            raise OnnxError(f"nearest_mode: expected one of {', '.join(_ROUNDED)}, got {rounding!r}")
        limits = (x.shape[2] - 1, x.shape[3] - 1)
        places = [np.clip(_ROUNDED[rounding](a), 0, most).astype(int) for a, most in zip(at, limits, strict=True)]
        return _nearest(g, x, new[2:], places)
    if mode not in ("linear", "bilinear", "cubic"):
        raise OnnxError(f"mode: expected nearest, linear or cubic, got {mode!r}")
    if _is_torchs(node, new[2:], mode, coordinates):
        return _interpolated(g, x, new[2:], mode, coordinates == "align_corners", rates[2:] if said else None)
    for axis, where in zip((2, 3), at, strict=True):
        x = _weighted(g, x, axis, where, node if mode == "cubic" else None)
    return x


def _nearest(g: Tracer, x: Value, size: list[int], places: list[Array]) -> Any:
    """Rows and columns by their number, as torch does it where its numbers are these."""
    exact = [np.arange(new) * old // new for new, old in zip(size, x.shape[2:], strict=True)]
    if all(np.array_equal(a, b) for a, b in zip(exact, places, strict=True)):
        return g.call(aten.upsample_nearest2d.vec, x, size, None)
    for axis, rows in zip((2, 3), places, strict=True):
        if not np.array_equal(rows, np.arange(x.shape[axis])):
            x = g.call(aten.index_select.default, x, axis, torch.from_numpy(rows.astype(np.int64)))
    return x


def _is_torchs(node: OnnxNode, size: list[int], mode: str, coordinates: str) -> bool:
    """Whether torch has the interpolation. Its coordinate of a single new place is the middle, as in "half_pixel"."""
    if coordinates not in ("align_corners", "half_pixel") and not (
        coordinates == "pytorch_half_pixel" and min(size) > 1
    ):
        return False
    usual = abs(node.attrs.get("cubic_coeff_a", -0.75) + 0.75) < 1e-6
    return mode != "cubic" or (usual and not node.attrs.get("exclude_outside"))


def _interpolated(g: Tracer, x: Value, size: list[int], mode: str, corners: bool, rates: list[float] | None) -> Any:
    target = aten.upsample_bicubic2d.vec if mode == "cubic" else aten.upsample_bilinear2d.vec
    exact = (
        rates is None or corners or all(r * old == new for r, old, new in zip(rates, x.shape[2:], size, strict=True))
    )
    if exact:
        return g.call(target, x, size, corners, None)
    return g.call(target, x, None, corners, rates)


def _weighted(g: Tracer, x: Value, axis: int, at: Array, cubic: OnnxNode | None) -> Any:
    """Along an axis the sum of the two or four neighbours of each place, those beyond the border as the border is."""
    size, first = x.shape[axis], np.floor(at)
    if np.array_equal(at, np.arange(size)):
        return x
    t, taps = at - first, [0, 1] if cubic is None else [-1, 0, 1, 2]
    weights = np.stack([1 - t, t]) if cubic is None else _cubic(t, cubic.attrs.get("cubic_coeff_a", -0.75))
    places = np.stack([first + tap for tap in taps])
    if cubic is not None and cubic.attrs.get("exclude_outside"):
        weights = np.where((places >= 0) & (places < size), weights, 0)
        weights = weights / weights.sum(0)
    sizes = [-1 if i == axis else 1 for i in range(x.dim())]
    parts = []
    for rows, weight in zip(places.clip(0, size - 1).astype(np.int64), weights, strict=True):
        part = g.call(aten.index_select.default, x, axis, torch.from_numpy(rows))
        parts.append(g.call(aten.mul.Tensor, part, torch.from_numpy(weight.astype(np.float32)).reshape(sizes)))
    return reduce(lambda a, b: g.call(aten.add.Tensor, a, b), parts)


def _cubic(t: Array, a: float) -> Array:
    """Weights of four neighbours, the second of which is ``t`` away."""

    def near(d: Array) -> Array:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Array) -> Array:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)])
