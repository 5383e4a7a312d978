# SPDX-License-Identifier: Apache-2.0
"""A normalisation left by one op to the next, in plain torch, around a backend's own functions.

The first op ends with y and its statistics (3, C); the next takes z = act((y - mean)·invstd·weight + bias) for its
input. Their gradients are those of tensors like others: with g = dz·act', s = sum(g), sx = sum(g·(y - mean)) over n
values a channel, y gets g·weight·invstd, the statistics get (-weight·invstd·s, weight·sx, 0), weight invstd·sx and bias
s; and the first op adds what its statistics (m, i, v) got:
dy += dm/n - di·invstd³·(y - mean)/n + 2·dv·(y - mean)/(n - 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastfer.backends.reference import elementwise
from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference.norm import norm_act

_DIMS = (0, 2, 3)
Function = Callable[..., Any]


def _channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def normalised(y: Tensor, stats: Tensor | None, weight: Tensor | None, bias: Tensor | None, act: int) -> Tensor:
    """z of the input y; y itself without statistics."""
    return y if stats is None else nhwc(norm_act(y, weight, bias, stats, act).to(y.dtype))


def before_backward(
    dz: Tensor, y: Tensor, stats: Tensor | None, weight: Tensor | None, bias: Tensor | None, act: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of y, the statistics, weight and bias from that of z; the last three empty without statistics."""
    if stats is None or weight is None or bias is None:
        return dz, y.new_empty(0), y.new_empty(0), y.new_empty(0)
    invstd, centred = stats[1], y - _channels(stats[0])
    g = elementwise.backward(dz, centred * _channels(invstd * weight) + _channels(bias), act)
    s, sx = g.sum(_DIMS), (g * centred).sum(_DIMS)
    d_stats = torch.stack([-weight * invstd * s, weight * sx, torch.zeros_like(s)])
    return nhwc((g * _channels(weight * invstd)).to(dz.dtype)), d_stats, invstd * sx, s


def gate_linked(
    train: Function, x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int, *args: Any
) -> tuple[Tensor, ...]:  # fmt: skip
    """Results as the backend's `gate_train`, ``train``."""
    results: tuple[Tensor, ...] = train(normalised(x, l_stats, l_weight, l_bias, l_act), *args)
    return results


def gate_linked_backward(
    backward: Function, dout: Tensor, x: Tensor, l_stats: Tensor, l_weight: Tensor, l_bias: Tensor, l_act: int,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients as the backend's `gate_backward`, then those of l_stats, l_weight and l_bias; always that of x."""
    *args, mask = rest
    z = normalised(x, l_stats, l_weight, l_bias, l_act)
    dz, *grads = backward(dout, z, *args, [True, *mask[1:]])
    dx, *before = before_backward(dz, x, l_stats, l_weight, l_bias, l_act)
    return dx, *grads, *before
