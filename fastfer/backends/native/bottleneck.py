# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck on the native kernels; NHWC, dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import address, addresses, empty_nhwc, flat, nhwc


def _shape(x: Tensor, dw: Tensor, project: Tensor | None, stride: list[int], padding: list[int]) -> list[int]:
    """n, h, w, hidden, oh, ow, kh, kw, sh, sw, top, left, in, out (0: no projection)."""
    n, c, h, w = x.shape
    hidden, _, kh, kw = dw.shape
    (sh, sw), (top, left, bottom, right) = stride, padding
    height, width = (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1
    return [n, h, w, hidden, height, width, kh, kw, sh, sw, top, left, c, 0 if project is None else project.shape[0]]


def _run(
    train: bool, batch_stats: bool, x: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, n1_mean: Tensor, n1_var: Tensor, eps1: float,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, n2_mean: Tensor, n2_var: Tensor, eps2: float,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, n3_mean: Tensor | None,
    n3_var: Tensor | None, eps3: float,
    act: int, residual: bool, stride: list[int], padding: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = _shape(x, dw, project, stride, padding)
    hidden, height, width, channels, outputs = shape[3], shape[4], shape[5], shape[12], shape[13]
    x, weights = nhwc(x), [expand.contiguous(), dw.contiguous(), flat(project)]
    norms = [
        [flat(t) for t in tensors]
        for tensors in (
            (n1_weight, n1_bias, n1_mean, n1_var), (n2_weight, n2_bias, n2_mean, n2_var),
            (n3_weight, n3_bias, n3_mean, n3_var),
        )
    ]  # fmt: skip
    out = empty_nhwc(x, outputs or hidden, height, width)
    y1 = y2 = covariance = stats1 = stats2 = stats3 = nothing = x.new_empty(0)  # not written in inference
    if train:
        y1, stats1, stats2 = empty_nhwc(x, hidden, height, width), x.new_empty((3, hidden)), x.new_empty((3, hidden))
        if outputs:
            y2, stats3 = empty_nhwc(x, outputs, height, width), x.new_empty((3, outputs))
        else:
            y2, stats3 = x.new_empty(0), x.new_empty(0)
        covariance = x.new_empty((hidden + 1, channels) if batch_stats else 0)
    _C.inverted_bottleneck_fwd(
        x.dtype == torch.float64, train, shape, x.data_ptr(), addresses(*weights),
        [
            [*addresses(*norm), stats.data_ptr(), 0, 0]
            for norm, stats in zip(norms, (stats1, stats2, stats3), strict=True)
        ],
        [eps1, eps2, eps3], act, batch_stats, residual, out.data_ptr(), y1.data_ptr(), y2.data_ptr(),
        covariance.data_ptr(), num_threads(),
    )  # fmt: skip
    return (out, y1, y2, covariance, stats1, stats2, stats3) if train else (out, nothing)


def inverted_bottleneck(*args: Any) -> Tensor:
    """Output with running statistics, in one pass; arguments as the op's."""
    return _run(False, False, *args)[0]


def inverted_bottleneck_train(*args: Any) -> tuple[Tensor, ...]:
    """Output, y1, y2, covariance and the three norms' statistics as `backends.reference.bottleneck` has them."""
    *block, batch_stats = args
    return _run(True, batch_stats, *block)


def inverted_bottleneck_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor, covariance: Tensor,
    expand: Tensor, n1_weight: Tensor, n1_bias: Tensor, stats1: Tensor,
    dw: Tensor, n2_weight: Tensor, n2_bias: Tensor, stats2: Tensor,
    project: Tensor | None, n3_weight: Tensor | None, n3_bias: Tensor | None, stats3: Tensor,
    act: int, residual: bool, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; expand, norm1's two; dw, norm2's two; project, norm3's two. Those not asked for are empty."""
    shape = _shape(x, dw, project, stride, padding)
    dout, x, weights = nhwc(dout), nhwc(x), [expand.contiguous(), dw.contiguous(), flat(project)]
    norms = [[flat(t) for t in pair] for pair in ((n1_weight, n1_bias), (n2_weight, n2_bias), (n3_weight, n3_bias))]
    need_dx, need_params = mask

    def wanted(t: Tensor | None) -> Tensor | None:
        return torch.empty_like(t) if need_params and t is not None else None

    dx = empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if need_dx else None
    d_weights, d_norms = [wanted(t) for t in weights], [[wanted(t) for t in pair] for pair in norms]
    _C.inverted_bottleneck_bwd(
        x.dtype == torch.float64, shape, dout.data_ptr(), x.data_ptr(), y1.data_ptr(), y2.data_ptr(),
        covariance.data_ptr(), addresses(*weights),
        [
            [*addresses(*pair), 0, 0, stats.data_ptr(), *addresses(*grads)]
            for pair, stats, grads in zip(norms, (stats1, stats2, stats3), d_norms, strict=True)
        ],
        act, batch_stats, residual, address(dx), addresses(*d_weights), num_threads(),
    )  # fmt: skip
    grads = (dx, *(t for weight, pair in zip(d_weights, d_norms, strict=True) for t in (weight, *pair)))
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)
