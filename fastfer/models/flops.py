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


def _gate(a: Any) -> int:
    """SE and scSE have w1 and w2, ECA and CSA a one-dimensional w1 over the channels, the pixel gates sw."""
    count, (side, pixel, _) = 0, a.gates
    if side is not None:
        count += math.prod(side.w1) * a.x[1] if side.w2 is None else math.prod(side.w1) + math.prod(side.w2)
    if pixel is not None:
        count += a.x[2] * a.x[3] * math.prod(pixel.sw)
    return int(a.x[0] * count)


def _coordinate(a: Any) -> int:
    pooled = (2 if a.kind == 2 else 1) * (a.x[2] + a.x[3]) * math.prod(a.weight)
    return int(a.x[0] * (pooled + a.x[2] * math.prod(a.h_weight) + a.x[3] * math.prod(a.w_weight)))


def _dot_product(a: Any) -> int:
    return int(a.q[0] * a.q[1] * a.k[1] * (a.q[2] + a.v[2]))


def _additive(a: Any) -> int:
    """Not the weighted sum: an element-wise product and a sum, in the network's table."""
    return int(a.x[0] * a.x[1] * (math.prod(a.weight) + math.prod(a.v)))


def _of_block(formula: Callable[[Any], int]) -> Callable[[Any], int]:
    return lambda a: formula(a.block)


_MULTIPLY_ADDS: dict[str, Callable[[Any], int]] = {
    "additive_attention": _additive,
    "additive_attention_train": _additive,
    "cbam": _cbam,
    "cbam_train": _of_block(_cbam),
    "channel_gate": _channel_gate,
    "channel_gate_train": _channel_gate,
    "conv2d": _convolution,
    "conv2d_linked": _convolution,
    "conv2d_pool_train": _of_block(_convolution),
    "conv2d_train": _of_block(_convolution),
    "coordinate_attention": _coordinate,
    "coordinate_attention_train": _of_block(_coordinate),
    "depthwise_conv2d": _convolution,
    "depthwise_norm": _convolution,
    "depthwise_norm_linked": _of_block(_convolution),
    "depthwise_norm_train": _of_block(_convolution),
    "dot_product_attention": _dot_product,
    "dot_product_attention_train": _dot_product,
    "gate": _gate,
    "gate_linked": _gate,
    "gate_train": _gate,
    "inverted_bottleneck": _bottleneck,
    "inverted_bottleneck_train": _of_block(_bottleneck),
    "pointwise_conv2d": _pointwise,
    "separable_conv2d": _separable,
    "separable_conv2d_linked": _of_block(_separable),
    "separable_conv2d_train": _of_block(_separable),
    "spatial_gate": _spatial_gate,
    "spatial_gate_train": _of_block(_spatial_gate),
}


def _register(name: str, multiply_adds: Callable[[Any], int]) -> None:
    unflatten = _library.op_of(name).signature.unflatten

    @register_flop_formula(getattr(torch.ops.fastfer, name))
    def operations(*args: Any, out_shape: Any = None) -> int:
        return 2 * multiply_adds(unflatten(*args))


for _name, _formula in _MULTIPLY_ADDS.items():
    _register(_name, _formula)
