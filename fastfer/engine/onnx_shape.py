# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that move, join, choose or make elements; most of them run on constants and disappear."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfer.engine.onnx_pointwise import axes_of, axis_of, fixed, ints, number
from fastfer.engine.onnx_read import OnnxError, OnnxNode
from fastfer.engine.onnx_trace import Traced, Tracer, Value, aten, constant, onnx_op
from fastfer.engine.views import Uncovered


@onnx_op("Constant")
def _constant(g: Tracer, node: OnnxNode) -> Tensor:
    kinds = {
        "value_int": torch.int64,
        "value_ints": torch.int64,
        "value_float": torch.float32,
        "value_floats": torch.float32,
    }
    for name, dtype in kinds.items():
        if name in node.attrs:
            return torch.tensor(node.attrs[name], dtype=dtype)
    if "value" not in node.attrs:
        raise Uncovered(f"a constant of kind {', '.join(node.attrs) or 'none'}")
    return constant(node.attrs["value"])


@onnx_op("Shape")
def _shape(g: Tracer, node: OnnxNode, x: Value) -> Tensor:
    return torch.tensor(list(x.shape)[slice(node.attrs.get("start", 0), node.attrs.get("end"))], dtype=torch.int64)


@onnx_op("Size")
def _size(g: Tracer, node: OnnxNode, x: Value) -> Tensor:
    return torch.tensor(prod(x.shape), dtype=torch.int64)


@onnx_op("ConstantOfShape")
def _constant_of_shape(g: Tracer, node: OnnxNode, shape: Value) -> Tensor:
    sizes = ints(shape, "sizes")
    value = constant(node.attrs["value"]).reshape(-1)[0] if "value" in node.attrs else torch.tensor(0.0)
    g.spend(prod(sizes), value.element_size())
    return torch.full(sizes, value.item(), dtype=value.dtype)


@onnx_op("Range")
def _range(g: Tracer, node: OnnxNode, start: Value, limit: Value, delta: Value) -> Tensor:
    first, last, step = (number(fixed(v, "a range")) for v in (start, limit, delta))
    if not step:
        raise OnnxError("delta: expected a number that is not 0")
    count = max(ceil((last - first) / step), 0)
    g.spend(count, start.dtype.itemsize)
    return torch.tensor(first).add(torch.arange(count), alpha=step).to(start.dtype)


@onnx_op("Reshape")
def _reshape(g: Tracer, node: OnnxNode, x: Value, shape: Any = None) -> Any:
    sizes = ints(node.attrs["shape"] if shape is None else shape, "sizes")
    once = None if isinstance(x, Tensor) else g.once.get(node.inputs[0])
    # Sizes that an earlier run for the file's own number of images had, too, are numbers of the file.
    as_written = once is not None and (shape is None or g.once.get(node.inputs[1]) == tuple(sizes))
    own = once if as_written and once is not None else tuple(x.shape)
    if not node.attrs.get("allowzero"):
        sizes = [own[i] if size == 0 else size for i, size in enumerate(sizes)]
    if isinstance(x, Tensor):
        return x.reshape(sizes)
    if once is not None:  # in every run alike, so that these can be compared
        sizes = known(own, sizes)
    if as_written:
        sizes, g.lead = of_images(own, x.shape, sizes, g.leads.get(node.inputs[0], 1), g.declared or 1)
    return reshaped(g, x, sizes)


