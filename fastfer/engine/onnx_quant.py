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

from fastfer.engine.onnx_pointwise import axis_of, fixed, number
from fastfer.engine.onnx_read import OnnxError, OnnxNode
from fastfer.engine.onnx_trace import HANDLERS, Traced, Tracer, Value, aten, onnx_op
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
def _quantize(g: Tracer, node: OnnxNode, x: Value, scale: Value, zero: Any = None) -> Any:
    rate, offset = _parts(node, x, scale, zero)
    if offset.dtype not in _LIMITS:
        raise Uncovered(f"a quantisation to {offset.dtype}")
    low, high = _LIMITS[offset.dtype]
    if isinstance(x, Tensor):
        g.spend(x.numel(), 4)
        rounded = torch.clamp(torch.round(x.float() / rate) + offset.float(), low, high)
        return rounded.to(offset.dtype)
    return Quantized(_rounded(g, x, rate, offset, low, high), offset.dtype)


class Quantized:
    """An activation between a QuantizeLinear and its DequantizeLinear: the numbers that its integers stand for."""

    def __init__(self, real: Traced, dtype: torch.dtype) -> None:
        self.real, self.dtype = real, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.real.shape

    def dim(self) -> int:
        return self.real.dim()


def _rounded(g: Tracer, x: Traced, rate: Tensor, offset: Tensor, low: int, high: int) -> Traced:
    scale, zero = number(rate), number(offset)
    if scale is None or zero is None:
        raise Uncovered("an activation that is quantised with a scale for each channel")
    return g.like(aten.fake_quantize_per_tensor_affine.default, x, scale, int(zero), low, high)


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
    by_output = OnnxNode(node.op, node.name, node.inputs, node.outputs, {**node.attrs, "axis": 0})
    weight = _dequantize(g, by_output, w, w_scale, w_zero)
    if bias is not None:  # its scale is that of the products
        rate = fixed(x_scale, "a scale").float().reshape(-1) * fixed(w_scale, "a scale").float().reshape(-1)
        bias = fixed(bias, "a bias").float() * rate
    y = HANDLERS["Conv"](g, node, _real(x), weight, bias)
    return _quantize(g, node, y, y_scale, y_zero)


@onnx_op("QLinearMatMul")
def _qlinear_matmul(g: Tracer, node: OnnxNode, a: Any, a_scale: Value, a_zero: Any, b: Any, b_scale: Value,
                    b_zero: Any, y_scale: Value, y_zero: Any) -> Any:  # fmt: skip
    last = OnnxNode(node.op, node.name, node.inputs, node.outputs, {**node.attrs, "axis": -1})
    parts = [
        _real(value) if isinstance(value, Quantized) else _dequantize(g, last, value, scale, zero)
        for value, scale, zero in ((a, a_scale, a_zero), (b, b_scale, b_zero))
    ]
    return _quantize(g, node, g.call(aten.matmul.default, *parts), y_scale, y_zero)


def _real(x: Any) -> Traced:
    if not isinstance(x, Quantized):
        raise Uncovered("integers that were not quantised here")
    return x.real
