# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with activation on Numba, with the functions of the reference backend.

Inference is one pass over the activations, training two (moments; normalise and activate), backward two (sums; the
gradient). Few channels are taken several pixels at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.numba._numba import nhwc
from fastfer.backends.numba._steps import (
    batch_of,
    distinct,
    norm_act,
    norm_backward,
    norm_gradients,
    norm_sums,
    running_stats,
    scaled,
)
from fastfer.signatures.norm import (
    BatchNorm,
    BatchNormBackward,
    BatchNormGradients,
    BatchNormTrain,
    BatchNormTrained,
)


def batch_norm(a: BatchNorm) -> Tensor:
    """Output with running statistics."""
    return norm_act(nhwc(a.x), scaled(a.norm, running_stats(a.norm, a.x)), a.act)


def batch_norm_train(a: BatchNormTrain) -> BatchNormTrained:
    """Output and statistics."""
    block = a.block
    x = nhwc(block.x)
    stats = batch_of(x, block.norm.eps) if a.batch_stats else running_stats(block.norm, x)
    return BatchNormTrained(norm_act(x, scaled(block.norm, stats), block.act), stats)


def batch_norm_backward(a: BatchNormBackward) -> BatchNormGradients:
    """Gradients of x, weight and bias."""
    params = a.needs.params
    x, dout, norm = nhwc(a.x), nhwc(a.d_out), scaled(a.norm, a.stats)
    d_x, d_weight, d_bias, coef = x.new_empty(0), x.new_empty(0), x.new_empty(0), None
    if params or a.batch_stats:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        sums = norm_sums(dout, x, norm, a.act)
        d_weight, d_bias, coef = norm_gradients(sums, a.stats, a.norm.weight, pixels, a.batch_stats)
    if a.needs.x:
        d_x = torch.empty_like(x)
        norm_backward(d_x, dout, x, norm, coef, a.act)
    nothing = x.new_empty(0)
    return BatchNormGradients(*distinct(d_x, *((d_weight, d_bias) if params else (nothing, nothing))))