def known(shape: tuple[int, ...], sizes: list[int]) -> list[int]:
    """The sizes of a reshape of ``shape`` with a number in place of one -1."""
    if sizes.count(-1) != 1:
        return sizes
    return [prod(shape) // max(-prod(sizes), 1) if size == -1 else size for size in sizes]


def of_images(
    own: tuple[int, ...], shape: tuple[int, ...], sizes: list[int], lead: int, declared: int
) -> tuple[list[int], int]:
    """Sizes that the file gives a tensor of ``own`` shape for its number of images, as those of one of ``shape``; and
    how many elements of the size that now has the images stand before them, as ``lead`` do in the tensor's.

    Of one image, whose 1 may have gone: (T, 1, C) as (T, heads, C / heads) is (T, N · heads, C / heads), as (T, C) it
    is (T · N, C). A place in which images would mix is refused later, as in every network.
    """
    grown = [axis for axis, size in enumerate(own) if size != shape[axis]]
    if len(grown) != 1 or prod(own) == 0:
        return sizes, 1
    axis, images = grown[0], shape[grown[0]] * declared // own[grown[0]]
    first = prod(own[:axis]) * lead
    starts = [prod(sizes[:i]) for i in range(len(sizes))]
    places = [
        i
        for i, start in enumerate(starts)
        if start * sizes[i] > 0 and first % start == 0 and start * sizes[i] % (first * declared) == 0
    ]
    begin = [i for i in places if starts[i] == first]
    exact = [i for i in begin if sizes[i] == declared]
    # The last size, channels for the most part, does not hold images where the one before may.
    ends = [i for i in places if starts[i] < first == starts[i] * sizes[i]]
    ends = [i for i in ends if sizes[i + 1 :] == list(own[axis + 1 :]) or i == len(sizes) - 2]
    chosen = next(iter(exact + ends + begin + places), None)
    if chosen is None:
        return sizes, 1
    scaled = [size // declared * images if i == chosen else size for i, size in enumerate(sizes)]
    return scaled, first // starts[chosen]


def reshaped(g: Tracer, x: Value, sizes: list[int]) -> Any:
    """The tensor with other sizes."""
    if isinstance(x, Tensor):
        return x.reshape(sizes)
    if sizes and g.declared is None and x.shape[:1] == (g.images,) and sizes[0] in range(1, g.images) and -1 in sizes:
        raise Uncovered(f"sizes {tuple(sizes)} that fix the number of images, which is free in the input")
    return x if tuple(sizes) == x.shape else g.call(aten.reshape.default, x, sizes)


@onnx_op("Flatten")
def _flatten(g: Tracer, node: OnnxNode, x: Value) -> Any:
    axis = node.attrs.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    if not 0 <= axis <= x.dim():
        raise OnnxError(f"axis: expected {-x.dim()} to {x.dim()}, got {node.attrs['axis']}")
    if axis == 1 and x.dim() > 2:
        return g.call(aten.flatten.using_ints, x, 1, -1)
    return reshaped(g, x, [prod(x.shape[:axis]), prod(x.shape[axis:])])


@onnx_op("Squeeze")
def _squeeze(g: Tracer, node: OnnxNode, x: Value, axes: Any = None) -> Any:
    chosen = axes_of(node, x, axes)
    chosen = [i for i, size in enumerate(x.shape) if size == 1] if chosen is None else chosen
    if any(x.shape[i] != 1 for i in chosen):
        raise OnnxError(f"axes: expected ones of size 1, got {chosen} of {tuple(x.shape)}")
    return g.call(aten.squeeze.dims, x, chosen) if chosen else x


@onnx_op("Unsqueeze")
def _unsqueeze(g: Tracer, node: OnnxNode, x: Value, axes: Any = None) -> Any:
    chosen = list(node.attrs["axes"]) if axes is None else ints(axes, "axes")
    rank = x.dim() + len(chosen)
    for axis in sorted(a + rank if a < 0 else a for a in chosen):
        x = g.call(aten.unsqueeze.default, x, axis)
    return x


@onnx_op("Transpose")
def _transpose(g: Tracer, node: OnnxNode, x: Value) -> Any:
    order = node.attrs.get("perm", list(range(x.dim()))[::-1])
    return x if order == sorted(order) else g.call(aten.permute.default, x, order)


@onnx_op("Concat")
def _concat(g: Tracer, node: OnnxNode, *values: Value) -> Any:
    if len(values) == 1:
        return values[0]
    parts = values if axis_of(values[0], node.attrs["axis"]) == 0 else g.beside_images(values)
    return g.call(aten.cat.default, list(parts), node.attrs["axis"])


@onnx_op("Split")
def _split(g: Tracer, node: OnnxNode, x: Value, split: Any = None) -> Any:
    axis = axis_of(x, node.attrs.get("axis", 0))
    given = node.attrs.get("split") if split is None else ints(split, "sizes")
    if given is None:
        each = -(-x.shape[axis] // node.attrs.get("num_outputs", len(node.outputs)))
        given = [max(min(each, x.shape[axis] - at), 0) for at in range(0, each * len(node.outputs), each)]
    return list(g.call(aten.split_with_sizes.default, x, given, axis))


@onnx_op("Slice")
def _slice(g: Tracer, node: OnnxNode, x: Value, *parts: Any) -> Any:
    starts, ends, axes, steps = (
        ints(parts[i], "places") if len(parts) > i and parts[i] is not None else node.attrs.get(name)
        for i, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    if starts is None or ends is None:
        raise OnnxError("starts and ends: expected both, got none")
    axes = list(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        at = axis_of(x, axis)
        chosen = range(x.shape[at])[slice(start, end, step)]  # raises for a step of 0
        if step < 0:
            x = g.call(aten.flip.default, x, [at])
            size = x.shape[at]
            chosen = range(size - 1 - chosen.start, size - 1 - chosen.stop, -step)
        if len(chosen) != x.shape[at] or step not in (1, -1):
            x = g.call(aten.slice.Tensor, x, at, chosen.start, max(chosen.stop, chosen.start), abs(step))
    return x


@onnx_op("Gather")
def _gather(g: Tracer, node: OnnxNode, x: Value, indices: Value) -> Any:
    axis, where = axis_of(x, node.attrs.get("axis", 0)), fixed(indices, "a choice")
    size = x.shape[axis]
    if where.numel() and not bool(((where >= -size) & (where < size)).all()):
        raise OnnxError(f"indices: expected {-size} to {size - 1}, got others")
    where = torch.where(where < 0, where + size, where)
    if where.dim() == 0:
        return g.call(aten.select.int, x, axis, int(where))
    y = _chosen(g, x, axis, where.reshape(-1).to(torch.int64))
    if where.dim() == 1:
        return y
    return reshaped(g, y, [*x.shape[:axis], *where.shape, *x.shape[axis + 1 :]])


def _chosen(g: Tracer, x: Value, axis: int, where: Tensor) -> Any:
    """Elements along an axis: as a slice or backwards where the places are in order."""
    places = where.tolist()
    if isinstance(x, Traced) and places:
        first, count = places[0], len(places)
        if places == list(range(first, first + count)):
            return x if count == x.shape[axis] else g.call(aten.slice.Tensor, x, axis, first, first + count, 1)
        if places == list(range(x.shape[axis]))[::-1]:
            return g.call(aten.flip.default, x, [axis])
    return g.call(aten.index_select.default, x, axis, where)


@onnx_op("Expand")
def _expand(g: Tracer, node: OnnxNode, x: Value, shape: Value) -> Any:
    sizes = ints(shape, "sizes")
    if g.declared is not None and isinstance(x, Traced) and len(sizes) == x.dim() and sizes[0] == g.declared:
        sizes = [x.shape[0], *sizes[1:]]  # the number of images that the file fixes
    return expanded(g, x, list(np.broadcast_shapes(tuple(x.shape), tuple(sizes))))


def expanded(g: Tracer, x: Value, sizes: list[int]) -> Any:
    return x if tuple(sizes) == tuple(x.shape) else g.call(aten.expand.default, x, sizes)


@onnx_op("Tile")
def _tile(g: Tracer, node: OnnxNode, x: Value, repeats: Value) -> Any:
    counts = ints(repeats, "repeats")
    return x if set(counts) <= {1} else g.call(aten.repeat.default, x, counts)


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@onnx_op("Pad")
def _pad(g: Tracer, node: OnnxNode, x: Value, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    sides = ints(node.attrs["pads"] if pads is None else pads, "pads")
    chosen = list(range(x.dim())) if axes is None else [axis_of(x, a) for a in ints(axes, "axes")]
    mode = node.attrs.get("mode", "constant")
    if len(sides) != 2 * len(chosen) or mode not in _MODES:
        raise OnnxError(f"pads: expected two an axis and a mode of {', '.join(_MODES)}, got {sides} and {mode!r}")
    before, after = dict(zip(chosen, sides, strict=False)), dict(zip(chosen, sides[len(chosen) :], strict=True))
    fill = node.attrs.get("value", 0.0) if value is None else number(fixed(value, "a value"))
    return padded(g, x, [(before.get(i, 0), after.get(i, 0)) for i in range(x.dim())], mode, fill)


def padded(g: Tracer, x: Value, sides: list[tuple[int, int]], mode: str = "constant", value: Any = 0.0) -> Any:
    """Padding (before, after) of each axis; numbers below zero cut."""
    for axis, (before, after) in enumerate(sides):
        if before < 0 or after < 0:
            start, end = max(-before, 0), x.shape[axis] - max(-after, 0)
            x = g.call(aten.slice.Tensor, x, axis, start, max(end, start), 1)
    sides = [(max(before, 0), max(after, 0)) for before, after in sides]
    while sides and sides[0] == (0, 0):
        sides.pop(0)
    if not sides:
        return x
    flat = [n for pair in reversed(sides) for n in pair]
    if mode == "constant":
        return g.call(aten.pad.default, x, flat, "constant", None if not value else float(value))
    if len(sides) > max(x.dim() - 2, 1):
        raise Uncovered(f"padding of mode {mode} along images or channels")
    flat += [0] * (2 * (x.dim() - 2) - len(flat))
    return g.call(aten.pad.default, x, flat, _MODES[mode])


@onnx_op("DepthToSpace")
def _depth_to_space(g: Tracer, node: OnnxNode, x: Value) -> Any:
    block, mode = node.attrs["blocksize"], node.attrs.get("mode", "DCR")
    if mode == "DCR":  # the block's places before the channels, in torch behind them
        order = torch.arange(x.shape[1]).reshape(block * block, -1).t().reshape(-1)
        x = _chosen(g, x, 1, order)
    return g.call(aten.pixel_shuffle.default, x, block)


@onnx_op("SpaceToDepth")
def _space_to_depth(g: Tracer, node: OnnxNode, x: Value) -> Any:
    block = node.attrs["blocksize"]
    y = g.call(aten.pixel_unshuffle.default, x, block)
    if node.attrs.get("mode", "DCR") == "CRD":
        return y
    return _chosen(g, y, 1, torch.arange(y.shape[1]).reshape(-1, block * block).t().reshape(-1))


@onnx_op("Trilu")
def _trilu(g: Tracer, node: OnnxNode, x: Value, k: Any = None) -> Any:
    diagonal = 0 if k is None else ints(k, "a diagonal")[0]
    return g.call(aten.triu.default if node.attrs.get("upper", 1) else aten.tril.default, x, diagonal)


@onnx_op("NonZero")
def _non_zero(g: Tracer, node: OnnxNode, x: Value) -> Tensor:
    known = fixed(x, "a list of places")
    g.spend(known.numel() * max(known.dim(), 1), 8)
    return torch.nonzero(known).t().contiguous()


@onnx_op("OneHot")
def _one_hot(g: Tracer, node: OnnxNode, indices: Value, depth: Value, values: Value) -> Tensor:
    where, count = fixed(indices, "a choice").to(torch.int64), ints(depth, "a depth")[0]
    off, on = fixed(values, "values")
    g.spend(where.numel() * max(count, 0), values.dtype.itemsize)
    axis = node.attrs.get("axis", -1)
    chosen = (where % count).unsqueeze(axis) == torch.arange(count).reshape(
        [-1] + [1] * (-axis - 1 if axis < 0 else where.dim() - axis)
    )
    return torch.where(chosen, on, off)
