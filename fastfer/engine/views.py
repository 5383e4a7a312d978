# SPDX-License-Identifier: Apache-2.0
"""How torch's tensors show the maps of a graph: each dimension as a product of the axes N, C, H and W.

An image is ("N", "C", "H", "W"), its tokens ("N", "HW", "C"), a flattened one ("N", "CHW"). Reshaping, transposing and
reducing only rearrange the letters, so no data moves in the graph. Axes of one element have no letter, but N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from fastfer.engine.graph import Shape

BATCH = 2
"""The batch that networks are traced with: large enough that what mixes images is seen."""


class Images(int):
    """A size that is ``each`` times the number of images; as a number it is that of `BATCH` images."""

    def __new__(cls, each: int) -> Images:
        return int.__new__(cls, each * BATCH)

    @property
    def each(self) -> int:
        return self // BATCH

    def __getnewargs__(self) -> tuple[int]:
        return (self.each,)


class Uncovered(Exception):  # noqa: N818 - a reason, turned into an error or an island
    """Why a call has no place in the graph."""


@dataclass(frozen=True)
class View:
    """A tensor whose elements are those of ``value``, a map of ``shape``, in the order of ``axes``."""

    value: int
    shape: Shape
    axes: tuple[str, ...]

    def size(self, letter: str) -> int:
        return BATCH if letter == "N" else self.shape["CHW".index(letter)]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The tensor's shape in the trace."""
        return tuple(prod(map(self.size, axis)) for axis in self.axes)

    def dim(self, index: int) -> int:
        """A dimension's number, counted from the front."""
        return index % len(self.axes)

    def same_axes(self, shape: Shape, value: int) -> View:
        """Another map seen the same way, axes that it has only one element of without a letter."""
        view = View(value, shape, self.axes)
        return replace(view, axes=tuple("".join(a for a in axis if view.keeps(a)) for axis in self.axes))

    def keeps(self, letter: str) -> bool:
        """Whether the axis has a letter: N always."""
        return letter == "N" or self.size(letter) > 1

    def present(self, letters: str) -> str:
        """Those of the letters that have more than one element."""
        return "".join(letter for letter in letters if self.keeps(letter))


def image(value: int, shape: Shape) -> View:
    """A map as (N, C, H, W)."""
    view = View(value, shape, ())
    return replace(view, axes=("N", *(view.present(letter) for letter in "CHW")))


def vector(value: int, shape: Shape) -> View:
    """A map of one pixel as (N, C)."""
    view = View(value, shape, ())
    return replace(view, axes=("N", view.present("C")))


def tokens(value: int, shape: Shape) -> View:
    """A map's pixels as (N, HW, C)."""
    view = View(value, shape, ())
    return replace(view, axes=("N", view.present("HW"), view.present("C")))


def is_image(view: View) -> bool:
    """Whether the tensor is (N, C, H, W)."""
    return view.axes == image(view.value, view.shape).axes


def is_pixelwise(view: View, dim: int) -> bool:
    """Whether the channels are dimension ``dim``, and N and the pixels anywhere else."""
    return view.axes[dim] == view.present("C") and "N" not in view.axes[dim]


def reshaped(view: View, sizes: Sequence[int]) -> View:
    """The tensor with new sizes, one of which may be -1."""
    sizes = [int(size) for size in sizes]
    if -1 in sizes:
        known = -prod(sizes)
        sizes[sizes.index(-1)] = prod(view.sizes) // max(known, 1)
    letters, axes = list("".join(view.axes)), []
    for size in sizes:
        axis, got = "", 1
        while got < size and letters:
            axis += letters.pop(0)
            got = prod(map(view.size, axis))
        if got != size:
            raise Uncovered(f"the shape {tuple(sizes)} splits an axis of {view.sizes}")
        axes.append(axis)
    return replace(view, axes=tuple(axes))


def permuted(view: View, order: Sequence[int]) -> View:
    """The dimensions in another order."""
    return replace(view, axes=tuple(view.axes[view.dim(i)] for i in order))


def unsqueezed(view: View, dim: int) -> View:
    """A dimension of one element at ``dim``."""
    at = dim % (len(view.axes) + 1)
    return replace(view, axes=(*view.axes[:at], "", *view.axes[at:]))


def squeezed(view: View, dims: Sequence[int] | None) -> View:
    """Without the dimensions ``dims`` of one element, or without all of those."""
    chosen = range(len(view.axes)) if dims is None else [view.dim(i) for i in dims]
    return replace(view, axes=tuple(axis for i, axis in enumerate(view.axes) if axis or i not in chosen))


def reduced(view: View, dims: Sequence[int], keepdim: bool) -> tuple[str, tuple[str, ...]]:
    """The letters that a reduction over ``dims`` consumes, and the axes that are left."""
    chosen = {view.dim(i) for i in dims} if dims else set(range(len(view.axes)))
    letters = "".join(view.axes[i] for i in sorted(chosen))
    left = [("" if i in chosen else axis) for i, axis in enumerate(view.axes) if keepdim or i not in chosen]
    return "".join(sorted(letters, key="NCHW".index)), tuple(left)


def broadcasts(a: View, b: View) -> bool:
    """Whether b's tensor, with its dimensions aligned to the last of a's, repeats along some of a's axes only."""
    if len(b.axes) > len(a.axes):
        return False
    aligned = zip(a.axes[len(a.axes) - len(b.axes) :], b.axes, strict=True)
    return all(theirs in ("", ours) for ours, theirs in aligned) and "N" in "".join(b.axes)
