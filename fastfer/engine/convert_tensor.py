# SPDX-License-Identifier: Apache-2.0
"""Handlers of ops that only choose, order and repeat elements, for tensors of any dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from fastfer.engine import strided, tensors
from fastfer.engine.convert import Conversion, generally, numbers
from fastfer.engine.strided import Strided
from fastfer.engine.views import BATCH, Images, Uncovered, View

Any_ = View | Strided


def tensor(into: Conversion, x: Any) -> Any_:
    """An argument that may be a constant."""
    if isinstance(x, (View, Strided)):
        return x
    if isinstance(x, Tensor) and not x.is_complex():
        return tensors.constant(into.graph, numbers(x))
    raise Uncovered(f"a constant of type {type(x).__name__}")


def _form(x: Any) -> Strided:
    return strided.strided(x)


def _of_batch(y: Strided, sizes: Sequence[int], first: int = 0) -> Any_:
    """The reshaped tensor, if the number of images is where it was asked for, and in no number of the model's own."""
    for i, size in enumerate(sizes, first):
        if size != -1 and isinstance(size, Images) != y.of_batch(i):
            raise Uncovered(f"sizes {tuple(sizes)} that mix the number of images with others")
    return strided.seen(y)


def reshaped(into: Conversion, x: Any, sizes: Sequence[int]) -> Strided:
    """With new sizes; what no steps through the map can give is laid out anew first."""
    form = _form(x)
    try:
        return strided.reshaped(form, sizes)
    except Uncovered:
        rest = form.dims[1:]
        if not form.dims or form.dims[0] != (strided.IMAGES,) or any(strided.IMAGES in dim for dim in rest):
            raise
    value = tensors.output(into.graph, form)
    shape = into.graph.values[value]
    flat = Strided(value, shape, 0, ((strided.IMAGES,), (strided.Factor(prod(shape), 1),)))
    return strided.reshaped(flat, sizes)


@generally("aten.view", "aten.reshape", "aten._unsafe_view")
def _reshape(into: Conversion, self: Any, **rest: Any) -> Any_:
    (sizes,) = rest.values()
    return _of_batch(reshaped(into, self, sizes), sizes)


@generally("aten.view_as", "aten.reshape_as")
def _reshape_as(into: Conversion, self: Any, other: Any) -> Any_:
    return strided.seen(reshaped(into, self, other.sizes))


@generally("aten.flatten")
def _flatten(into: Conversion, self: Any, start_dim: int, end_dim: int) -> Any_:
    first, last = self.dim(start_dim), self.dim(end_dim)
    sizes = self.sizes
    return strided.seen(reshaped(into, self, (*sizes[:first], prod(sizes[first : last + 1]), *sizes[last + 1 :])))


