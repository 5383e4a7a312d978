# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that treat each element alone, reductions, and arithmetic of two tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastfer.engine.onnx_read import OnnxError, OnnxNode
from fastfer.engine.onnx_trace import Traced, Tracer, Value, aten, onnx_op
from fastfer.engine.views import Uncovered

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.int64, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float32, 11: torch.float64, 12: torch.int64, 13: torch.int64, 16: torch.float32,
}  # fmt: skip
"""Element types of a file by number, as they are computed here."""


def ints(value: Any, what: str) -> list[int]:
    """A constant, or an attribute, as whole numbers. Raises Uncovered where it depends on the input."""
    if isinstance(value, Traced):
        raise Uncovered(f"{what} that depend on the values of the input")
    return [int(v) for v in (value.reshape(-1).tolist() if isinstance(value, Tensor) else value)]


def number(value: Any) -> Any:
    """The number of a constant of one element; None for anything else."""
    return value.reshape(()).item() if isinstance(value, Tensor) and value.numel() == 1 else None


def fixed(value: Any, what: str) -> Any:
    """A constant. Raises Uncovered where it depends on the input."""
    if isinstance(value, Traced):
        raise Uncovered(f"{what} that depends on the input")
    return value


def axis_of(value: Value, axis: int) -> int:
    """An axis counted from the front."""
    if not -value.dim() <= axis < max(value.dim(), 1):
        raise OnnxError(f"axis: expected {-value.dim()} to {value.dim() - 1}, got {axis}")
    return axis % max(value.dim(), 1)


_UNARY = {
    "Abs": aten.abs, "Ceil": aten.ceil, "Cos": aten.cos, "Erf": aten.erf, "Exp": aten.exp, "Floor": aten.floor,
    "HardSwish": aten.hardswish, "IsNaN": aten.isnan, "Log": aten.log, "Mish": aten.mish, "Neg": aten.neg,
    "Not": aten.logical_not, "Reciprocal": aten.reciprocal, "Relu": aten.relu, "Round": aten.round,
    "Sigmoid": aten.sigmoid, "Sign": aten.sign, "Sin": aten.sin, "Sqrt": aten.sqrt, "Tanh": aten.tanh,
}  # fmt: skip


def _unary(target: Any) -> Any:
    return lambda g, node, x: g.call(target.default, x)


for _name, _target in _UNARY.items():
    onnx_op(_name)(_unary(_target))


@onnx_op("Identity")
def _identity(g: Tracer, node: OnnxNode, x: Value) -> Value:
    return x


@onnx_op("Dropout")
def _dropout(g: Tracer, node: OnnxNode, x: Value, ratio: Any = None, training: Any = None) -> Value:
    if isinstance(training, Traced) or number(training):
        raise Uncovered("dropout in training mode")
    return x


@onnx_op("Softplus")
def _softplus(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.softplus.default, x, 1, 20)


@onnx_op("Softsign")
def _softsign(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.div.Tensor, x, g.call(aten.add.Tensor, g.call(aten.abs.default, x), torch.tensor(1.0)))


@onnx_op("HardSigmoid")
def _hard_sigmoid(g: Tracer, node: OnnxNode, x: Value) -> Any:
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return g.call(aten.hardsigmoid.default, x)
    scaled = g.call(aten.add.Tensor, g.call(aten.mul.Tensor, x, torch.tensor(alpha)), torch.tensor(beta))
    return g.call(aten.clamp.default, scaled, 0.0, 1.0)


@onnx_op("Elu")
def _elu(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.elu.default, x, node.attrs.get("alpha", 1.0))


@onnx_op("Selu")
def _selu(g: Tracer, node: OnnxNode, x: Value) -> Any:
    alpha, gamma = (
        node.attrs.get("alpha", 1.67326319217681884765625),
        node.attrs.get("gamma", 1.05070102214813232421875),
    )
    return g.call(aten.elu.default, x, alpha, gamma)


@onnx_op("Swish")
def _swish(g: Tracer, node: OnnxNode, x: Value) -> Any:
    alpha = node.attrs.get("alpha", 1.0)
    if alpha == 1:
        return g.call(aten.silu.default, x)
    return g.call(aten.mul.Tensor, x, g.call(aten.sigmoid.default, g.call(aten.mul.Tensor, x, torch.tensor(alpha))))


@onnx_op("Celu")
def _celu(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.celu.default, x, node.attrs.get("alpha", 1.0))


@onnx_op("LeakyRelu")
def _leaky_relu(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.leaky_relu.default, x, node.attrs.get("alpha", 0.01))


