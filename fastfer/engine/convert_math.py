# SPDX-License-Identifier: Apache-2.0
"""Handlers of functions of elements, reductions, softmax and products, for tensors of any dimensions."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log
from typing import Any

import torch
from torch import Tensor

from fastfer.engine import tensors
from fastfer.engine.convert import Conversion, generally, numbers
from fastfer.engine.convert_tensor import tensor
from fastfer.engine.strided import Strided
from fastfer.engine.views import Uncovered, View

Any_ = View | Strided


def unary(into: Conversion, x: Any, name: str, a: Any = 0.0, b: Any = 0.0) -> Any_:
    return tensors.unary(into.graph, tensor(into, x), name, a, b)


def _plain(name: str) -> Callable[..., Any_]:
    return lambda into, self, **rest: unary(into, self, name)


for _torch, _own in {
    "abs": "abs", "sqrt": "sqrt", "rsqrt": "rsqrt", "reciprocal": "reciprocal", "exp": "exp", "log": "log",
    "square": "square", "tanh": "tanh", "erf": "erf", "mish": "mish", "log_sigmoid": "log_sigmoid", "sign": "sign",
    "sgn": "sign", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "isnan": "is_nan", "sin": "sin", "cos": "cos",
}.items():  # fmt: skip
    generally(f"aten.{_torch}")(_plain(_own))


@generally("aten.round")
def _round(into: Conversion, self: Any, decimals: int = 0) -> Any_:
    if decimals:
        raise Uncovered("rounding to decimals")
    return unary(into, self, "round")


@generally("aten.gelu")
def _gelu(into: Conversion, self: Any, approximate: str = "none") -> Any_:
    return unary(into, self, "gelu" if approximate == "none" else "gelu_tanh")


@generally("aten.leaky_relu")
def _leaky_relu(into: Conversion, self: Any, negative_slope: float = 0.01) -> Any_:
    return unary(into, self, "leaky_relu", negative_slope)


@generally("aten.prelu")
def _prelu(into: Conversion, self: Any, weight: Any) -> Any_:
    slopes = numbers(weight).reshape(-1)
    if len(slopes) == 1:
        return unary(into, self, "leaky_relu", slopes)
    if isinstance(self, View) and len(self.axes) > 1 and self.axes[1] == "C":
        return unary(into, self, "leaky_relu", slopes)
    shape = [1, len(slopes), *(1,) * (len(self.sizes) - 2)]
    return tensors.binary(into.graph, "leaky_relu", self, tensors.constant(into.graph, slopes.reshape(shape)))


@generally("aten.elu")
def _elu(into: Conversion, self: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any_:
    if input_scale != 1:
        raise Uncovered(f"elu with an input scale of {input_scale}")
    return unary(into, self, "elu", alpha * scale, scale)


@generally("aten.celu")
def _celu(into: Conversion, self: Any, alpha: float = 1.0) -> Any_:
    """alpha · (exp(x / alpha) - 1): an elu of x / alpha."""
    scaled = affine(into, self, 1 / alpha, 0.0)
    return unary(into, scaled, "elu", alpha, alpha)


@generally("aten.selu")
def _selu(into: Conversion, self: Any) -> Any_:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return unary(into, self, "elu", alpha * scale, scale)


@generally("aten.softplus")
def _softplus(into: Conversion, self: Any, beta: float = 1, threshold: float = 20) -> Any_:
    return unary(into, self, "softplus", beta, threshold)


@generally("aten.softsign")
def _softsign(into: Conversion, self: Any) -> Any_:
    return unary(into, self, "softsign")


@generally("aten.tanhshrink")
def _tanhshrink(into: Conversion, self: Any) -> Any_:
    return binary(into, "sub", self, unary(into, self, "tanh"))


generally("aten.hardshrink")(lambda into, self, lambd=0.5: unary(into, self, "hard_shrink", lambd))
generally("aten.softshrink")(lambda into, self, lambd=0.5: unary(into, self, "soft_shrink", lambd))


@generally("aten.threshold")
def _threshold(into: Conversion, self: Any, threshold: float, value: float) -> Any_:
    return unary(into, self, "threshold", threshold, value)


@generally("aten.hardtanh", "aten.clamp", "aten.clip", "aten.clamp_min", "aten.clamp_max")
def _clamp(into: Conversion, self: Any, **bounds: Any) -> Any_:
    names = {"min": 0, "max": 1, "min_val": 0, "max_val": 1}
    low, high = (next((v for k, v in bounds.items() if names.get(k) == i), None) for i in (0, 1))
    for bound, name in ((low, "maximum"), (high, "minimum")):
        if isinstance(bound, (Tensor, View, Strided)):
            self = binary(into, name, self, bound)
    low, high = (None if not isinstance(bound, (int, float)) else float(bound) for bound in (low, high))
    if low is not None and high is not None and abs(low) < inf and abs(high) < inf:
        # torch: where the bounds cross, the upper one is taken.
        return unary(into, self, "clamp", low, high)
    if low is not None and low > -inf:
        self = unary(into, self, "at_least", low)
    return unary(into, self, "at_most", 0.0, high) if high is not None and high < inf else self


def _act(name: str) -> Callable[..., Any_]:
    """An activation of `ACTIVATIONS` by functions that work on tensors of any form."""

    def handler(into: Conversion, self: Any, **rest: Any) -> Any_:
        return into.activated(tensor(into, self), name)

    return handler


for _name in ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid"):
    generally(f"aten.{_name}")(_act(_name))


def affine(into: Conversion, x: Any_, scale: float, shift: float) -> Any_:
    """x · scale + shift of a tensor of any form."""
    return into.scaled(x, scale, shift)


@generally("aten.neg")
def _neg(into: Conversion, self: Any) -> Any_:
    return affine(into, self, -1.0, 0.0)


_POWERS = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal", 2.0: "square"}


@generally("aten.pow")
def _pow(into: Conversion, self: Any, exponent: Any) -> Any_:
    exponent = _number(exponent)
    if isinstance(self, (int, float)) or (isinstance(self, Tensor) and self.numel() == 1):
        base = float(self)
        if base <= 0 or not isinstance(exponent, (View, Strided)):
            raise Uncovered(f"a power of {base}")
        return unary(into, affine(into, exponent, log(base), 0.0), "exp")
    if not isinstance(exponent, float):
        return binary(into, "power", self, exponent)
    if exponent in _POWERS:
        return unary(into, self, _POWERS[exponent])
    if exponent == 1:
        return tensor(into, self)
    if exponent in (3.0, 4.0):
        square = unary(into, self, "square")
        return binary(into, "mul", square, self) if exponent == 3 else unary(into, square, "square")
    return unary(into, self, "power", exponent)


def _number(x: Any) -> Any:
    """A constant of one element as a float."""
    if isinstance(x, Tensor) and x.numel() == 1 and not x.is_complex():
        return float(x)
    return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else x


def binary(into: Conversion, name: str, a: Any, b: Any) -> Any_:
    """Of two tensors, or of one and a number."""
    parts = [tensors.constant(into.graph, t) if isinstance(t, (int, float)) else tensor(into, t) for t in (a, b)]
    return tensors.binary(into.graph, name, *parts)


def _of_two(name: str, with_number: Callable[[Conversion, Any, float, bool], Any_] | None) -> Callable[..., Any_]:
    def handler(into: Conversion, self: Any, other: Any, alpha: float = 1, **rest: Any) -> Any_:
        if any(value is not None for value in rest.values()):
            raise Uncovered(f"{name} with {', '.join(rest)}")
        a, b = _number(self), _number(other)
        if alpha != 1:
            b = b * alpha if isinstance(b, float) else affine(into, tensor(into, b), float(alpha), 0.0)
        if with_number is not None and isinstance(b, float):
            return with_number(into, a, b, False)
        if with_number is not None and isinstance(a, float):
            return with_number(into, b, a, True)
        return binary(into, name, a, b)

    return handler


generally("aten.add")(_of_two("add", lambda into, x, n, first: affine(into, x, 1.0, n)))
generally("aten.mul")(_of_two("mul", lambda into, x, n, first: affine(into, x, n, 0.0)))
generally("aten.sub")(
    _of_two("sub", lambda into, x, n, first: affine(into, x, -1.0 if first else 1.0, n if first else -n))
)
generally("aten.div", "aten.true_divide")(
    _of_two(
        "div",
        lambda into, x, n, first: (
            affine(into, unary(into, x, "reciprocal"), n, 0.0) if first else affine(into, x, 1 / n, 0.0)
        ),
    )
)
generally("aten.maximum")(_of_two("maximum", None))
generally("aten.minimum")(_of_two("minimum", None))


@generally("aten.rsub")
def _rsub(into: Conversion, self: Any, other: Any, alpha: float = 1) -> Any_:
    return _of_two("sub", lambda into, x, n, first: affine(into, x, -1.0 if first else 1.0, n if first else -n))(
        into, self=other, other=self, alpha=alpha
    )


_SWAPPED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}


def _compared(name: str) -> Callable[..., Any_]:
    """x name n, or n name x where the number comes first."""
    return _of_two(name, lambda into, x, n, first: unary(into, x, _SWAPPED.get(name, name) if first else name, n))


for _torch, _own in {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
}.items():  # fmt: skip
    generally(f"aten.{_torch}")(_compared(_own))


generally("aten.logical_not")(lambda into, self: unary(into, self, "equal", 0.0))
generally("aten.logical_and")(
    lambda into, self, other: binary(
        into, "mul", *(unary(into, tensor(into, t), "not_equal", 0.0) for t in (self, other))
    )
)
generally("aten.logical_or")(
    lambda into, self, other: binary(
        into, "maximum", *(unary(into, tensor(into, t), "not_equal", 0.0) for t in (self, other))
    )
)


@generally("aten.where")
def where(into: Conversion, condition: Any, self: Any, other: Any) -> Any_:
    parts = [infinite(into, t) if isinstance(t, float) and abs(t) == inf
             else tensors.constant(into.graph, t) if isinstance(t, (int, float)) else tensor(into, t)
             for t in (condition, self, other)]  # fmt: skip
    return tensors.select(into.graph, *parts)


def infinite(into: Conversion, value: float) -> Any_:
    """Infinity, which no file holds: computed when the plan runs."""
    least = tensors.unary(into.graph, tensors.constant(into.graph, 0.0), "log")
    return least if value < 0 else into.scaled(least, -1.0, 0.0)


@generally("aten.masked_fill")
def _masked_fill(into: Conversion, self: Any, mask: Any, value: Any) -> Any_:
    return where(into, mask, _number(value), self)  # type: ignore[no-any-return]


@generally("aten.lerp")
def _lerp(into: Conversion, self: Any, end: Any, weight: Any) -> Any_:
    step = binary(into, "sub", end, self)
    rate = _number(weight)
    scaled = affine(into, step, rate, 0.0) if isinstance(rate, float) else binary(into, "mul", step, rate)
    return binary(into, "add", self, scaled)


@generally("aten.to", "aten._to_copy", "aten.type_as")
def _to(into: Conversion, self: Any, dtype: Any = None, other: Any = None, **rest: Any) -> Any_:
    """Whole numbers are cut off; they are exact up to 2^24."""
    if dtype is torch.bool:
        return unary(into, self, "not_equal", 0.0)
    if dtype in (torch.int64, torch.int32):
        return unary(into, self, "trunc")
    if dtype not in (None, torch.float32, into.dtype) or isinstance(other, Tensor):
        raise Uncovered(f"a conversion to {dtype}")
    return tensor(into, self)
