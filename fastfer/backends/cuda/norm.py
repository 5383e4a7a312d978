# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation and activation on CUDA tensors, NHWC; parameters and statistics are in the compute dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer.backends.cuda.loader import Launch, compute_dtype, nhwc, type_name
from fastfer.signatures.fields import Affine, RunningNorm
from fastfer.signatures.norm import (
    BatchNorm,
    BatchNormBackward,
    BatchNormGradients,
    BatchNormTrain,
    BatchNormTrained,
)

THREADS = 256
_COLUMN_LANES, _COLUMN_THREADS = 32, 256  # csrc/cuda/columns.cuh
_ROWS = 1024
"""Least rows of a block's part: 128 a warp."""
_PARTS = 512
"""Most parts that a channel's rows are cut into."""


def rows_per_block(rows: int) -> int:
    """Rows of one part of a reduction over rows; of the shape alone, so that sums repeat on every device."""
    return max(_ROWS, -(-rows // _PARTS))


def columns(
    launch: Launch,
    kernel: str,
    words: int,
    rows: int,
    channels: int,
    like: Tensor,
    *tensors: Tensor | int,
    more: tuple[int, ...] = (),
) -> Tensor:
    """Partial results (parts, words, channels) of a kernel on csrc/cuda/columns.cuh."""
    part = rows_per_block(rows)
    partial = torch.empty((-(-rows // part), words, channels), dtype=compute_dtype(like), device=like.device)
    grid = (len(partial), -(-channels // _COLUMN_LANES), 1)
    launch(kernel, like, grid, _COLUMN_THREADS, *tensors, partial, rows, channels, part, *more)
    return partial


def total(launch: Launch, partial: Tensor) -> Tensor:
    """The parts' sums (words, channels)."""
    sums = torch.empty(partial.shape[1:], dtype=partial.dtype, device=partial.device)
    grid = (-(-sums.numel() // THREADS), 1, 1)
    kernel = f"sum_blocks<{type_name('sum', partial)}, {THREADS}>"
    launch(kernel, partial, grid, THREADS, partial, sums, len(partial), sums.numel())
    return sums


def column_sums(launch: Launch, y: Tensor) -> Tensor:
    """Sum over N, H, W: (N, C, H, W), NHWC -> (C,) in the compute dtype."""
    channels, rows = y.shape[1], y.numel() // max(y.shape[1], 1)
    if not rows:
        return y.new_zeros(channels, dtype=compute_dtype(y))
    return total(launch, columns(launch, f"column_sums<{type_name('sum', y)}>", 1, rows, channels, y, y))[0]


def statistics(
    launch: Launch, y: Tensor, mean: Tensor | None, var: Tensor | None, eps: float, batch_stats: bool
) -> Tensor:
    """(3, C): mean, 1/sqrt(var + eps), unbiased variance, of ``y`` or the running ones; empty without a norm."""
    if mean is None or var is None:
        return y.new_empty(0)
    if not batch_stats:
        return torch.stack([mean, (var + eps).rsqrt(), var])
    channels, rows = y.shape[1], y.numel() // max(y.shape[1], 1)
    if not rows:
        return y.new_zeros((3, channels), dtype=compute_dtype(y))
    partial = columns(launch, f"moments<{type_name('norm', y)}>", 2, rows, channels, y, y)
    return finish_moments(launch, y, partial, rows_per_block(rows), eps)


def finish_moments(launch: Launch, y: Tensor, partial: Tensor, rows_per_part: int, eps: float) -> Tensor:
    """Statistics (3, C) from the moments (parts, 2, C) of parts of y's rows."""
    channels, rows = y.shape[1], y.numel() // max(y.shape[1], 1)
    if not rows:
        return y.new_zeros((3, channels), dtype=compute_dtype(y))
    stats = torch.empty((3, channels), dtype=partial.dtype, device=y.device)
    kernel = f"moments_finish<{type_name('norm', partial)}, {THREADS}>"
    grid = (-(-channels // THREADS), 1, 1)
    launch(kernel, y, grid, THREADS, partial, stats, rows, channels, rows_per_part, float(eps))
    return stats


def norm_act(launch: Launch, y: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Tensor, act: int) -> Tensor:
    """act(norm(y)), or act(y) without a weight; ``y`` NHWC, dense."""
    out = torch.empty_like(y)
    parameters = (weight, bias, stats) if weight is not None and bias is not None else (0, 0, 0)
    kernel = f"norm_act<{type_name('norm', y)}, {THREADS}>"
    launch.strided(kernel, y, y.numel(), THREADS, y, *parameters, out, y.numel(), y.shape[1], act)
    return out


def norm_act_backward(
    launch: Launch,
    dz: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    act: int,
    batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, norm weight and norm bias (empty without norm)."""
    dtype, channels, dy = type_name("norm", y), y.shape[1], torch.empty_like(y)
    d_weight = d_bias = y.new_empty(0)
    parameters: tuple[Tensor | int, ...] = (0, 0, 0, 0)
    if weight is not None and bias is not None:
        rows = y.numel() // max(channels, 1)
        if rows:
            kernel = f"norm_sums<{dtype}>"
            sums = total(launch, columns(launch, kernel, 2, rows, channels, y, dz, y, weight, bias, stats, more=(act,)))
        else:
            sums = y.new_zeros((2, channels), dtype=compute_dtype(y))
        d_bias, d_weight = sums.unbind(0)
        parameters = (weight, bias, stats, sums if batch_stats else 0)
    kernel = f"norm_grad<{dtype}, {THREADS}>"
    launch.strided(kernel, y, y.numel(), THREADS, dz, y, *parameters, dy, y.numel(), channels, act)
    return dy, d_weight.clone(), d_bias.clone()


def norm_statistics(launch: Launch, y: Tensor, norm: RunningNorm | None, batch_stats: bool) -> Tensor:
    """(3, C): mean, 1/sqrt(var + eps), unbiased variance, of ``y`` or the running ones; empty without a norm."""
    return y.new_empty(0) if norm is None else statistics(launch, y, norm.mean, norm.var, norm.eps, batch_stats)


def normalise(launch: Launch, y: Tensor, norm: RunningNorm | Affine | None, stats: Tensor, act: int) -> Tensor:
    """act(norm(y)), or act(y) without a norm; ``y`` NHWC, dense."""
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    return norm_act(launch, y, weight, bias, stats, act)


def normalise_backward(
    launch: Launch, dz: Tensor, y: Tensor, norm: Affine | None, stats: Tensor, act: int, batch_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, norm weight and norm bias (empty without norm)."""
    weight, bias = (None, None) if norm is None else norm
    return norm_act_backward(launch, dz, y, weight, bias, stats, act, batch_stats)


def batch_norm_train(launch: Launch, a: BatchNormTrain) -> BatchNormTrained:
    """Output and statistics."""
    block = a.block
    x = nhwc(block.x)
    stats = norm_statistics(launch, x, block.norm, a.batch_stats)
    return BatchNormTrained(normalise(launch, x, block.norm, stats, block.act), stats)


def batch_norm(launch: Launch, a: BatchNorm) -> Tensor:
    """Output with running statistics."""
    return batch_norm_train(launch, BatchNormTrain(a, False)).out


def batch_norm_backward(launch: Launch, a: BatchNormBackward) -> BatchNormGradients:
    """Gradients of x, weight and bias."""
    d_x, d_weight, d_bias = normalise_backward(launch, nhwc(a.d_out), nhwc(a.x), a.norm, a.stats, a.act, a.batch_stats)
    params = (d_weight, d_bias) if a.needs.params else (a.x.new_empty(0), a.x.new_empty(0))
    return BatchNormGradients(d_x if a.needs.x else a.x.new_empty(0), *params)