@onnx_op("PRelu")
def _prelu(g: Tracer, node: OnnxNode, x: Value, slope: Any) -> Any:
    slope = fixed(slope, "a slope")
    one = number(slope)
    if one is not None:
        return g.call(aten.leaky_relu.default, x, one)
    sizes = (1,) * (x.dim() - slope.dim()) + tuple(slope.shape)
    if x.dim() < 2 or any(size > 1 for axis, size in enumerate(sizes) if axis != 1):
        raise Uncovered(f"a slope of shape {tuple(slope.shape)}, expected one or one a channel")
    return g.call(aten.prelu.default, x, slope.reshape(-1))


@onnx_op("Gelu")
def _gelu(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.gelu.default, x, approximate=node.attrs.get("approximate", "none"))


@onnx_op("ThresholdedRelu")
def _thresholded_relu(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.threshold.default, x, node.attrs.get("alpha", 1.0), 0.0)


@onnx_op("Clip")
def _clip(g: Tracer, node: OnnxNode, x: Value, low: Any = None, high: Any = None) -> Any:
    bounds = []
    for bound, name in ((low, "min"), (high, "max")):
        value = node.attrs.get(name) if bound is None else number(fixed(bound, "a bound"))
        # Half of float32's range and more is how some writers say that there is no bound.
        bounds.append(None if value is None or abs(value) > 1e38 else value)
    return x if bounds == [None, None] else g.call(aten.clamp.default, x, *bounds)


def _binary(target: Any) -> Any:
    return lambda g, node, a, b: g.call(target.Tensor, a, b)


for _name, _target in {
    "Add": aten.add,
    "Sub": aten.sub,
    "Mul": aten.mul,
    "Equal": aten.eq,
    "Greater": aten.gt,
    "GreaterOrEqual": aten.ge,
    "Less": aten.lt,
    "LessOrEqual": aten.le,
}.items():
    onnx_op(_name)(_binary(_target))

for _name, _target in {"And": aten.logical_and, "Or": aten.logical_or, "Xor": aten.logical_xor}.items():
    onnx_op(_name)(lambda g, node, a, b, target=_target: g.call(target.default, a, b))


@onnx_op("Div")
def _div(g: Tracer, node: OnnxNode, a: Value, b: Value) -> Any:
    if a.dtype.is_floating_point:
        return g.call(aten.div.Tensor, a, b)
    if isinstance(b, Tensor) and not bool(b.all()):
        raise OnnxError("expected no whole number divided by 0")
    return g.call(aten.div.Tensor_mode, a, b, rounding_mode="trunc")


@onnx_op("Mod")
def _mod(g: Tracer, node: OnnxNode, a: Value, b: Value) -> Any:
    if isinstance(b, Tensor) and not b.dtype.is_floating_point and not bool(b.all()):
        raise OnnxError("expected no whole number divided by 0")
    return g.call(aten.fmod.Tensor if node.attrs.get("fmod") else aten.remainder.Tensor, a, b)


@onnx_op("Pow")
def _pow(g: Tracer, node: OnnxNode, a: Value, b: Value) -> Any:
    power = number(b)
    if power is not None:
        return g.call(aten.pow.Tensor_Scalar, a, power)
    return g.call(aten.pow.Tensor_Tensor, a, b)


def _extreme(target: Any, low: bool) -> Any:
    def two(g: Tracer, a: Value, b: Value) -> Any:
        if isinstance(a, Tensor):
            a, b = b, a
        bound = number(b)
        if bound is not None and isinstance(a, Traced):
            return g.call(aten.clamp.default, a, *((bound, None) if low else (None, bound)))
        return g.call(target.default, a, b)

    return lambda g, node, *values: reduce(lambda a, b: two(g, a, b), values)


onnx_op("Max")(_extreme(aten.maximum, True))
onnx_op("Min")(_extreme(aten.minimum, False))


@onnx_op("Sum")
def _sum(g: Tracer, node: OnnxNode, *values: Value) -> Any:
    return reduce(lambda a, b: g.call(aten.add.Tensor, a, b), values)


@onnx_op("Mean")
def _mean(g: Tracer, node: OnnxNode, *values: Value) -> Any:
    return g.call(aten.mul.Tensor, _sum(g, node, *values), torch.tensor(1 / len(values)))


@onnx_op("Where")
def _where(g: Tracer, node: OnnxNode, condition: Value, a: Value, b: Value) -> Any:
    return g.call(aten.where.self, condition, a, b)


@onnx_op("Cast", "CastLike")
def _cast(g: Tracer, node: OnnxNode, x: Value, like: Any = None) -> Any:
    dtype = like.dtype if like is not None else DTYPES.get(node.attrs.get("to", 0))
    if dtype is None:
        raise Uncovered(f"a cast to the element type {node.attrs.get('to')}")
    if isinstance(x, Tensor):
        g.spend(x.numel(), dtype.itemsize)
        return x.to(dtype)
    dtype = torch.float32 if dtype == torch.float64 else dtype
    return x if dtype == x.dtype else g.call(aten._to_copy.default, x, dtype=dtype)


