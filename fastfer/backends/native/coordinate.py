# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention and its pooling on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import addresses, empty_nhwc, nhwc


def _like(x: Tensor) -> Tensor:
    return empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3])


def _size(x: Tensor) -> list[int]:
    n, c, h, w = x.shape
    return [n, h, w, c]


def cpsca_pool(x: Tensor) -> tuple[Tensor, ...]:
    """Mean and maximum of each row (N, C, H), mean and maximum of each column (N, C, W), channels adjoining."""
    n, h, w, c = size = _size(x)
    x = nhwc(x)
    pooled = [x.new_empty((n, length, c)) for length in (h, h, w, w)]
    _C.cpsca_pool_fwd(x.dtype == torch.float64, size, x.data_ptr(), addresses(*pooled), num_threads())
    return tuple(t.transpose(1, 2) for t in pooled)


def cpsca_pool_backward(
    d_row_mean: Tensor, d_row_max: Tensor, d_col_mean: Tensor, d_col_max: Tensor, x: Tensor
) -> Tensor:
    """Gradient of x."""
    x = nhwc(x)
    dx = _like(x)
    grads = [t.transpose(1, 2).contiguous() for t in (d_row_mean, d_row_max, d_col_mean, d_col_max)]
    _C.cpsca_pool_bwd(x.dtype == torch.float64, _size(x), addresses(*grads), x.data_ptr(), dx.data_ptr(), num_threads())
    return dx


def _run(train: bool, batch_stats: bool, *args: Any) -> tuple[Tensor, ...]:
    x, weight, bias, *norm, eps, act, h_weight, h_bias, w_weight, w_bias, kind = args
    x = nhwc(x)
    size = _size(x)
    params = [t.contiguous() for t in (weight, bias, h_weight, h_bias, w_weight, w_bias)]
    norm = [t.contiguous() for t in norm]
    out, middle, positions = _like(x), weight.shape[0], size[0] * (size[1] + size[2])
    pooled = at = y = gates = stats = out  # not written in inference
    if train:
        pooled, gates, y = (
            x.new_empty((positions, size[3])),
            x.new_empty((positions, size[3])),
            x.new_empty((positions, middle)),
        )
        at = torch.empty_like(pooled) if kind else x.new_empty(0)
        stats = x.new_empty((3, middle))
    _C.coordinate_attention_fwd(
        x.dtype == torch.float64, train, [*size, middle, kind, act], x.data_ptr(), addresses(*params),
        [*addresses(*norm, stats), 0, 0], eps, batch_stats, out.data_ptr(), addresses(pooled, at, y, gates),
        num_threads(),
    )  # fmt: skip
    return out, pooled, at, y, gates, stats


def coordinate_attention(*args: Any) -> Tensor:
    """Output with running statistics; arguments as the op's."""
    return _run(False, False, *args)[0]


def coordinate_attention_train(*args: Any) -> tuple[Tensor, ...]:
    """Output, pooled positions, places of maxima (empty for "ca"), y before the norm, gates, statistics (3, M)."""
    *given, batch_stats = args
    return _run(True, batch_stats, *given)


def coordinate_attention_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, at: Tensor, y: Tensor, gates: Tensor, stats: Tensor,
    weight: Tensor, n_weight: Tensor, n_bias: Tensor, act: int, h_weight: Tensor, w_weight: Tensor,
    kind: int, batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; weight, bias, the norm's two, h_weight, h_bias, w_weight, w_bias. Not asked for: empty."""
    need_dx, need_params = mask
    dout, x = nhwc(dout), nhwc(x)
    weight, h_weight, w_weight = weight.contiguous(), h_weight.contiguous(), w_weight.contiguous()
    n_weight, n_bias = n_weight.contiguous(), n_bias.contiguous()
    middle, channels = weight.shape[:2]
    dx = _like(x) if need_dx else x.new_empty(0)
    grads: list[Tensor] = [x.new_empty(0) for _ in range(8)]
    if need_params:
        few, many = [x.new_empty(middle) for _ in range(3)], [x.new_empty(channels) for _ in range(2)]
        grads = [
            torch.empty_like(weight),
            *few,
            torch.empty_like(h_weight),
            many[0],
            torch.empty_like(w_weight),
            many[1],
        ]
    d_weight, d_bias, d_n_weight, d_n_bias, *rest = addresses(*grads) if need_params else [0] * 8
    _C.coordinate_attention_bwd(
        x.dtype == torch.float64, [*_size(x), middle, kind, act], dout.data_ptr(), x.data_ptr(),
        addresses(pooled, at if kind else None, y, gates), addresses(weight, None, h_weight, None, w_weight, None),
        [*addresses(n_weight, n_bias, None, None, stats), d_n_weight, d_n_bias], batch_stats,
        dx.data_ptr() if need_dx else 0, [d_weight, d_bias, *rest], num_threads(),
    )  # fmt: skip
    return dx, *grads
