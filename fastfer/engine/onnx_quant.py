# SPDX-License-Identifier: Apache-2.0
"""Quantised models, by QuantizeLinear and DequantizeLinear or operators of integers, as torch's fake quantising.

Weights are dequantised. What a pair says of an activation is the range of a value in an int8 plan
(`fastfer.engine.quantised`). In a float plan it is a clamp to the numbers that its integers can hold: that is where
quantisers put the ReLU that they removed; the rounding itself is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer.engine import onnx_layers, onnx_shape  # noqa: F401 - they register what is wrapped here
from fastfer.engine.onnx_pointwise import axis_of, fixed, number
from fastfer.engine.onnx_read import OnnxError, OnnxNode
from fastfer.engine.onnx_trace import HANDLERS, Quantized, Traced, Tracer, Value, aten, onnx_op
from fastfer.engine.views import Uncovered

_LIMITS = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.int32: (-(2**31), 2**31 - 1),
}


def _parts(node: OnnxNode, x: Value, scale: Value, zero: Any) -> tuple[Tensor, Tensor]:
    """Scale and zero point, one number each or one along an axis, in the dimensions of x."""
    rate = fixed(scale, "a scale").to(torch.float32)
    offset = torch.zeros((), dtype=torch.uint8) if zero is None else fixed(zero, "a zero point")
    if node.attrs.get("block_size"):
        raise Uncovered("a scale for each block")
    if rate.numel() == 1:
        return rate.reshape(()), offset.reshape(())
    axis = axis_of(x, node.attrs.get("axis", 1))
    sizes = [-1 if i == axis else 1 for i in range(x.dim())]
    if rate.numel() != x.shape[axis]:
        raise OnnxError(f"scale: expected {x.shape[axis]} numbers, got {rate.numel()}")
    return rate.reshape(sizes), offset.reshape(sizes) if offset.numel() > 1 else offset.reshape(())


@onnx_op("QuantizeLinear")
def quantized(g: Tracer, node: OnnxNode, x: Value, scale: Value, zero: Any = None) -> Any:
    """Numbers as integers."""
    rate, offset = _parts(node, x, scale, zero)
    if offset.dtype not in _LIMITS:
        raise Uncovered(f"a quantisation to {offset.dtype}")
    low, high = _LIMITS[offset.dtype]
    if isinstance(x, Tensor):
        g.spend(x.numel(), 4)
        rounded = torch.clamp(torch.round(x.float() / rate) + offset.float(), low, high)
        return rounded.to(offset.dtype)
    return _again(g, x, offset.dtype, _rounding(rate, offset, low, high))


def _rounding(rate: Tensor, offset: Tensor, low: int, high: int) -> tuple[Any, ...]:
    scale, zero = number(rate), number(offset)
    if scale is None or zero is None:
        raise Uncovered("an activation that is quantised with a scale for each channel")
    return scale, int(zero), low, high


def _again(g: Tracer, x: Traced, dtype: torch.dtype, rounding: tuple[Any, ...]) -> Quantized:
    return Quantized(g.like(aten.fake_quantize_per_tensor_affine.default, x, *rounding), dtype, rounding)


def _of_integers(name: str) -> None:
    """An operator that only moves or chooses elements takes integers as they are."""
    of_numbers = HANDLERS[name]

    def handler(g: Tracer, node: OnnxNode, x: Any, *rest: Any) -> Any:
        if not isinstance(x, Quantized):
            return of_numbers(g, node, x, *rest)
        results = of_numbers(g, node, x.real, *rest)
        parts = results if isinstance(results, (tuple, list)) else [results]
        return [_again(g, part, x.dtype, x.rounding) for part in parts]

    onnx_op(name)(handler)


for _name in (
    "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
):  # fmt: skip
    _of_integers(_name)


@onnx_op("DequantizeLinear")
def _dequantize(g: Tracer, node: OnnxNode, x: Any, scale: Value, zero: Any = None) -> Any:
    if isinstance(x, Quantized):
        return x.real
    if isinstance(x, Traced):
        raise Uncovered("integers that are dequantised, but were not quantised here")
    rate, offset = _parts(node, x, scale, zero)
    g.spend(x.numel(), 4)
    return (x.float() - offset.float()) * rate


@onnx_op("QLinearConv")
def _qlinear_conv(g: Tracer, node: OnnxNode, x: Any, x_scale: Value, x_zero: Any, w: Value, w_scale: Value,
                  w_zero: Any, y_scale: Value, y_zero: Any, bias: Any = None) -> Any:  # fmt: skip
    weight = real(g, node, w, w_scale, w_zero, 0)
    if bias is not None:  # its scale is that of the products
        rate = fixed(x_scale, "a scale").float().reshape(-1) * fixed(w_scale, "a scale").float().reshape(-1)
        bias = fixed(bias, "a bias").float() * rate
    y = HANDLERS["Conv"](g, node, _real(x), weight, bias)
    return quantized(g, node, y, y_scale, y_zero)


@onnx_op("QLinearMatMul")
def _qlinear_matmul(g: Tracer, node: OnnxNode, a: Any, a_scale: Value, a_zero: Any, b: Any, b_scale: Value,
                    b_zero: Any, y_scale: Value, y_zero: Any) -> Any:  # fmt: skip
    parts = [real(g, node, a, a_scale, a_zero, -1), real(g, node, b, b_scale, b_zero, -1)]
    return quantized(g, node, g.call(aten.matmul.default, *parts), y_scale, y_zero)


def real(g: Tracer, node: OnnxNode, x: Any, scale: Value, zero: Any, axis: int = 1) -> Value:
    """The numbers of integers, of constants with scales along an axis."""
    along = OnnxNode(node.op, node.name, node.inputs, node.outputs, {**node.attrs, "axis": axis})
    value: Value = _dequantize(g, along, x, scale, zero)
    return value


def _real(x: Any) -> Traced:
    if not isinstance(x, Quantized):
        raise Uncovered("integers that were not quantised here")
    return x.real
