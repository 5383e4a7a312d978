# SPDX-License-Identifier: Apache-2.0
"""ONNX's GridSample and AffineGrid, which torch has as they are."""

from __future__ import annotations

from typing import Any

from fastfer.engine.functions import OUTSIDE, SAMPLING
from fastfer.engine.onnx_pointwise import ints
from fastfer.engine.onnx_read import OnnxError, OnnxNode
from fastfer.engine.onnx_trace import Tracer, Value, aten, onnx_op
from fastfer.engine.views import Uncovered

_NAMES = {"linear": "bilinear", "cubic": "bicubic"}
"""What opset 20 calls the ways of sampling."""


@onnx_op("GridSample")
def _grid_sample(g: Tracer, node: OnnxNode, x: Value, grid: Value) -> Any:
    mode = node.attrs.get("mode", "linear")
    mode, outside = _NAMES.get(mode, mode), node.attrs.get("padding_mode", "zeros")
    if mode not in SAMPLING or outside not in OUTSIDE:
        raise OnnxError(f"expected a mode of {SAMPLING} and a padding_mode of {OUTSIDE}, got {mode!r}, {outside!r}")
    if x.dim() != 4:
        raise Uncovered(f"places in a tensor of shape {tuple(x.shape)}, expected images")
    x, grid = g.beside_images([x, grid])
    corners = bool(node.attrs.get("align_corners", 0))
    return g.call(aten.grid_sampler.default, x, grid, SAMPLING.index(mode), OUTSIDE.index(outside), corners)


@onnx_op("AffineGrid")
def _affine_grid(g: Tracer, node: OnnxNode, theta: Value, size: Value) -> Any:
    sizes = ints(size, "sizes")
    if len(sizes) != 4:
        raise Uncovered("places in more than two dimensions")
    corners = bool(node.attrs.get("align_corners", 0))
    return g.call(aten.affine_grid_generator.default, theta, [theta.shape[0], *sizes[1:]], corners)
