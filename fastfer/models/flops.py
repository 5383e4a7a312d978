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

Shape = Sequence[int]


def _positions(x: Shape, kernel: Shape, stride: Sequence[int], padding: Sequence[int]) -> int:
    """Places of all images where a kernel (..., KH, KW) is applied."""
    top, left, bottom, right = padding
    height = (x[2] + top + bottom - kernel[2]) // stride[0] + 1
    width = (x[3] + left + right - kernel[3]) // stride[1] + 1
    return x[0] * height * width


def _depthwise(x: Shape, weight: Shape, bias: Any, stride: list[int], padding: list[int]) -> int:
    return _positions(x, weight, stride, padding) * math.prod(weight)


def _depthwise_norm(x: Shape, weight: Shape, *rest: Any) -> int:
    return _depthwise(x, weight, None, rest[7], rest[8])


def _pointwise(x: Shape, weight: Shape, *rest: Any) -> int:
    return x[0] * x[2] * x[3] * math.prod(weight)


def _separable(x: Shape, depthwise: Shape, *rest: Any) -> int:
    pointwise, stride, padding = rest[7], rest[15], rest[16]
    each: int = math.prod(depthwise) + math.prod(pointwise)
    return _positions(x, depthwise, stride, padding) * each


def _bottleneck(x: Shape, expand: Shape, *rest: Any) -> int:
    depthwise, project, stride, padding = rest[5], rest[11], rest[19], rest[20]
    behind: int = math.prod(depthwise) + (0 if project is None else math.prod(project))
    return _pointwise(x, expand) + _positions(x, depthwise, stride, padding) * behind


def _conv2d(x: Shape, weight: Shape, *rest: Any) -> int:
    return _positions(x, weight, rest[7], rest[8]) * math.prod(weight)


def _channel_gate(x: Shape, w1: Shape, b1: Shape, w2: Shape, *rest: Any) -> int:
    return 2 * x[0] * (math.prod(w1) + math.prod(w2))


def _spatial_gate(x: Shape, weight: Shape, *rest: Any) -> int:
    return x[0] * x[2] * x[3] * math.prod(weight)


def _cbam(x: Shape, w1: Shape, b1: Shape, w2: Shape, b2: Shape, weight: Shape, *rest: Any) -> int:
    return _channel_gate(x, w1, b1, w2) + _spatial_gate(x, weight)


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
    "depthwise_conv2d": _depthwise,
    "depthwise_norm": _depthwise_norm,
    "depthwise_norm_train": _depthwise_norm,
    "pointwise_conv2d": _pointwise,
    "separable_conv2d": _separable,
    "separable_conv2d_train": _separable,
    "inverted_bottleneck": _bottleneck,
    "inverted_bottleneck_train": _bottleneck,
    "conv2d": _conv2d,
    "conv2d_train": _conv2d,
    "conv2d_pool_train": _conv2d,
    "conv2d_linked": lambda x, weight, *rest: _positions(x, weight, *rest[4:6]) * math.prod(weight),
    "separable_conv2d_linked": lambda x, *rest: _separable(x, *rest[4:]),
    "depthwise_norm_linked": lambda x, *rest: _depthwise_norm(x, *rest[4:]),
    "gate_linked": lambda x, *rest: _gate(x, *rest[4:]),
    "channel_gate": _channel_gate,
    "channel_gate_train": _channel_gate,
    "spatial_gate": _spatial_gate,
    "spatial_gate_train": _spatial_gate,
    "cbam": _cbam,
    "cbam_train": _cbam,
    "gate": _gate,
    "gate_train": _gate,
    "coordinate_attention": _coordinate,
    "coordinate_attention_train": _coordinate,
    "dot_product_attention": _dot_product,
    "dot_product_attention_train": _dot_product,
    "additive_attention": _additive,
    "additive_attention_train": _additive,
}


def _register(name: str, multiply_adds: Callable[..., int]) -> None:
    @register_flop_formula(getattr(torch.ops.fastfer, name))
    def operations(*args: Any, out_shape: Any = None) -> int:
        return 2 * multiply_adds(*args)


for _name, _formula in _MULTIPLY_ADDS.items():
    _register(_name, _formula)
