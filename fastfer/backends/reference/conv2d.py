# SPDX-License-Identifier: Apache-2.0
"""Dense 2-D convolution (cross-correlation, as torch) with normalisation and activation, in plain torch.

y[n, o, i, j] = bias[o] + sum_c,p,q x[n, c, i·sh + p - top, j·sw + q - left] · weight[o, c, p, q], x zero outside;
out = act(norm(y)). x (N, C, H, W), weight (O, C, KH, KW), bias and the norm's tensors (O,) or None, stride (sh, sw),
padding (top, left, bottom, right).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.backends.reference import _linked
from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference.norm import norm_act, norm_act_backward, statistics
from fastfer.backends.reference.pool import at_maxima, max_pool2d_backward, max_pool2d_train


def _pad(x: Tensor, padding: list[int]) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(nhwc(x), (left, right, top, bottom))  # torch's result depends on the layout, to the rounding


def conv2d_train(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    n_weight: Tensor | None, n_bias: Tensor | None, n_mean: Tensor | None, n_var: Tensor | None,
    eps: float, act: int, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (N, O, OH, OW), y, statistics (3, O): mean, 1/sqrt(var + eps), unbiased variance.

    The statistics are the batch's with ``batch_stats``, else the running ones; empty without a norm. y is empty where
    neither norm nor activation follows.
    """
    y = nhwc(F.conv2d(_pad(x, padding), weight, bias, stride))
    stats = statistics(y, n_mean, n_var, eps, batch_stats)
    if n_weight is None and act == 0:
        return y, y.new_empty(0), stats
    return nhwc(norm_act(y, n_weight, n_bias, stats, act)), y, stats


def conv2d(*args: object) -> Tensor:
    """Output with running statistics; arguments as `conv2d_train` without ``batch_stats``."""
    return conv2d_train(*args, False)[0]  # type: ignore[arg-type, call-arg]


def conv2d_backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor | None, n_bias: Tensor | None, stats: Tensor,
    act: int, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weight, bias, and the norm's weight and bias.

    ``mask`` asks for x's and for the others; those not asked for or without a norm are empty.
    """
    need_dx, need_weight = mask
    dy, d_n_weight, d_n_bias = norm_act_backward(dout, y, n_weight, n_bias, stats, act, batch_stats)
    padded = _pad(x, padding)
    dx, d_weight, _ = torch.ops.aten.convolution_backward(
        dy, padded, weight, None, stride, [0, 0], [1, 1], False, [0, 0], 1, [need_dx, need_weight, False]
    )
    top, left, bottom, right = padding
    height, width = padded.shape[2], padded.shape[3]
    params: tuple[Tensor, ...]
    if need_weight:
        params = d_weight.contiguous(), dy.sum((0, 2, 3)), d_n_weight, d_n_bias
    else:
        params = tuple(x.new_empty(0) for _ in range(4))
    return nhwc(dx[:, :, top : height - bottom, left : width - right]) if need_dx else x.new_empty(0), *params


def with_pool(
    train: Callable[..., tuple[Tensor, ...]], backward: Callable[..., tuple[Tensor, ...]],
    pool_train: Callable[..., tuple[Tensor, Tensor]], pool_backward: Callable[..., Tensor],
) -> tuple[Callable[..., tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]]:  # fmt: skip
    """conv2d_pool_train and conv2d_pool_backward of a backend that runs convolution and max pooling one by one."""

    def conv2d_pool_train(*args: Any) -> tuple[Tensor, ...]:
        """Output of the pooling behind `conv2d_train`, y, y at the maxima, their places in the windows, statistics."""
        *layer, kernel, window_stride, window_padding, batch_stats = args
        full, y, stats = train(*layer, batch_stats)
        out, positions = pool_train(full, kernel, window_stride, window_padding)
        return out, y, at_maxima(y, positions, kernel, window_stride, window_padding), positions, stats

    def conv2d_pool_backward(
        dout: Tensor, x: Tensor, y: Tensor, best: Tensor, positions: Tensor, weight: Tensor, n_weight: Tensor,
        n_bias: Tensor, stats: Tensor, act: int, stride: list[int], padding: list[int],
        pool_kernel: list[int], pool_stride: list[int], pool_padding: list[int], batch_stats: bool, mask: list[bool],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Gradients as `conv2d_backward`, ``dout`` that of the pooled output."""
        dfull = pool_backward(dout, positions, list(y.shape[2:]), pool_kernel, pool_stride, pool_padding)
        return backward(dfull, x, y, weight, n_weight, n_bias, stats, act, stride, padding, batch_stats, mask)

    return conv2d_pool_train, conv2d_pool_backward


conv2d_pool_train, conv2d_pool_backward = with_pool(
    conv2d_train, conv2d_backward, max_pool2d_train, max_pool2d_backward
)
conv2d_linked = partial(_linked.conv2d_linked, conv2d_train)
conv2d_linked_backward = partial(_linked.conv2d_linked_backward, conv2d_backward)
