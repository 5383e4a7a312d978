# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import address, addresses, empty_nhwc, flat, nhwc
from fastfer.backends.native.norms import NO_NORM, dense_affine, dense_norm
from fastfer.signatures.bottleneck import (
    Bottleneck,
    BottleneckBackward,
    BottleneckGradients,
    BottleneckTrain,
    BottleneckTrained,
)


def _shape(x: Tensor, dw: Tensor, project: Tensor | None, stride: list[int], padding: list[int]) -> list[int]:
    """n, h, w, hidden, oh, ow, kh, kw, sh, sw, top, left, in, out (0: no projection)."""
    n, c, h, w = x.shape
    hidden, _, kh, kw = dw.shape
    (sh, sw), (top, left, bottom, right) = stride, padding
    height, width = (h + top + bottom - kh) // sh + 1, (w + left + right - kw) // sw + 1
    return [n, h, w, hidden, height, width, kh, kw, sh, sw, top, left, c, 0 if project is None else project.shape[0]]


def _forward(a: Bottleneck, train: bool, batch_stats: bool) -> BottleneckTrained:
    shape = _shape(a.x, a.dw_weight, a.project_weight, a.stride, a.padding)
    hidden, height, width, channels, outputs = shape[3], shape[4], shape[5], shape[12], shape[13]
    x, weights = nhwc(a.x), [a.expand_weight.contiguous(), a.dw_weight.contiguous(), flat(a.project_weight)]
    norms = [dense_norm(norm) for norm in (a.norm1, a.norm2, a.norm3)]
    out = empty_nhwc(x, outputs or hidden, height, width)
    y1 = y2 = covariance = stats1 = stats2 = stats3 = x.new_empty(0)  # not written in inference
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
        [a.norm1.eps, a.norm2.eps, (a.norm3 or NO_NORM).eps], a.act, batch_stats, a.residual,
        out.data_ptr(), y1.data_ptr(), y2.data_ptr(), covariance.data_ptr(), num_threads(),
    )  # fmt: skip
    return BottleneckTrained(out, y1, y2, covariance, stats1, stats2, stats3)


def inverted_bottleneck(a: Bottleneck) -> Tensor:
    """Output with running statistics, in one pass."""
    return _forward(a, False, False).out


def inverted_bottleneck_train(a: BottleneckTrain) -> BottleneckTrained:
    """Output, y1, y2, covariance and the three norms' statistics."""
    return _forward(a.block, True, a.batch_stats)


def inverted_bottleneck_backward(a: BottleneckBackward) -> BottleneckGradients:
    """Gradients of x; the expansion's weight, norm1's two; the depthwise weight, norm2's two; the projection's, norm3's
    two."""
    shape = _shape(a.x, a.dw_weight, a.project_weight, a.stride, a.padding)
    dout, x = nhwc(a.d_out), nhwc(a.x)
    weights = [a.expand_weight.contiguous(), a.dw_weight.contiguous(), flat(a.project_weight)]
    norms = [dense_affine(norm) for norm in (a.norm1, a.norm2, a.norm3)]

    def wanted(t: Tensor | None) -> Tensor | None:
        return torch.empty_like(t) if a.needs.params and t is not None else None

    d_x = empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if a.needs.x else None
    d_weights, d_norms = [wanted(t) for t in weights], [[wanted(t) for t in norm] for norm in norms]
    _C.inverted_bottleneck_bwd(
        x.dtype == torch.float64, shape, dout.data_ptr(), x.data_ptr(), a.y1.data_ptr(), a.y2.data_ptr(),
        a.covariance.data_ptr(), addresses(*weights),
        [
            [*addresses(*norm), 0, 0, stats.data_ptr(), *addresses(*grads)]
            for norm, stats, grads in zip(norms, (a.stats1, a.stats2, a.stats3), d_norms, strict=True)
        ],
        a.act, a.batch_stats, a.residual, address(d_x), addresses(*d_weights), num_threads(),
    )  # fmt: skip
    grads = (d_x, *(t for weight, pair in zip(d_weights, d_norms, strict=True) for t in (weight, *pair)))
    return BottleneckGradients(*(x.new_empty(0) if grad is None else grad for grad in grads))
