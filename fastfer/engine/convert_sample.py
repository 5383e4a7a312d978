# SPDX-License-Identifier: Apache-2.0
"""Handlers of maps sampled at computed places: grid_sample, and the grids of affine maps; and of running sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer.engine import strided, tensors, views, windows
from fastfer.engine.convert import Conversion, generally
from fastfer.engine.convert_tensor import tensor
from fastfer.engine.strided import IMAGES, Strided
from fastfer.engine.views import Uncovered, View

Any_ = View | Strided
_MOST_SUMMED = 1024
"""Elements of a dimension that a running sum goes over: it reads each as often as there are others after it."""


def _map(into: Conversion, x: Any, letters: str) -> Any_:
    """A tensor of images, or a constant for all of them, as a map whose dimensions stand as ``letters`` say."""
    if isinstance(x, Tensor):
        if len(x) != 1 and not bool((x == x[:1]).all()):
            raise Uncovered("a constant that differs between the images of a batch")
        order = [letters.index(letter) for letter in "NCHW"]
        return tensors.constant(into.graph, x[:1].permute(order).numpy())
    form = strided.strided(x)
    if form.dims[0] != (IMAGES,):
        raise Uncovered(f"places of dimensions {x.axes}, expected those of each image")
    return strided.arranged(into.graph, form, list(letters))


@generally("aten.grid_sampler", "aten.grid_sampler_2d", "aten.cudnn_grid_sampler")
def _grid_sampler(
    into: Conversion, input: Any, grid: Any, interpolation_mode: int = 0, padding_mode: int = 0,
    align_corners: bool | None = False,
) -> Any_:  # fmt: skip
    if len(input.shape if isinstance(input, Tensor) else input.sizes) != 4:
        raise Uncovered("places in more than two dimensions")
    source, places = _map(into, input, "NCHW"), _map(into, grid, "NHWC")
    attrs = [interpolation_mode, padding_mode, bool(align_corners)]  # torch's numbers are the engine's
    value = into.graph.add("sample", [source.value, places.value], attrs)
    return into.view(views.image, value)


@generally("aten.affine_grid_generator")
def _affine_grid(into: Conversion, theta: Any, size: Any, align_corners: bool | None) -> Any_:
    """theta (N, 2, 3) times the places (x, y, 1) of an image's pixels."""
    if len(size) != 4:
        raise Uncovered("places in more than two dimensions")
    one = torch.eye(2, 3, dtype=torch.float64)[None]
    height, width = (int(n) for n in size[-2:])
    grid = torch.nn.functional.affine_grid(one, [1, 1, height, width], align_corners=bool(align_corners))
    places = torch.cat([grid[0], torch.ones(height, width, 1, dtype=torch.float64)], 2).reshape(1, -1, 3)
    turned = strided.permuted(strided.strided(tensor(into, theta)), [0, 2, 1])
    product = tensors.matmul(into.graph, tensors.constant(into.graph, places[0].numpy()), turned)
    return strided.seen(strided.reshaped(strided.strided(product), [-1, height, width, 2]))


@generally("aten.cumsum")
def _cumsum(into: Conversion, self: Any, dim: int, dtype: Any = None) -> Any_:
    x = tensor(into, self)
    at, size = strided.strided(x).dim(dim), x.sizes[dim]
    if size > _MOST_SUMMED:
        raise Uncovered(f"a running sum over {size} elements, the most is {_MOST_SUMMED}")
    return tensors.resampled(into.graph, x, {at: windows.running(size)}) if size > 1 else x
