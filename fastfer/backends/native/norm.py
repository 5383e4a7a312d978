# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with an activation on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, nhwc
from fastfer.backends.native.norms import NormGradients, backward_norm, forward_norm
from fastfer.signatures.norm import (
    BatchNorm,
    BatchNormBackward,
    BatchNormGradients,
    BatchNormTrain,
    BatchNormTrained,
)


def _forward(a: BatchNorm, train: bool, batch_stats: bool) -> BatchNormTrained:
    n, c, h, w = a.x.shape
    out = empty_nhwc(a.x, c, h, w)
    stats = a.x.new_empty((3, c)) if train else out  # not written in inference
    params = _C.BatchNormParams(
        rows=n * h * w,
        channels=c,
        x=nhwc(a.x),
        norm=forward_norm(a.norm, stats),
        act=a.act,
        batch_stats=batch_stats,
        out=out,
        threads=num_threads(),
    )
    run = _C.batch_norm_train if train else _C.batch_norm_fwd
    run(a.x.dtype == torch.float64, params)
    return BatchNormTrained(out, stats)


def batch_norm(a: BatchNorm) -> Tensor:
    """Output with running statistics, in one pass."""
    return _forward(a, False, False).out


def batch_norm_train(a: BatchNormTrain) -> BatchNormTrained:
    """Output and statistics."""
    return _forward(a.block, True, a.batch_stats)


def batch_norm_backward(a: BatchNormBackward) -> BatchNormGradients:
    """Gradients of x, weight and bias."""
    n, c, h, w = a.x.shape
    d_x = empty_nhwc(a.x, c, h, w) if a.needs.x else a.x.new_empty(0)
    d_weight, d_bias = (a.x.new_empty(c if a.needs.params else 0) for _ in range(2))
    params = _C.BatchNormParams(
        rows=n * h * w,
        channels=c,
        x=nhwc(a.x),
        norm=backward_norm(a.norm, a.stats.contiguous(), NormGradients(d_weight, d_bias)),
        act=a.act,
        batch_stats=a.batch_stats,
        dout=nhwc(a.d_out),
        out=d_x,
        threads=num_threads(),
    )
    _C.batch_norm_bwd(a.x.dtype == torch.float64, params)
    return BatchNormGradients(d_x, d_weight, d_bias)
