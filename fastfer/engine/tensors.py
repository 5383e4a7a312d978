# SPDX-License-Identifier: Apache-2.0
"""Operations on tensors as nodes of a graph, whatever dimensions they have: what the readers of networks share.

Tensors are `View` or `Strided`; every function adds the nodes it needs and returns the result. Dimensions count as
torch's do. Uncovered is raised where the images of a batch would mix, or a tensor has more dimensions than a map holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from fastfer.engine.alike import Layout, arranged_form, regrouped, together
from fastfer.engine.functions import BINARY, REDUCE, UNARY
from fastfer.engine.graph import Array, Graph, Shape, vector
from fastfer.engine.strided import (
    IMAGES,
    Dim,
    Factor,
    Strided,
    Tensor,
    arranged,
    expanded,
    fine,
    gathered,
    seen,
    settled,
    strided,
    usual_letters,
)
from fastfer.engine.views import Uncovered, View


def constant(graph: Graph, values: Any) -> Tensor:
    """The same numbers for every image; no dimension has the images, those of one element repeat."""
    values = np.asarray(values, dtype=np.float64)
    letters = usual_letters([(Factor(n, 1),) if n > 1 else () for n in values.shape])
    if values.ndim == 4 and values.shape[0] == 1:
        letters = ["N", "C", "H", "W"]
    order = sorted(range(values.ndim), key=lambda i: "NCHW".index(letters[i]))
    shape = Shape(*(prod([n for n, own in zip(values.shape, letters, strict=True) if own == a]) for a in "CHW"))
    value = graph.add("constant", [], shape, [vector(values.transpose(order).reshape(-1))])
    dims: list[Dim] = [()] * values.ndim
    stride = 1
    for i in reversed(order):
        dims[i] = (Factor(values.shape[i], stride),) if values.shape[i] > 1 else ()
        stride *= values.shape[i]
    return Strided(value, shape, 0, tuple(dims))


def _of_value(graph: Graph, x: Tensor, value: int) -> Tensor:
    """Another map with the tensor's dimensions."""
    return replace(x, value=value, shape=graph.values[value])


def unary(graph: Graph, x: Tensor, name: str, a: Any = 0.0, b: Any = 0.0) -> Tensor:
    """A function of `functions.UNARY` of each element."""
    if isinstance(x, Strided) and prod(x.shape) > prod(x.sizes):
        x = settled(graph, x)
    weights = [vector(a).reshape(-1), vector(b).reshape(-1)]
    return _of_value(graph, x, graph.add("unary", [x.value], [UNARY.index(name)], weights))


def binary(graph: Graph, name: str, a: Tensor, b: Tensor) -> Tensor:
    """A function of `functions.BINARY`; dimensions of one element repeat."""
    values, form = together(graph, [a, b])
    return seen(_of_value(graph, form, graph.add("binary", values, [BINARY.index(name)])))


