# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with an activation on the native kernels; NHWC, dense."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, nhwc


def _run(
    train: bool, batch_stats: bool, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor,
    eps: float, act: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x = nhwc(x)
    norm = [weight.contiguous(), bias.contiguous(), mean.contiguous(), var.contiguous()]
    n, c, h, w = x.shape
    out = empty_nhwc(x, c, h, w)
    stats = x.new_empty((3, c)) if train else out  # not written in inference
    _C.batch_norm_fwd(
        x.dtype == torch.float64, train, n * h * w, c, x.data_ptr(),
        [*(t.data_ptr() for t in norm), stats.data_ptr(), 0, 0], eps, act, batch_stats, out.data_ptr(), num_threads(),
    )  # fmt: skip
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
    dout, x = nhwc(dout), nhwc(x)
    weight, bias, stats = weight.contiguous(), bias.contiguous(), stats.contiguous()
    n, c, h, w = x.shape
    dx = empty_nhwc(x, c, h, w) if mask[0] else x.new_empty(0)
    d_weight, d_bias = (x.new_empty(c if mask[1] else 0) for _ in range(2))
    _C.batch_norm_bwd(
        x.dtype == torch.float64, n * h * w, c, dout.data_ptr(), x.data_ptr(),
        [weight.data_ptr(), bias.data_ptr(), 0, 0, stats.data_ptr(), d_weight.data_ptr(), d_bias.data_ptr()],
        act, batch_stats, dx.data_ptr(), num_threads(),
    )  # fmt: skip
    return dx, d_weight, d_bias
