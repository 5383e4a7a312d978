# SPDX-License-Identifier: Apache-2.0
"""Operators of the domain com.microsoft: what ONNX Runtime's quantiser and optimiser write in place of ONNX's own.

Those of integers are ONNX's own on the numbers that these stand for (`fastfer.engine.onnx_quant`), fused ones are their
parts in order. Others are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastfer.engine import onnx_pointwise  # noqa: F401 - it registers activations
from fastfer.engine.onnx_pointwise import fixed
from fastfer.engine.onnx_quant import quantized, real
from fastfer.engine.onnx_read import MICROSOFT, OnnxError, OnnxNode
from fastfer.engine.onnx_trace import HANDLERS, Handler, Tracer, Value, aten, onnx_op
from fastfer.engine.views import Uncovered

_PARAMETERS = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "HardSwish": (), "LeakyRelu": ("alpha",), "Elu": ("alpha",),
    "Clip": ("min", "max"), "HardSigmoid": ("alpha", "beta"),
}  # fmt: skip
"""Activations that fused operators name, with the attributes that their numbers are."""


def _op(*names: str) -> Callable[[Handler], Handler]:
    return onnx_op(*(f"{MICROSOFT}.{name}" for name in names))


def _plain(node: OnnxNode, op: str, **attrs: Any) -> OnnxNode:
    """A node of one of ONNX's own operators."""
    return OnnxNode(op, node.name, node.inputs, node.outputs, attrs or node.attrs)


def _activated(g: Tracer, node: OnnxNode, y: Any, numbers: Sequence[float]) -> Any:
    """What a fused operator's activation makes of its sums."""
    name = node.attrs.get("activation", "")
    if not name:
        return y
    if name not in _PARAMETERS:
        raise Uncovered(f"the activation {name!r}")
    attrs = dict(zip(_PARAMETERS[name], numbers, strict=False))
    return HANDLERS[name](g, OnnxNode(name, node.name, node.inputs, node.outputs, attrs), y)


@_op("FusedConv")
def _fused_conv(g: Tracer, node: OnnxNode, x: Value, weight: Value, bias: Any = None, summand: Any = None) -> Any:
    y = HANDLERS["Conv"](g, node, x, weight, bias)
    y = y if summand is None else g.call(aten.add.Tensor, y, summand)
    return _activated(g, node, y, node.attrs.get("activation_params", []))


@_op("FusedGemm")
def _fused_gemm(g: Tracer, node: OnnxNode, a: Value, b: Value, c: Any = None) -> Any:
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    numbers = [node.attrs[name] for name in names if name in node.attrs]
    return _activated(g, node, HANDLERS["Gemm"](g, node, a, b, c), numbers)


@_op("FusedMatMul")
def _fused_matmul(g: Tracer, node: OnnxNode, a: Value, b: Value) -> Any:
    if node.attrs.get("transBatchA") or node.attrs.get("transBatchB"):
        raise Uncovered("a product of matrices whose rows are in the first dimension")
    a, b = (
        g.call(aten.transpose.int, x, -1, -2) if node.attrs.get(name) and x.dim() > 1 else x
        for x, name in ((a, "transA"), (b, "transB"))
    )
    y = HANDLERS["MatMul"](g, _plain(node, "MatMul"), a, b)
    alpha = node.attrs.get("alpha", 1.0)
    return y if alpha == 1 else g.call(aten.mul.Tensor, y, torch.tensor(alpha))


@_op("Gelu", "BiasGelu")
def _gelu(g: Tracer, node: OnnxNode, x: Value, bias: Any = None) -> Any:
    return g.call(aten.gelu.default, x if bias is None else g.call(aten.add.Tensor, x, bias))


@_op("FastGelu")
def _fast_gelu(g: Tracer, node: OnnxNode, x: Value, bias: Any = None) -> Any:
    return g.call(aten.gelu.default, x if bias is None else g.call(aten.add.Tensor, x, bias), approximate="tanh")


@_op("QuickGelu")
def _quick_gelu(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return HANDLERS["Swish"](g, _plain(node, "Swish", alpha=node.attrs.get("alpha", 1.702)), x)


@_op("SkipLayerNormalization")
def _skip_layer_norm(
    g: Tracer, node: OnnxNode, x: Value, skip: Value, scale: Any, shift: Any = None, bias: Any = None
) -> Any:
    total = g.call(aten.add.Tensor, x, skip)
    total = total if bias is None else g.call(aten.add.Tensor, total, bias)
    norm = _plain(node, "LayerNormalization", epsilon=node.attrs.get("epsilon", 1e-12), axis=-1)
    return [HANDLERS["LayerNormalization"](g, norm, total, scale, shift), None, None, total]


def _one(own: str) -> Handler:
    """ONNX's own operator of one tensor: x, its scale and zero point, those of the result."""

    def handler(g: Tracer, node: OnnxNode, x: Any, scale: Value, zero: Any, y_scale: Value, y_zero: Any = None) -> Any:
        if node.attrs.get("channels_last"):
            raise Uncovered("channels in the last dimension")
        return quantized(g, node, HANDLERS[own](g, node, real(g, node, x, scale, zero)), y_scale, y_zero)

    return handler


for _name in ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"):
    _op(f"QLinear{_name}")(_one(_name))


def _two(target: Any) -> Handler:
    def handler(g: Tracer, node: OnnxNode, a: Any, a_scale: Value, a_zero: Any, b: Any, b_scale: Value, b_zero: Any,
                y_scale: Value, y_zero: Any = None) -> Any:  # fmt: skip
        y = g.call(target, real(g, node, a, a_scale, a_zero), real(g, node, b, b_scale, b_zero))
        return quantized(g, node, y, y_scale, y_zero)

    return handler


_op("QLinearAdd")(_two(aten.add.Tensor))
_op("QLinearMul")(_two(aten.mul.Tensor))


@_op("QLinearConcat")
def _concat(g: Tracer, node: OnnxNode, y_scale: Value, y_zero: Any, *parts: Any) -> Any:
    if len(parts) % 3:
        raise OnnxError(f"expected a scale and a zero point for each tensor, got {len(parts)} inputs")
    values = [real(g, node, *parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return quantized(g, node, HANDLERS["Concat"](g, node, *values), y_scale, y_zero)


@_op("QGemm")
def _gemm(g: Tracer, node: OnnxNode, a: Any, a_scale: Value, a_zero: Any, b: Any, b_scale: Value, b_zero: Any,
          c: Any = None, y_scale: Any = None, y_zero: Any = None) -> Any:  # fmt: skip
    weight = real(g, node, b, b_scale, b_zero, 0 if node.attrs.get("transB") else 1)
    if c is not None:  # its scale is that of the products
        rate = fixed(a_scale, "a scale").float().reshape(-1) * fixed(b_scale, "a scale").float().reshape(-1)
        c = fixed(c, "a bias").float() * (rate * node.attrs.get("alpha", 1.0))
    y = HANDLERS["Gemm"](g, _plain(node, "Gemm"), real(g, node, a, a_scale, a_zero), weight, c)
    return y if y_scale is None else quantized(g, node, y, y_scale, y_zero)
