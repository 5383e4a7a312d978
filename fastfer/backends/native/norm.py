# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with an activation on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, nhwc
from fastfer.backends.native.norms import NormGradients, backward_norm, forward_norm
from fastfer.signatures.fields import Affine, RunningNorm


def _run(
    train: bool, batch_stats: bool, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor,
    eps: float, act: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, c, h, w = x.shape
    out = empty_nhwc(x, c, h, w)
    stats = x.new_empty((3, c)) if train else out  # not written in inference
    params = _C.BatchNormParams(
        rows=n * h * w,
        channels=c,
        x=nhwc(x),
        norm=forward_norm(RunningNorm(weight, bias, mean, var, eps), stats),
        act=act,
        batch_stats=batch_stats,
        out=out,
        threads=num_threads(),
    )
    run = _C.batch_norm_train if train else _C.batch_norm_fwd
    run(x.dtype == torch.float64, params)
    return out, stats


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, act: int
) -> Tensor:  # fmt: skip
    """Output with the running statistics ``mean`` and ``var``, in one pass."""
    return _run(False, False, x, weight, bias, mean, var, eps, act)[0]


def batch_norm_train(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, act: int, batch_stats: bool
) -> tuple[Tensor, Tensor]:
    """Output and statistics (3, C): mean, 1/sqrt(var + eps), unbiased variance."""
    return _run(True, batch_stats, x, weight, bias, mean, var, eps, act)


def batch_norm_backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, act: int, batch_stats: bool, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; ``mask`` asks for x's and for the parameters', the others are empty."""
    n, c, h, w = x.shape
    dx = empty_nhwc(x, c, h, w) if mask[0] else x.new_empty(0)
    d_weight, d_bias = (x.new_empty(c if mask[1] else 0) for _ in range(2))
    params = _C.BatchNormParams(
        rows=n * h * w,
        channels=c,
        x=nhwc(x),
        norm=backward_norm(Affine(weight, bias), stats.contiguous(), NormGradients(d_weight, d_bias)),
        act=act,
        batch_stats=batch_stats,
        dout=nhwc(dout),
        out=dx,
        threads=num_threads(),
    )
    _C.batch_norm_bwd(x.dtype == torch.float64, params)
    return dx, d_weight, d_bias
