# SPDX-License-Identifier: Apache-2.0
"""Quantised models with QuantizeLinear and DequantizeLinear pairs, understood as the float network that they stand for.

Weights are dequantised. A pair around an activation becomes a clamp to the numbers that its integers can hold: that is
where quantisers put the ReLU that they removed; the rounding itself is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer.engine.onnx_pointwise import axis_of, fixed, number
from fastfer.engine.onnx_read import OnnxError, OnnxNode
from fastfer.engine.onnx_trace import Traced, Tracer, Value, aten, onnx_op
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
    return Quantized(_clamped(g, x, (low - offset.float()) * rate, (high - offset.float()) * rate), offset.dtype)


class Quantized:
    """An activation between a QuantizeLinear and its DequantizeLinear: the numbers that its integers stand for."""

    def __init__(self, real: Traced, dtype: torch.dtype) -> None:
        self.real, self.dtype = real, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.real.shape

    def dim(self) -> int:
        return self.real.dim()


def _clamped(g: Tracer, x: Traced, low: Tensor, high: Tensor) -> Traced:
    least, largest = number(low), number(high)
    if least is None or largest is None:
        raise Uncovered("an activation that is quantised with a scale for each channel")
    result: Traced = g.call(aten.clamp.default, x, least, largest)
    return result


@onnx_op("DequantizeLinear")
def _dequantize(g: Tracer, node: OnnxNode, x: Any, scale: Value, zero: Any = None) -> Any:
    if isinstance(x, Quantized):
        return x.real
    if isinstance(x, Traced):
        raise Uncovered("integers that are dequantised, but were not quantised here")
    rate, offset = _parts(node, x, scale, zero)
    g.spend(x.numel(), 4)
    return (x.float() - offset.float()) * rate
