# SPDX-License-Identifier: Apache-2.0
"""Tensors laid out alike, so that an operation of elements may take their maps; and the forms of its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from fastfer.engine.graph import Graph, Shape
from fastfer.engine.strided import (
    IMAGES,
    Dim,
    Factor,
    Strided,
    Tensor,
    arranged,
    fine,
    reshaped,
    strided,
    usual_letters,
)
from fastfer.engine.views import Uncovered, View


def _split(dim: Dim, sizes: Sequence[int]) -> list[Dim]:
    """A dimension as several of these sizes."""
    return list(reshaped(Strided(0, Shape(1, 1, 1), 0, (dim,)), sizes).dims)


def together(graph: Graph, tensors: Sequence[Tensor]) -> tuple[list[int], Strided]:
    """The maps of tensors whose dimensions of one element repeat, laid out alike; and the form of the result."""
    rank = max(len(t.sizes) for t in tensors)
    parts = [strided(t) for t in tensors]
    parts = [replace(p, dims=((),) * (rank - len(p.dims)) + p.dims) for p in parts]
    sizes = [max(p.sizes[i] for p in parts) for i in range(rank)]
    # What an expansion repeats is repeated by the operation; where all do, the result does.
    single = [replace(p, dims=tuple(() if all(f.stride == 0 for f in d) else d for d in p.dims)) for p in parts]
    own = [max(p.sizes[i] for p in single) for i in range(rank)]
    if any(p.sizes[i] not in (1, own[i]) for p in single for i in range(rank)):
        raise Uncovered(f"tensors of {' and '.join(str(t.axes) for t in tensors)}, which do not repeat to one shape")
    layout = _layout(tensors, single, own)
    counts = [len(parts) for parts in layout]
    letters = [letter for parts in layout for _, letter in parts]
    values = []
    for p in single:
        dims: list[Dim] = []
        for dim, own_parts in zip(p.dims, layout, strict=True):
            dims += _split(dim, [n for n, _ in own_parts]) if dim else [()] * len(own_parts)
        dims = _whole(dims, [part for own_parts in layout for part in own_parts])
        done = arranged(graph, replace(p, dims=tuple(dims)), letters)
        values.append(done.value)
    every = [part for parts in layout for part in parts]
    shape = Shape(*(prod([n for n, own in every if own == letter]) for letter in "CHW"))
    form = arranged_form(shape, layout)
    whole = regrouped(form, counts)
    dims = [dim if own[i] == sizes[i] else (Factor(sizes[i], 0),) for i, dim in enumerate(whole)]
    return values, Strided(0, shape, 0, tuple(dims))


def regrouped(parts: Sequence[Dim], counts: Sequence[int]) -> list[Dim]:
    """Dimensions of so many parts each."""
    out, first = [], 0
    for count in counts:
        out.append(tuple(factor for dim in parts[first : first + count] for factor in dim))
        first += count
    return out


Layout = list[list[tuple[int, str]]]
"""Of each dimension its parts: their size and the axis of the map along which they run."""


def arranged_form(shape: Shape, layout: Layout) -> list[Dim]:
    """The factors of parts that run through all of a map."""
    strides = {"C": shape.height * shape.width, "H": shape.width, "W": 1}
    dims: list[Dim] = []
    for size, letter in reversed([part for parts in layout for part in parts]):
        if letter == "N":
            dims.append((IMAGES,) if size > 1 else ())
            continue
        dims.append((Factor(size, strides[letter]),) if size > 1 else ())
        strides[letter] *= size
    return dims[::-1]


def _whole(dims: Sequence[Dim], parts: Sequence[tuple[int, str]]) -> list[Dim]:
    """An axis of a map repeats as a whole or not at all: what is missing of one is repeated by a gather."""
    there = {letter for dim, (_, letter) in zip(dims, parts, strict=True) if dim and letter != "N"}
    return [
        (Factor(size, 0),) if not dim and size > 1 and letter in there else dim
        for dim, (size, letter) in zip(dims, parts, strict=True)
    ]


def _layout(tensors: Sequence[Tensor], parts: Sequence[Strided], sizes: Sequence[int]) -> Layout:
    """How the result lies: as a view among the tensors that has all its elements, else the usual way."""
    for t in tensors:
        if isinstance(t, View) and list(t.sizes) == list(sizes):
            return [[(t.size(letter), letter) for letter in axis] or [(1, "C")] for axis in t.axes]
    models = [next(p.dims[i] for p in parts if p.sizes[i] == size) for i, size in enumerate(sizes)]
    # The images apart from what shares a dimension with them; dimensions that no tensor has all of are as long.
    dims, counts = fine(Strided(0, Shape(1, 1, 1), 0, tuple(models)))
    letters = usual_letters(dims)
    own = [(prod(f.size for f in dim), letter) for dim, letter in zip(dims, letters, strict=True)]
    layout, at = [], 0
    for count in counts:
        layout.append(own[at : at + count])
        at += count
    return layout
