# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, flat, nhwc
from fastfer.backends.native.norms import backward_norm, forward_norm, norm_gradients
from fastfer.backends.native.separable_conv import depthwise_shape
from fastfer.signatures.bottleneck import (
    Bottleneck,
    BottleneckBackward,
    BottleneckGradients,
    BottleneckTrain,
    BottleneckTrained,
)


def _forward(a: Bottleneck, train: bool, batch_stats: bool) -> BottleneckTrained:
    shape, channels = depthwise_shape(a.x, a.dw_weight, a.stride, a.padding), a.x.shape[1]
    hidden, outputs = shape.c, 0 if a.project_weight is None else a.project_weight.shape[0]
    out = empty_nhwc(a.x, outputs or hidden, shape.oh, shape.ow)
    y1 = y2 = covariance = stats1 = stats2 = stats3 = a.x.new_empty(0)  # not written in inference
    if train:
        y1 = empty_nhwc(a.x, hidden, shape.oh, shape.ow)
        stats1, stats2 = a.x.new_empty((3, hidden)), a.x.new_empty((3, hidden))
        if outputs:
            y2, stats3 = empty_nhwc(a.x, outputs, shape.oh, shape.ow), a.x.new_empty((3, outputs))
        else:
            y2, stats3 = a.x.new_empty(0), a.x.new_empty(0)
        covariance = a.x.new_empty((hidden + 1, channels) if batch_stats else 0)
    params = _C.BottleneckParams(
        shape=shape,
        in_channels=channels,
        out_channels=outputs,
        x=nhwc(a.x),
        expand=a.expand_weight.contiguous(),
        dw_weight=a.dw_weight.contiguous(),
        project=flat(a.project_weight),
        norm1=forward_norm(a.norm1, stats1),
        norm2=forward_norm(a.norm2, stats2),
        norm3=forward_norm(a.norm3, stats3),
        act=a.act,
        batch_stats=batch_stats,
        residual=a.residual,
        result=out,
        y1=y1,
        y2=y2,
        covariance=covariance,
        threads=num_threads(),
    )
    run = _C.inverted_bottleneck_train if train else _C.inverted_bottleneck_fwd
    run(out.dtype == torch.float64, params)
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
    x, needed = nhwc(a.x), a.needs.params
    expand, dw_weight, project = a.expand_weight.contiguous(), a.dw_weight.contiguous(), flat(a.project_weight)

    def wanted(t: Tensor | None) -> Tensor | None:
        return torch.empty_like(t) if needed and t is not None else None

    d_x = empty_nhwc(x, x.shape[1], x.shape[2], x.shape[3]) if a.needs.x else None
    d_expand, d_dw_weight, d_project = wanted(expand), wanted(dw_weight), wanted(project)
    d_norm1, d_norm2, d_norm3 = (norm_gradients(norm, needed) for norm in (a.norm1, a.norm2, a.norm3))
    params = _C.BottleneckParams(
        shape=depthwise_shape(x, dw_weight, a.stride, a.padding),
        in_channels=x.shape[1],
        out_channels=0 if project is None else project.shape[0],
        x=x,
        expand=expand,
        dw_weight=dw_weight,
        project=project,
        norm1=backward_norm(a.norm1, a.stats1, d_norm1),
        norm2=backward_norm(a.norm2, a.stats2, d_norm2),
        norm3=backward_norm(a.norm3, a.stats3, d_norm3),
        act=a.act,
        batch_stats=a.batch_stats,
        residual=a.residual,
        y1=a.y1,
        y2=a.y2,
        covariance=a.covariance,
        dout=nhwc(a.d_out),
        dx=d_x,
        d_expand=d_expand,
        d_dw_weight=d_dw_weight,
        d_project=d_project,
        threads=num_threads(),
    )
    _C.inverted_bottleneck_bwd(x.dtype == torch.float64, params)
    grads = (d_x, d_expand, *d_norm1, d_dw_weight, *d_norm2, d_project, *d_norm3)
    return BottleneckGradients(*(x.new_empty(0) if grad is None else grad for grad in grads))
