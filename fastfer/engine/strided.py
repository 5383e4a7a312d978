# SPDX-License-Identifier: Apache-2.0
"""Tensors as steps through a map: what slicing, splitting axes, repeating and turning around make of a `View`.

Every dimension is a list of factors, each a length and the distance of its elements in the map in (C, H, W) order; the
images of the batch are a factor without a distance. Nothing moves until an operation wants the elements in a place of
their own: then `arranged` adds one gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastfer.engine.graph import Graph, Shape, vector
from fastfer.engine.views import BATCH, Uncovered, View


class Factor(NamedTuple):
    """``size`` elements, each ``stride`` after the one before; None: the images."""

    size: int
    stride: int | None


IMAGES = Factor(BATCH, None)
Dim = tuple[Factor, ...]


@dataclass(frozen=True)
class Strided:
    """The elements of ``value``, a map of ``shape``, from element ``base`` on as ``dims`` say."""

    value: int
    shape: Shape
    base: int
    dims: tuple[Dim, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The tensor's shape in the trace."""
        return tuple(prod(factor.size for factor in dim) for dim in self.dims)

    @property
    def axes(self) -> tuple[str, ...]:
        """For messages: N where the images are, else the length."""
        return tuple("N" if dim == (IMAGES,) else str(size) for dim, size in zip(self.dims, self.sizes, strict=True))

    def dim(self, index: int) -> int:
        """A dimension's number, counted from the front."""
        return index % len(self.dims)

    def of_batch(self, index: int) -> bool:
        """Whether the images are in a dimension."""
        return IMAGES in self.dims[index]


Tensor = View | Strided


def _letters(shape: Shape) -> dict[str, Factor]:
    c, h, w = shape
    return {"N": IMAGES, "C": Factor(c, h * w), "H": Factor(h, w), "W": Factor(w, 1)}


def strided(x: Tensor) -> Strided:
    """A tensor with its factors."""
    if isinstance(x, Strided):
        return x
    letters = _letters(x.shape)
    return Strided(x.value, x.shape, 0, tuple(_merged([letters[letter] for letter in axis]) for axis in x.axes))


def _merged(factors: Sequence[Factor]) -> Dim:
    """Neighbours that are one step through the map as one factor."""
    out: list[Factor] = []
    for factor in factors:
        if factor.size == 1:
            continue
        last = out[-1] if out else None
        joins = last is not None and None not in (last.stride, factor.stride)
        if last is not None and joins and last.stride == factor.size * (factor.stride or 0):
            out[-1] = Factor(last.size * factor.size, factor.stride)
        else:
            out.append(factor)
    return tuple(out)


def seen(x: Tensor) -> Tensor:
    """As a View, where the dimensions are whole axes of the map and each axis is in one of them."""
    if isinstance(x, View):
        return x
    names = [(letter, factor) for letter, factor in _letters(x.shape).items() if factor.size > 1 and letter != "N"]
    used, axes = [], []
    for dim in x.dims:
        axis = ""
        for factor in dim:
            run = "N" if factor == IMAGES else _run(names, factor)
            if not run:
                return x
            axis += run
        used += [letter for letter in axis if letter != "N"]
        axes.append(axis)
    whole = sorted(used) == sorted(letter for letter, _ in names) and "".join(axes).count("N") == 1
    return View(x.value, x.shape, tuple(axes)) if whole and x.base == 0 else x


def _run(names: Sequence[tuple[str, Factor]], factor: Factor) -> str:
    """The neighbouring axes that a factor goes through, or none."""
    for first in range(len(names)):
        for last in range(first, len(names)):
            parts = names[first : last + 1]
            if factor == (prod(f.size for _, f in parts), parts[-1][1].stride):
                return "".join(letter for letter, _ in parts)
    return ""


def reshaped(x: Strided, sizes: Sequence[int]) -> Strided:
    """The tensor with new sizes, one of which may be -1. Raises Uncovered where a factor does not divide."""
    sizes = [int(size) for size in sizes]
    if -1 in sizes:
        sizes[sizes.index(-1)] = prod(x.sizes) // max(-prod(sizes), 1)
    left, dims = [factor for dim in x.dims for factor in dim], []
    for size in sizes:
        taken: list[Factor] = []
        need = size
        while need > 1 and left:
            factor = left.pop(0)
            if need % factor.size == 0:
                taken.append(factor)
                need //= factor.size
            elif factor.stride is not None and factor.size % need == 0:
                rest = factor.size // need
                taken.append(Factor(need, factor.stride * rest))
                left.insert(0, Factor(rest, factor.stride))
                need = 1
            else:
                break
        if need > 1:
            raise Uncovered(f"the shape {tuple(sizes)} splits an axis of {x.sizes}")
        dims.append(_merged(taken))
    if left:
        raise Uncovered(f"the shape {tuple(sizes)} for a tensor of {x.sizes}")
    return replace(x, dims=tuple(dims))


def permuted(x: Strided, order: Sequence[int]) -> Strided:
    """The dimensions in another order."""
    return replace(x, dims=tuple(x.dims[x.dim(i)] for i in order))


def _single(x: Strided, dim: int, what: str) -> Factor:
    """The only factor of a dimension of the image."""
    (*_, factor) = x.dims[dim] or (Factor(1, 1),)
    if len(x.dims[dim]) > 1 or factor.stride is None:
        raise Uncovered(f"{what} of dimension {dim} of {x.axes}")
    return factor