def axes_of(node: OnnxNode, x: Value, axes: Any) -> list[int] | None:
    """The axes of a reduction, an attribute or an input; None where none are said."""
    given = node.attrs.get("axes") if axes is None else ints(axes, "axes")
    return [axis_of(x, axis) for axis in given] if given else None


Reduction = Callable[[Tracer, Any, list[int], bool], Any]


def _reduction(name: str, function: Reduction) -> None:
    def handler(g: Tracer, node: OnnxNode, x: Value, axes: Any = None) -> Any:
        chosen = axes_of(node, x, axes)
        if chosen is None and node.attrs.get("noop_with_empty_axes"):
            return x
        return function(g, x, list(range(x.dim())) if chosen is None else chosen, bool(node.attrs.get("keepdims", 1)))

    onnx_op(name)(handler)


def _total(g: Tracer, x: Any, axes: list[int], keep: bool) -> Any:
    return g.call(aten.sum.dim_IntList, x, axes, keep)


def _squares(g: Tracer, x: Any, axes: list[int], keep: bool) -> Any:
    return _total(g, g.call(aten.pow.Tensor_Scalar, x, 2), axes, keep)


def _product(g: Tracer, x: Any, axes: list[int], keep: bool) -> Any:
    for axis in sorted(axes, reverse=True):
        x = g.call(aten.prod.dim_int, x, axis, keep)
    return x


_reduction("ReduceMean", lambda g, x, axes, keep: g.call(aten.mean.dim, x, axes, keep))
_reduction("ReduceMax", lambda g, x, axes, keep: g.call(aten.amax.default, x, axes, keep))
_reduction("ReduceMin", lambda g, x, axes, keep: g.call(aten.amin.default, x, axes, keep))
_reduction("ReduceSum", _total)
_reduction("ReduceProd", _product)
_reduction("ReduceSumSquare", _squares)
_reduction("ReduceL1", lambda g, x, axes, keep: _total(g, g.call(aten.abs.default, x), axes, keep))
_reduction("ReduceL2", lambda g, x, axes, keep: g.call(aten.sqrt.default, _squares(g, x, axes, keep)))
_reduction("ReduceLogSum", lambda g, x, axes, keep: g.call(aten.log.default, _total(g, x, axes, keep)))
_reduction("ReduceLogSumExp", lambda g, x, axes, keep: g.call(aten.logsumexp.default, x, axes, keep))


def _arg(target: Any) -> Any:
    def handler(g: Tracer, node: OnnxNode, x: Value) -> Any:
        if node.attrs.get("select_last_index"):
            raise Uncovered("the last of several places")
        axis = axis_of(x, node.attrs.get("axis", 0))
        return g.call(target.default, x, axis, bool(node.attrs.get("keepdims", 1)))

    return handler


onnx_op("ArgMax")(_arg(aten.argmax))
onnx_op("ArgMin")(_arg(aten.argmin))


@onnx_op("TopK")
def _top_k(g: Tracer, node: OnnxNode, x: Value, k: Any = None) -> Any:
    (count,) = ints(k, "a number of places") if k is not None else (node.attrs["k"],)
    axis = axis_of(x, node.attrs.get("axis", -1))
    largest, ordered = bool(node.attrs.get("largest", 1)), bool(node.attrs.get("sorted", 1))
    return g.call(aten.topk.default, x, count, axis, largest, ordered)


@onnx_op("CumSum")
def _cum_sum(g: Tracer, node: OnnxNode, x: Value, axis: Value) -> Any:
    at = axis_of(x, ints(axis, "axes")[0])
    turned = g.call(aten.flip.default, x, [at]) if node.attrs.get("reverse") else x
    y = g.call(aten.cumsum.default, turned, at)
    if node.attrs.get("exclusive"):  # 0, and all but the last
        y = g.call(aten.constant_pad_nd.default, y, [0, 0] * (x.dim() - 1 - at) + [1, -1])
    return g.call(aten.flip.default, y, [at]) if node.attrs.get("reverse") else y


def _normalised(name: str, target: Any) -> None:
    def handler(g: Tracer, node: OnnxNode, x: Value) -> Any:
        axis = axis_of(x, node.attrs.get("axis", -1 if g.opset >= 13 else 1))
        if g.opset >= 13 or axis == x.dim() - 1:
            return g.call(target.int, x, axis)
        if prod(x.shape[axis + 1 :]) == 1:  # what is flattened with it has one element
            return g.call(target.int, x, axis)
        flat = g.call(aten.flatten.using_ints, x, axis, -1)
        return g.call(aten.reshape.default, g.call(target.int, flat, axis), list(x.shape))

    onnx_op(name)(handler)


_normalised("Softmax", aten.softmax)
_normalised("LogSoftmax", aten.log_softmax)
