# SPDX-License-Identifier: Apache-2.0
"""Handlers of ops that move no data: reshaping, transposing, copying."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from fastfer.engine import views
from fastfer.engine.convert import Conversion, covers
from fastfer.engine.views import Images, Uncovered, View


@covers(
    "aten.contiguous",
    "aten.clone",
    "aten.alias",
    "aten.detach",
    "aten.lift_fresh_copy",
)
def _same(into: Conversion, self: View, **rest: Any) -> View:
    return self


@covers("aten.to", "aten._to_copy")
def _to(into: Conversion, self: View, dtype: Any = None, **rest: Any) -> View:
    if dtype not in (None, torch.float32, torch.float64, into.dtype):
        raise Uncovered(f"a conversion to {dtype}")
    return self


@covers("aten.flatten")
def _flatten(into: Conversion, self: View, start_dim: int, end_dim: int) -> View:
    first, last = self.dim(start_dim), self.dim(end_dim)
    joined = prod(self.sizes[first : last + 1])
    return views.reshaped(self, (*self.sizes[:first], joined, *self.sizes[last + 1 :]))


@covers("aten.unflatten")
def _unflatten(into: Conversion, self: View, dim: int, sizes: Sequence[int]) -> View:
    at = self.dim(dim)
    return _of_batch(views.reshaped(self, (*self.sizes[:at], *sizes, *self.sizes[at + 1 :])), sizes, at)


@covers("aten.view", "aten.reshape", "aten._unsafe_view")
def _reshape(into: Conversion, self: View, **rest: Any) -> View:
    (sizes,) = rest.values()
    return _of_batch(views.reshaped(self, sizes), sizes)


@covers("aten.view_as", "aten.reshape_as")
def _reshape_as(into: Conversion, self: View, other: View) -> View:
    same = views.reshaped(self, other.sizes)
    if ["N" in axis for axis in same.axes] != ["N" in axis for axis in other.axes]:
        raise Uncovered(f"a reshape of {self.axes} to the sizes of {other.axes}")
    return same


def _of_batch(view: View, sizes: Sequence[int], first: int = 0) -> View:
    """The reshaped view, if the number of images is where it was asked for, and in no number of the model's own."""
    for size, axis in zip(sizes, view.axes[first:], strict=False):
        if size != -1 and isinstance(size, Images) != ("N" in axis):
            raise Uncovered(f"sizes {tuple(sizes)} that mix the number of images with others")
    return view


@covers("aten.expand")
def _expand(into: Conversion, self: View, size: Sequence[int], implicit: bool = False) -> View:
    """Only what leaves every size as it is: products and sums repeat by themselves."""
    if not isinstance(self, View):
        raise Uncovered("an expansion of a constant")
    kept = (1,) * (len(size) - len(self.sizes)) + self.sizes
    if len(size) != len(self.sizes) or any(new not in (-1, old) for new, old in zip(size, kept, strict=True)):
        raise Uncovered(f"an expansion of {self.sizes} to {tuple(size)}")
    return self


@covers("aten.unsqueeze")
def _unsqueeze(into: Conversion, self: View, dim: int) -> View:
    return views.unsqueezed(self, dim)


@covers("aten.squeeze")
def _squeeze(into: Conversion, self: View, dim: Any = None) -> View:
    return views.squeezed(self, None if dim is None else [dim] if isinstance(dim, int) else dim)


@covers("aten.transpose", "aten.swapaxes")
def _transpose(into: Conversion, self: View, **rest: Any) -> View:
    order = list(range(len(self.axes)))
    a, b = (self.dim(i) for i in rest.values())
    order[a], order[b] = b, a
    return views.permuted(self, order)


@covers("aten.t", "aten.numpy_T", "aten.mT")
def _matrix_transpose(into: Conversion, self: View) -> View:
    return views.permuted(self, [*range(len(self.axes) - 2), len(self.axes) - 1, len(self.axes) - 2])


@covers("aten.permute")
def _permute(into: Conversion, self: View, dims: Sequence[int]) -> View:
    return views.permuted(self, dims)


@covers("aten.select")
def _select(into: Conversion, self: View, dim: int, index: int) -> View:
    if self.sizes[self.dim(dim)] != 1:
        raise Uncovered(f"a selection from dimension {self.dim(dim)} of {self.sizes}")
    return views.squeezed(self, [dim])


@covers("aten.slice")
def _slice(into: Conversion, self: View, dim: int, start: Any, end: Any, step: int) -> View:
    size = self.sizes[self.dim(dim)]
    if (start or 0) > 0 or (end is not None and end < size) or step != 1:
        raise Uncovered(f"a part of dimension {self.dim(dim)} of {self.sizes}")
    return self