@generally("aten.unflatten")
def _unflatten(into: Conversion, self: Any, dim: int, sizes: Sequence[int]) -> Any_:
    at, old = self.dim(dim), self.sizes
    if -1 in sizes:
        sizes = [old[at] // -prod(sizes) if n == -1 else n for n in sizes]
    return _of_batch(reshaped(into, self, (*old[:at], *sizes, *old[at + 1 :])), sizes, at)


@generally("aten.permute")
def _permute(into: Conversion, self: Any, dims: Sequence[int]) -> Any_:
    return strided.seen(strided.permuted(_form(self), dims))


@generally("aten.movedim", "aten.moveaxis")
def _movedim(into: Conversion, self: Any, source: Any, destination: Any) -> Any_:
    froms, tos = ([v] if isinstance(v, int) else list(v) for v in (source, destination))
    rank = len(self.sizes)
    order = [i for i in range(rank) if i not in [f % rank for f in froms]]
    for to, old in sorted(zip((t % rank for t in tos), (f % rank for f in froms), strict=True)):
        order.insert(to, old)
    return strided.seen(strided.permuted(_form(self), order))


@generally("aten.transpose", "aten.swapaxes", "aten.t", "aten.numpy_T", "aten.mT")
def _transpose(into: Conversion, self: Any, **rest: Any) -> Any_:
    order = list(range(len(self.sizes)))
    a, b = (self.dim(i) for i in rest.values()) if rest else (len(order) - 2, len(order) - 1)
    order[a], order[b] = b, a
    return strided.seen(strided.permuted(_form(self), order))


@generally("aten.unsqueeze")
def _unsqueeze(into: Conversion, self: Any, dim: int) -> Any_:
    form = _form(self)
    at = dim % (len(form.dims) + 1)
    return strided.seen(Strided(form.value, form.shape, form.base, (*form.dims[:at], (), *form.dims[at:])))


@generally("aten.squeeze")
def _squeeze(into: Conversion, self: Any, dim: Any = None) -> Any_:
    form = _form(self)
    chosen = range(len(form.dims)) if dim is None else [form.dim(i) for i in ([dim] if isinstance(dim, int) else dim)]
    kept = tuple(d for i, d in enumerate(form.dims) if d or i not in chosen)
    return strided.seen(Strided(form.value, form.shape, form.base, kept))


@generally("aten.contiguous", "aten.clone", "aten.alias", "aten.detach", "aten.lift_fresh_copy")
def _same(into: Conversion, self: Any, **rest: Any) -> Any_:
    return self  # type: ignore[no-any-return]


@generally("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout")
def _dropout(into: Conversion, input: Any, p: float, train: bool) -> Any_:
    if train:
        raise Uncovered("dropout in training mode")
    return input  # type: ignore[no-any-return]


def _bounded(index: Any, size: int, default: int) -> int:
    if index is None:
        return default
    return int(min(max(index + size if index < 0 else index, 0), size))


@generally("aten.slice")
def _slice(into: Conversion, self: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any_:
    form, at = _form(self), self.dim(dim)
    size = form.sizes[at]
    first, last = _bounded(start, size, 0), _bounded(end, size, size)
    if form.of_batch(at) and (first, last, step) != (0, size, 1):
        raise Uncovered("a part of the images of a batch")
    if len(form.dims[at]) > 1 and (first, last, step) != (0, size, 1):
        form = _form(strided.settled(into.graph, form))
    return strided.seen(strided.sliced(form, at, first, last, step))


@generally("aten.narrow")
def _narrow(into: Conversion, self: Any, dim: int, start: int, length: int) -> Any_:
    return _slice(into, self, dim, start, start + length)  # type: ignore[no-any-return]


def _one(into: Conversion, form: Strided, at: int, index: int) -> Any_:
    if form.of_batch(at):
        raise Uncovered("one of the images of a batch")
    size = form.sizes[at]
    return strided.seen(strided.selected(form, at, index + size if index < 0 else index))


@generally("aten.select")
def _select(into: Conversion, self: Any, dim: int, index: int) -> Any_:
    return _one(into, _form(self), self.dim(dim), index)


@generally("aten.unbind")
def _unbind(into: Conversion, self: Any, dim: int = 0) -> tuple[Any_, ...]:
    form, at = _form(self), self.dim(dim)
    return tuple(_one(into, form, at, index) for index in range(form.sizes[at]))


@generally("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_chunk", "aten.unsafe_split")
def _split(into: Conversion, self: Any, dim: int = 0, **rest: Any) -> tuple[Any_, ...]:
    ((name, sizes),) = rest.items()
    total = self.sizes[self.dim(dim)]
    if isinstance(sizes, int):
        each = -(-total // sizes) if name == "chunks" else sizes
        sizes = [min(each, total - start) for start in range(0, total, each)]
    ends = np.cumsum(sizes).tolist()
    return tuple(_slice(into, self, dim, end - size, end) for end, size in zip(ends, sizes, strict=True))


@generally("aten.tensor_split")
def _tensor_split(into: Conversion, self: Any, dim: int = 0, **rest: Any) -> tuple[Any_, ...]:
    (parts,) = rest.values()
    total = self.sizes[self.dim(dim)]
    bounds = list(parts) if not isinstance(parts, int) else []
    if isinstance(parts, int):
        sizes = [total // parts + (i < total % parts) for i in range(parts)]
        bounds = np.cumsum(sizes).tolist()[:-1]
    return tuple(_slice(into, self, dim, a, b) for a, b in zip([0, *bounds], [*bounds, total], strict=True))


@generally("aten.flip")
def _flip(into: Conversion, self: Any, dims: Sequence[int]) -> Any_:
    return _taken(into, self, {self.dim(d): np.arange(self.sizes[self.dim(d)])[::-1] for d in dims})


@generally("aten.roll")
def _roll(into: Conversion, self: Any, shifts: Any, dims: Any = ()) -> Any_:
    if not dims:
        raise Uncovered("a roll of a flattened tensor")
    return _taken(
        into,
        self,
        {self.dim(d): np.roll(np.arange(self.sizes[self.dim(d)]), n) for n, d in zip(shifts, dims, strict=True)},
    )


def _taken(into: Conversion, x: Any, tables: dict[int, Any]) -> Any_:
    return tensors.taken(into.graph, tensor(into, x), tables)


@generally("aten.index_select")
def _index_select(into: Conversion, self: Any, dim: int, index: Any) -> Any_:
    if not isinstance(index, Tensor) or not isinstance(self, (View, Strided)):
        raise Uncovered("indices that depend on the input")
    return _taken(into, self, {self.dim(dim): index.cpu().numpy() % self.sizes[self.dim(dim)]})


@generally("aten.index")
def _index(into: Conversion, self: Any, indices: Sequence[Any]) -> Any_:
    """One list of indices, or of booleans, for one dimension."""
    given = [(i, index) for i, index in enumerate(indices) if index is not None]
    if len(given) != 1 or not isinstance(given[0][1], Tensor) or not isinstance(self, (View, Strided)):
        raise Uncovered("indices that depend on the input, or for several dimensions")
    at, index = given[0]
    if index.dim() != 1:
        raise Uncovered(f"indices of shape {tuple(index.shape)}")
    chosen = (
        index.nonzero().reshape(-1) if index.dtype.is_floating_point is False and index.dtype.itemsize == 1 else index
    )
    return _taken(into, self, {at: chosen.cpu().numpy() % self.sizes[at]})


@generally("aten.expand")
def _expand(into: Conversion, self: Any, size: Sequence[int], implicit: bool = False) -> Any_:
    form = _form(tensor(into, self))
    form = Strided(form.value, form.shape, form.base, ((),) * (len(size) - len(form.dims)) + form.dims)
    dims = list(form.dims)
    for i, n in enumerate(size):
        if isinstance(n, Images) and dims[i] == () and n == BATCH:  # of a constant: the same for each image
            dims[i] = (strided.IMAGES,)
    form = Strided(form.value, form.shape, form.base, tuple(dims))
    if any(isinstance(n, Images) and not form.of_batch(i) for i, n in enumerate(size)):
        raise Uncovered(f"an expansion to {tuple(size)}, in which the number of images is not where they are")
    return strided.seen(strided.expanded(form, size))


@generally("aten.expand_as")
def _expand_as(into: Conversion, self: Any, other: Any) -> Any_:
    return strided.seen(strided.expanded(_form(tensor(into, self)), other.sizes))


@generally("aten.repeat", "aten.tile")
def _repeat(into: Conversion, self: Any, **rest: Any) -> Any_:
    (times,) = rest.values()
    form = _form(tensor(into, self))
    rank = max(len(times), len(form.dims))
    times = [1] * (rank - len(times)) + list(times)
    if isinstance(times[0], Images) and rank > 0 and times[0] == BATCH:
        start = _expand(into, self, [times[0], *(-1,) * (rank - 1)])
        form, times[0] = _form(start), 1
    wide = Strided(form.value, form.shape, form.base, ((),) * (rank - len(form.dims)) + form.dims)
    tables = {i: np.tile(np.arange(wide.sizes[i]), n) for i, n in enumerate(times) if n != 1}
    return tensors.taken(into.graph, wide, tables) if tables else strided.seen(wide)


@generally("aten.repeat_interleave")
def _repeat_interleave(into: Conversion, self: Any, repeats: Any, dim: Any = None, output_size: Any = None) -> Any_:
    if dim is None or not isinstance(repeats, int):
        raise Uncovered("a repetition by numbers of a tensor, or of a flattened one")
    at = self.dim(dim)
    return _taken(into, self, {at: np.repeat(np.arange(self.sizes[at]), repeats)})


@generally("aten.cat", "aten.concatenate", "aten.concat")
def _cat(into: Conversion, tensors_: Any = None, dim: int = 0, **rest: Any) -> Any_:
    parts = [tensor(into, t) for t in (rest["tensors"] if tensors_ is None else tensors_)]
    return _joined(into, parts, dim)


def _joined(into: Conversion, parts: Sequence[Any_], dim: int) -> Any_:
    """Constants among them are the same for every image."""
    forms = [_form(p) for p in parts]
    batch = {i for form in forms for i, d in enumerate(form.dims) if d == (strided.IMAGES,)}
    full = []
    for form in forms:
        dims = tuple((strided.IMAGES,) if i in batch and d == () else d for i, d in enumerate(form.dims))
        full.append(Strided(form.value, form.shape, form.base, dims))
    if len(full) == 1:
        return parts[0]
    return tensors.joined(into.graph, full, dim)


@generally("aten.stack")
def _stack(into: Conversion, tensors: Sequence[Any], dim: int = 0) -> Any_:
    at = dim % (len(tensors[0].shape if isinstance(tensors[0], Tensor) else tensors[0].sizes) + 1)
    return _joined(into, [_unsqueeze(into, tensor(into, t), at) for t in tensors], at)


@generally("aten.pad")
def _pad(into: Conversion, self: Any, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Any_:
    rank, tables = len(self.sizes), {}
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        if before or after:
            tables[rank - 1 - i] = tensors.padding(self.sizes[rank - 1 - i], before, after, mode)
    if not tables:
        return self  # type: ignore[no-any-return]
    return tensors.taken(into.graph, self, tables, 0.0 if value is None else float(value))


@generally("aten.constant_pad_nd")
def _constant_pad(into: Conversion, self: Any, pad: Sequence[int], value: Any = 0) -> Any_:
    return _pad(into, self, pad, "constant", value)  # type: ignore[no-any-return]


def _padded(mode: str) -> Callable[..., Any_]:
    return lambda into, self, padding: _pad(into, self, padding, mode)


for _name, _mode in (("reflection", "reflect"), ("replication", "replicate")):
    for _rank in (1, 2):
        generally(f"aten.{_name}_pad{_rank}d")(_padded(_mode))


@generally("aten.pixel_shuffle")
def _pixel_shuffle(into: Conversion, self: Any, upscale_factor: int) -> Any_:
    n, c, h, w = self.sizes
    r = upscale_factor
    parts = reshaped(into, self, (n, c // r**2, r, r, h, w))
    return strided.seen(strided.reshaped(strided.permuted(parts, (0, 1, 4, 2, 5, 3)), (n, c // r**2, h * r, w * r)))


@generally("aten.pixel_unshuffle")
def _pixel_unshuffle(into: Conversion, self: Any, downscale_factor: int) -> Any_:
    n, c, h, w = self.sizes
    r = downscale_factor
    parts = reshaped(into, self, (n, c, h // r, r, w // r, r))
    return strided.seen(strided.reshaped(strided.permuted(parts, (0, 1, 3, 5, 2, 4)), (n, c * r**2, h // r, w // r)))


@generally("aten.channel_shuffle", "aten.native_channel_shuffle")
def _channel_shuffle(into: Conversion, self: Any, groups: int) -> Any_:
    n, c, *rest = self.sizes
    parts = reshaped(into, self, (n, groups, c // groups, *rest))
    order = (0, 2, 1, *range(3, len(rest) + 3))
    return strided.seen(strided.reshaped(strided.permuted(parts, order), (n, c, *rest)))


def ints(value: Any, count: int, default: Sequence[int] | None = None) -> list[int]:
    """One number, or one for each axis."""
    items = [value] if isinstance(value, int) else list(value) or list(default or ())
    return items * count if len(items) == 1 else items
