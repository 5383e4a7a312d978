# SPDX-License-Identifier: Apache-2.0
"""Operations of the ops for ``torch.utils.flop_counter``: convolutions and matrix products, forward, 2 a multiply-add.

Registered when fastfer is imported, so that a user's own ``FlopCounterMode`` counts the networks as well. Formulas see
shapes where the op has tensors. Of `coordinate_attention` "cpsca" both convolutions count, though the op needs one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from fastfer import _library

Shape = Sequence[int]


def _positions(x: Shape, kernel: Shape, stride: Sequence[int], padding: Sequence[int]) -> int:
    """Places of all images where a kernel (..., KH, KW) is applied."""
    top, left, bottom, right = padding
    height = (x[2] + top + bottom - kernel[2]) // stride[0] + 1
    width = (x[3] + left + right - kernel[3]) // stride[1] + 1
    return int(x[0] * height * width)


def _convolution(a: Any) -> int:
    return _positions(a.x, a.weight, a.stride, a.padding) * int(math.prod(a.weight))


def _pointwise(a: Any) -> int:
    return int(a.x[0] * a.x[2] * a.x[3] * math.prod(a.weight))


def _separable(a: Any) -> int:
    each: int = math.prod(a.dw_weight) + math.prod(a.pw_weight)
    return _positions(a.x, a.dw_weight, a.stride, a.padding) * each


def _bottleneck(a: Any) -> int:
    after: int = math.prod(a.dw_weight) + (0 if a.project_weight is None else math.prod(a.project_weight))
    expansion: int = a.x[0] * a.x[2] * a.x[3] * math.prod(a.expand_weight)
    return expansion + _positions(a.x, a.dw_weight, a.stride, a.padding) * after


def _channel_gate(a: Any) -> int:
    return int(2 * a.x[0] * (math.prod(a.mlp.w1) + math.prod(a.mlp.w2)))


def _spatial_gate(a: Any) -> int:
    return int(a.x[0] * a.x[2] * a.x[3] * math.prod(a.weight))


def _cbam(a: Any) -> int:
    return _channel_gate(a) + _spatial_gate(a)


def _gate(
    x: Shape, w1: Shape | None, b1: Any, w2: Shape | None, b2: Any, act: int, gate_act: int, sw: Shape | None, *_: Any
) -> int:  # fmt: skip
    """SE and scSE have w1 and w2, ECA and CSA a one-dimensional w1 over the channels, the pixel gates sw."""
    count = 0
    if w1 is not None:
        count += x[0] * (math.prod(w1) * x[1] if w2 is None else math.prod(w1) + math.prod(w2))
    if sw is not None:
        count += x[0] * x[2] * x[3] * math.prod(sw)
    return count


def _coordinate(x: Shape, weight: Shape, *rest: Any) -> int:
    h_weight, w_weight, kind = rest[7], rest[9], rest[11]
    pooled = (2 if kind == 2 else 1) * (x[2] + x[3]) * math.prod(weight)
    gates: int = x[2] * math.prod(h_weight) + x[3] * math.prod(w_weight)
    return x[0] * (pooled + gates)


def _dot_product(q: Shape, k: Shape, v: Shape, *rest: Any) -> int:
    return q[0] * q[1] * k[1] * (q[2] + v[2])


def _additive(x: Shape, h: Shape, weight: Shape, bias: Shape, v: Shape, *rest: Any) -> int:
    """Not the weighted sum: an element-wise product and a sum, in the network's table."""
    return x[0] * x[1] * (math.prod(weight) + math.prod(v))


_MULTIPLY_ADDS: dict[str, Callable[..., int]] = {
    "gate_linked": lambda x, *rest: _gate(x, *rest[4:]),
    "gate": _gate,
    "gate_train": _gate,
    "coordinate_attention": _coordinate,
    "coordinate_attention_train": _coordinate,
    "dot_product_attention": _dot_product,
    "dot_product_attention_train": _dot_product,
    "additive_attention": _additive,
    "additive_attention_train": _additive,
}


_OF_SIGNATURES: dict[str, Callable[[Any], int]] = {
    "depthwise_conv2d": _convolution,
    "depthwise_norm": _convolution,
    "depthwise_norm_train": lambda a: _convolution(a.block),
    "depthwise_norm_linked": lambda a: _convolution(a.block),
    "conv2d": _convolution,
    "conv2d_train": lambda a: _convolution(a.block),
    "conv2d_pool_train": lambda a: _convolution(a.block),
    "conv2d_linked": _convolution,
    "pointwise_conv2d": _pointwise,
    "separable_conv2d": _separable,
    "separable_conv2d_train": lambda a: _separable(a.block),
    "separable_conv2d_linked": lambda a: _separable(a.block),
    "inverted_bottleneck": _bottleneck,
    "inverted_bottleneck_train": lambda a: _bottleneck(a.block),
    "channel_gate": _channel_gate,
    "channel_gate_train": _channel_gate,
    "spatial_gate": _spatial_gate,
    "spatial_gate_train": lambda a: _spatial_gate(a.block),
    "cbam": _cbam,
    "cbam_train": lambda a: _cbam(a.block),
}


def _by_name(name: str, formula: Callable[[Any], int]) -> Callable[..., int]:
    """The formula of a signature whose tensors are their shapes."""
    unflatten = _library.op_of(name).signature.unflatten
    return lambda *args: formula(unflatten(*args))


_MULTIPLY_ADDS |= {name: _by_name(name, formula) for name, formula in _OF_SIGNATURES.items()}


def _register(name: str, multiply_adds: Callable[..., int]) -> None:
    @register_flop_formula(getattr(torch.ops.fastfer, name))
    def operations(*args: Any, out_shape: Any = None) -> int:
        return 2 * multiply_adds(*args)


for _name, _formula in _MULTIPLY_ADDS.items():
    _register(_name, _formula)