def select(graph: Graph, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """condition ? a : b; dimensions of one element repeat."""
    values, form = together(graph, [condition, a, b])
    return seen(_of_value(graph, form, graph.add("select", values)))


def _axes_of(graph: Graph, x: Tensor, dims: Sequence[int]) -> tuple[Tensor, str]:
    """The tensor so that ``dims`` are whole axes of its map, and these axes."""
    if any("N" in axis for axis in (strided(x).axes[i] for i in dims)) or any(strided(x).of_batch(i) for i in dims):
        raise Uncovered("something that goes over the images of a batch")
    if isinstance(x, View):
        return x, "".join(x.axes[i] for i in dims)
    parts, counts = fine(strided(x))
    of = [i for i, count in enumerate(counts) for _ in range(count)]
    kept = [k for k, dim in enumerate(parts) if of[k] not in dims and dim not in ((), (IMAGES,))]
    places = dict(zip(reversed(kept), ["C", *"H" * len(kept)], strict=False))
    letters = ["N" if dim == (IMAGES,) else "W" if of[k] in dims else places.get(k, "C") for k, dim in enumerate(parts)]
    return arranged(graph, strided(x), letters), "W"


def reduce(
    graph: Graph, x: Tensor, name: str, dims: Sequence[int] = (), keepdim: bool = False, correction: float = 0.0
) -> Tensor:
    """A function of `functions.REDUCE` over dimensions, all but the images' if none are named."""
    chosen = sorted({strided(x).dim(i) for i in dims} or {i for i, d in enumerate(strided(x).dims) if d != (IMAGES,)})
    y, axes = _axes_of(graph, x, chosen)
    flags = [letter in axes for letter in "CHW"]
    value = graph.add("reduce", [y.value], [REDUCE.index(name), *flags], [vector([correction])])
    shape = graph.values[value]
    if isinstance(y, View):
        left = [("" if i in chosen else axis) for i, axis in enumerate(y.axes) if keepdim or i not in chosen]
        return View(value, shape, tuple(left))
    # The map's width is gone: distances along what is left are shorter by it.
    width = y.shape.width
    dims_left = [
        () if i in chosen else tuple(f if f == IMAGES else Factor(f.size, (f.stride or 0) // width) for f in dim)
        for i, dim in enumerate(y.dims)
        if keepdim or i not in chosen
    ]
    return seen(Strided(value, shape, 0, tuple(dims_left)))


def softmax(graph: Graph, x: Tensor, dim: int, log: bool = False) -> Tensor:
    """Over one dimension."""
    y, axes = _axes_of(graph, x, [strided(x).dim(dim)])
    value = graph.add("softmax", [y.value], [log, *(letter in axes for letter in "CHW")])
    return seen(_of_value(graph, y, value))


def _batched(x: Strided, batch: Sequence[int], rank: int, letters: tuple[str, str]) -> tuple[Strided, list[str]]:
    """A stack of matrices with its first dimensions repeated to ``batch``, and where its `fine` dimensions stand."""
    wide = replace(x, dims=((),) * (rank - len(x.dims)) + x.dims)
    if prod(wide.sizes[:-2]) > 1 and any(a != b for a, b in zip(wide.sizes[:-2], batch, strict=True)):
        wide = expanded(wide, [*batch, -1, -1])
    dims, counts = fine(wide)
    of = [i for i, count in enumerate(counts) for _ in range(count)]
    places = {rank - 2: letters[0], rank - 1: letters[1]}
    return wide, ["N" if dim == (IMAGES,) else places.get(of[k], "H") for k, dim in enumerate(dims)]


def matmul(graph: Graph, a: Tensor, b: Tensor) -> Tensor:
    """torch.matmul of stacks of matrices."""
    left, right = strided(a), strided(b)
    vectors = len(left.dims) == 1, len(right.dims) == 1
    if vectors[0]:
        left = replace(left, dims=((), *left.dims))
    if vectors[1]:
        right = replace(right, dims=(*right.dims, ()))
    rank = max(len(left.dims), len(right.dims))
    padded = [(1,) * (rank - len(t.dims)) + t.sizes for t in (left, right)]
    batch = [max(n, m) for n, m in zip(padded[0][:-2], padded[1][:-2], strict=True)]
    if (IMAGES,) in (left.dims[-2:] + right.dims[-2:]):
        raise Uncovered("a product over the images of a batch")
    wide, own = _batched(left, batch, rank, ("W", "C"))
    if prod(wide.sizes[:-2]) < prod(batch):
        wide = replace(wide, dims=(*_broadcast(wide.dims[:-2], strided(right).dims[:-2], batch), *wide.dims[-2:]))
        dims, counts = fine(wide)
        of = [i for i, count in enumerate(counts) for _ in range(count)]
        own = ["N" if d == (IMAGES,) else {rank - 2: "W", rank - 1: "C"}.get(of[k], "H") for k, d in enumerate(dims)]
    rows = arranged(graph, wide, own)
    columns = arranged(graph, *_batched(right, batch, rank, ("W", "C")))
    value = graph.add("matmul", [rows.value, columns.value])
    shape = graph.values[value]
    # The rows' layout with other channels: distances along height and width stay as they are.
    height, width = (rows.shape.height, rows.shape.width)
    result = (Factor(shape.channels, height * width),) if shape.channels > 1 else ()
    y = Strided(value, shape, 0, (*rows.dims[:-1], result))
    dims_out = list(y.dims)
    if vectors[1]:
        dims_out.pop(-1)
    if vectors[0]:
        dims_out.pop(-1 if vectors[1] else -2)
    return seen(replace(y, dims=tuple(dims_out)))


def _broadcast(dims: Sequence[Dim], others: Sequence[Dim], batch: Sequence[int]) -> list[Dim]:
    """Dimensions repeated to those of a stack; the images are the images there."""
    others = [()] * (len(dims) - len(others)) + list(others)
    out: list[Dim] = []
    for dim, other, size in zip(dims, others, batch, strict=True):
        if prod(f.size for f in dim) == size:
            out.append(dim)
        else:
            out.append(tuple(f if f == IMAGES else Factor(f.size, 0) for f in other))
    return out


def joined(graph: Graph, tensors: Sequence[Tensor], dim: int) -> Tensor:
    """One after the other along a dimension."""
    parts = [strided(t) for t in tensors]
    at = parts[0].dim(dim)
    if len(parts) == 1:
        return tensors[0]
    if any(p.of_batch(at) for p in parts):
        raise Uncovered("tensors joined over the images of a batch")
    dims, counts = fine(parts[0])
    letters = usual_letters([(Factor(2, 1),) if i == sum(counts[:at]) else d for i, d in enumerate(dims)])
    place = sum(counts[:at])
    others = [i for i, d in enumerate(dims) if i != place and d not in ((), (IMAGES,))]
    if any(letters[i] == letters[place] for i in others):
        letters = ["N" if d == (IMAGES,) else "H" for d in dims]
        letters[place], letters[others[-1]] = "C", "W"
    # A dimension of one element stands anywhere: not where the tensors are joined.
    spare = next(a for a in "CHW" if a != letters[place])
    letters = [
        spare if d == () and i != place and letters[i] != "N" else own
        for i, (d, own) in enumerate(zip(dims, letters, strict=True))
    ]
    values = [arranged(graph, p, letters).value for p in parts]
    axis = "CHW".index(letters[place])
    value = graph.add("concat", values) if axis == 0 else graph.add("join", values, [axis])
    sizes = [prod(f.size for f in d) for d in dims]
    sizes[place] = sum(p.sizes[at] for p in parts)
    layout: Layout = [[(n, own)] for n, own in zip(sizes, letters, strict=True)]
    form = arranged_form(graph.values[value], layout)
    out = regrouped(form, counts)
    return seen(Strided(value, graph.values[value], 0, tuple(out)))


def taken(graph: Graph, x: Tensor, tables: Mapping[int, Any], fill: float = 0.0) -> Tensor:
    """Of some dimensions the elements that a list of indices names, -1: ``fill``."""
    source = strided(x)
    if any(len(source.dims[i]) > 1 for i in tables):
        source = strided(settled(graph, source))
    if any(source.of_batch(i) or len(source.dims[i]) > 1 for i in tables):
        raise Uncovered(f"a choice from dimensions {sorted(tables)} of {source.axes}")
    dims, counts = fine(source)
    of = [i for i, count in enumerate(counts) for _ in range(count)]
    lengths = [len(tables[of[k]]) if of[k] in tables else prod(f.size for f in d) for k, d in enumerate(dims)]
    there = [d if d == (IMAGES,) else (Factor(n, 1),) if n > 1 else () for d, n in zip(dims, lengths, strict=True)]
    letters = usual_letters(there)
    layout: Layout = [[(n, own)] for n, own in zip(lengths, letters, strict=True)]
    shape = Shape(*(prod([n for n, own in zip(lengths, letters, strict=True) if own == a]) for a in "CHW"))
    rows: list[tuple[Any, int]] = []
    for letter in "CHW":
        for k, dim in enumerate(dims):
            if letters[k] != letter:
                continue
            if of[k] in tables:
                rows.append((tables[of[k]], dim[0].stride or 0 if dim else 0))
            else:
                rows += [(np.arange(f.size), f.stride or 0) for f in dim]
    value = gathered(graph, source.value, shape, rows, source.base, fill)
    form = arranged_form(shape, layout)
    out = regrouped(form, counts)
    return seen(Strided(value, shape, 0, tuple(out)))


def padding(length: int, before: int, after: int, mode: str = "constant") -> Array:
    """The indices of a padded axis; modes as torch's. Negative numbers cut off."""
    index = np.arange(-before, length + after)
    if mode == "constant":
        return np.where((index < 0) | (index >= length), -1, index)
    if mode == "replicate":
        return index.clip(0, length - 1)
    if mode == "circular":
        return index % length
    if length == 1:
        return index * 0
    period = 2 * (length - 1)
    index = index % period
    return np.where(index >= length, period - index, index)


def with_channels(graph: Graph, x: Tensor, dim: int) -> Strided:
    """The tensor as all of a map whose channels are one dimension, the others its pixels."""
    s = strided(x)
    if isinstance(x, View) and x.axes[dim] == x.present("C"):
        return s
    dims, counts = fine(s)
    of = [i for i, count in enumerate(counts) for _ in range(count)]
    pixels = [k for k, d in enumerate(dims) if of[k] != dim and d not in ((), (IMAGES,))]
    places = dict(zip(reversed(pixels), ["W", *"H" * len(pixels)], strict=False))
    letters = ["N" if d == (IMAGES,) else "C" if of[k] == dim else places.get(k, "W") for k, d in enumerate(dims)]
    return arranged(graph, s, letters)


def channels_changed(graph: Graph, x: Strided, dim: int, value: int) -> Tensor:
    """What an operation of each pixel made of a tensor `with_channels`: another number of these."""
    shape = graph.values[value]
    own = (Factor(shape.channels, shape.height * shape.width),) if shape.channels > 1 else ()
    return seen(Strided(value, shape, 0, (*x.dims[:dim], own, *x.dims[dim + 1 :])))


Taps = tuple[Array, Array]
"""Of each new element the old ones (n, taps), -1: none, and their weights."""


def resampled(graph: Graph, x: Tensor, taps: Mapping[int, Taps], maximum: bool = False) -> Tensor:
    """Weighted sums, or maxima, along one or two dimensions."""
    s = strided(x)
    dims, counts = fine(s)
    of = [i for i, count in enumerate(counts) for _ in range(count)]
    chosen = sorted(taps)
    places = dict(zip(reversed(chosen), "WH", strict=False))
    letters = ["N" if d == (IMAGES,) else places.get(of[k], "C") for k, d in enumerate(dims)]
    if any(s.of_batch(i) for i in chosen):
        raise Uncovered("a window over the images of a batch")
    y = arranged(graph, s, letters)
    one = np.zeros((1, 1)), np.ones((1, 1))
    tables = [next((taps[i] for i in chosen if places[i] == letter), one) for letter in "HW"]
    weights = [vector(part).reshape(-1) for table in tables for part in table]
    sizes = [len(table[0]) for table in tables]
    attrs = (maximum, *sizes, *(table[0].shape[1] for table in tables))
    value = graph.add("resample", [y.value], attrs, weights)
    lengths = [len(taps[of[k]][0]) if of[k] in taps else prod(f.size for f in d) for k, d in enumerate(dims)]
    form = arranged_form(graph.values[value], [[(n, own)] for n, own in zip(lengths, letters, strict=True)])
    out = regrouped(form, counts)
    return seen(Strided(value, graph.values[value], 0, tuple(out)))


def as_image(graph: Graph, x: Tensor) -> View:
    """A tensor (N, C, H, W) as a map with these axes."""
    s = strided(x)
    if len(s.dims) != 4 or s.dims[0] != (IMAGES,):
        raise Uncovered(f"expected an image (N, C, H, W), got dimensions {x.axes}")
    y = seen(arranged(graph, s, ["N", "C", "H", "W"]))
    assert isinstance(y, View)
    return y


def output(graph: Graph, x: Tensor) -> int:
    """A map whose elements in (C, H, W) order are those of the tensor's dimensions after the first, the images."""
    s = strided(x)
    if not s.dims or s.dims[0] != (IMAGES,) or any(s.of_batch(i) for i in range(1, len(s.dims))):
        raise Uncovered(f"expected a tensor whose first dimension is the images, got dimensions {x.axes}")
    own = len(s.dims) - 1
    letters = ["N", *"CHW"[:own], *"W" * (own - 3)]
    return arranged(graph, s, letters).value