def sliced(x: Strided, dim: int, start: int, stop: int, step: int = 1) -> Strided:
    """Elements start, start + step, … below stop of a dimension; step may be negative, then down to above stop."""
    count = max(0, -(-(stop - start) // step))
    if count == x.sizes[dim] and step == 1:
        return x
    if count == 0:
        raise Uncovered(f"an empty part of dimension {dim} of {x.sizes}")
    factor = _single(x, dim, "a part")
    stride = factor.stride or 0
    dims = (*x.dims[:dim], _merged([Factor(count, stride * step)]), *x.dims[dim + 1 :])
    return replace(x, base=x.base + start * stride, dims=dims)


def selected(x: Strided, dim: int, index: int) -> Strided:
    """One element of a dimension, which is then gone."""
    one = sliced(x, dim, index, index + 1)
    return replace(one, dims=(*one.dims[:dim], *one.dims[dim + 1 :]))


def expanded(x: Strided, sizes: Sequence[int]) -> Strided:
    """Dimensions of one element repeated; new ones in front."""
    new = len(sizes) - len(x.dims)
    dims: list[Dim] = [()] * new + list(x.dims)
    for i, size in enumerate(sizes):
        have = prod(factor.size for factor in dims[i])
        if size not in (-1, have):
            if have != 1:
                raise Uncovered(f"an expansion of {x.sizes} to {tuple(sizes)}")
            dims[i] = _merged([Factor(int(size), 0)])
    return replace(x, dims=tuple(dims))


def usual_letters(dims: Sequence[Dim]) -> list[str]:
    """Where the dimensions stand in a map: an image's as they are, else the last as channels, pixels before it."""
    if len(dims) == 4 and dims[0] == (IMAGES,):
        return ["N", "C", "H", "W"]
    own = [i for i, dim in enumerate(dims) if dim and dim != (IMAGES,)]
    places = dict(zip(reversed(own), ["C", "W", *"H" * len(own)], strict=False))
    return ["N" if dim == (IMAGES,) else places.get(i, "C") for i, dim in enumerate(dims)]


def fine(x: Strided) -> tuple[list[Dim], list[int]]:
    """The dimensions with the images apart from what shares one with them, and how many each dimension has become."""
    dims: list[Dim] = []
    counts = []
    for dim in x.dims:
        parts: list[list[Factor]] = [[]]
        for factor in dim:
            if factor == IMAGES or parts[-1] == [IMAGES]:
                parts.append([])
            parts[-1].append(factor)
        kept = [tuple(part) for part in parts if part] or [()]
        dims += kept
        counts.append(len(kept))
    return dims, counts


def arranged(graph: Graph, x: Strided, letters: Sequence[str]) -> Strided:
    """The same tensor as all elements of a map in which each of its `fine` dimensions runs along the axis that
    ``letters`` say, those of one axis in order."""
    dims, counts = fine(x)
    sizes = dict.fromkeys("CHW", 1)
    for dim, letter in zip(dims, letters, strict=True):
        if (dim == (IMAGES,)) != (letter == "N" and bool(dim)):
            raise Uncovered(f"a tensor of dimensions {x.axes} whose images are not a dimension of their own")
        if letter != "N":
            sizes[letter] *= prod(factor.size for factor in dim)
    shape = Shape(sizes["C"], sizes["H"], sizes["W"])
    strides = {"C": shape.height * shape.width, "H": shape.width, "W": 1}
    placed: list[Dim] = []
    for dim, letter in zip(reversed(dims), reversed(letters), strict=True):
        if letter == "N":
            placed.append(dim)
            continue
        size = prod(factor.size for factor in dim)
        placed.append(_merged([Factor(size, strides[letter])]))
        strides[letter] *= size
    placed.reverse()
    value = _value(graph, x, dims, letters, shape)
    regrouped, at = [], 0
    for count in counts:
        regrouped.append(_merged([factor for dim in placed[at : at + count] for factor in dim]))
        at += count
    return Strided(value, shape, 0, tuple(regrouped))


def _value(graph: Graph, x: Strided, dims: Sequence[Dim], letters: Sequence[str], shape: Shape) -> int:
    """The map of the arrangement: the one there is, or a gather of it."""
    factors = [
        factor
        for letter in "CHW"
        for factor in _merged([f for dim, own in zip(dims, letters, strict=True) if own == letter for f in dim])
    ]
    if x.base == 0 and shape == x.shape and _merged(factors) == _merged([Factor(prod(shape), 1)]):
        return x.value
    return gathered(graph, x.value, shape, [(np.arange(f.size), f.stride or 0) for f in factors], base=x.base)


def gathered(
    graph: Graph, value: int, shape: Shape, dims: Sequence[tuple[Any, int]], base: int = 0, fill: float = 0.0
) -> int:
    """A gather: of each dimension the indices, where -1 gives ``fill``, and the distance of their elements."""
    rows: list[tuple[Any, int]] = []
    for index, stride in dims:
        index = np.asarray(index)
        if stride < 0:
            base += stride * (len(index) - 1)
            index, stride = np.where(index < 0, -1, len(index) - 1 - index), -stride
        rows.append((index, stride))
    if base:
        rows.append((np.ones(1), base))
    if len(rows) > 8 or max((int(index.max()) for index, _ in rows), default=0) >= 1 << 24:
        raise Uncovered("a tensor of more dimensions than one gather has")
    rows += [(np.zeros(1), 0)] * (8 - len(rows))
    attrs = [*shape, *(len(index) for index, _ in rows), *(stride for _, stride in rows)]
    weights = [np.concatenate([np.asarray(index, dtype=np.float64) for index, _ in rows]), vector([fill])]
    return graph.add("gather", [value], attrs, weights)


def settled(graph: Graph, x: Tensor) -> Tensor:
    """A tensor that is all elements of a map, as a View where it has the form of one."""
    if isinstance(x, View):
        return x
    dims, _ = fine(x)
    return seen(arranged(graph, x, usual_letters(dims)))
