# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation and activation on CUDA tensors, NHWC; parameters and statistics are in the compute dtype."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastfer.backends.cuda.loader import Launch, compute_dtype, lanes, nhwc, type_name
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


class Gathered(NamedTuple):
    """Where a kernel leaves the statistics of what it makes, as csrc/cuda/columns.cuh has them."""

    partial: Tensor | int = 0
    stats: Tensor | int = 0
    tickets: Tensor | int = 0
    eps: float = 0.0


NOTHING = Gathered()


def gathered(launch: Launch, like: Tensor, channels: int, parts: int, groups: int, eps: float) -> Gathered:
    """Memory for ``parts`` parts of each channel, and for the statistics; ``groups`` of channels are waited for."""
    dtype = compute_dtype(like)
    partial = torch.empty((parts, 3, channels), dtype=dtype, device=like.device)
    stats = torch.empty((3, channels), dtype=dtype, device=like.device)
    return Gathered(partial, stats, launch.tickets(like, groups), float(eps))


def words(norm: RunningNorm | Affine | None, stats: Tensor | None) -> tuple[Tensor | int | float, ...]:
    """A norm as kernels take it: of a batch's statistics (3, C), of its running ones for None, or no norm."""
    if norm is None:
        return 0, 0, 0, 0, 0.0
    if stats is not None:
        return norm.weight, norm.bias, stats, 0, 0.0
    assert isinstance(norm, RunningNorm)
    return norm.weight, norm.bias, norm.mean, norm.var, float(norm.eps)


def _columns(
    launch: Launch, kernel: str, y: Tensor, count: int, before: tuple[Any, ...], after: tuple[Any, ...], *more: int
) -> None:
    """A kernel on csrc/cuda/columns.cuh that leaves ``count`` words a channel and part, and adds them up."""
    channels = y.shape[1]
    rows = y.numel() // channels
    part = rows_per_block(rows)
    partial = torch.empty((-(-rows // part), count, channels), dtype=compute_dtype(y), device=y.device)
    grid = (len(partial), -(-channels // _COLUMN_LANES), 1)
    tickets = launch.tickets(y, grid[1])
    launch(kernel, y, grid, _COLUMN_THREADS, *before, partial, *after, tickets, rows, channels, part, *more)


def total(launch: Launch, partial: Tensor, taps: int = 1, channels: int = 1) -> Tensor:
    """The parts' sums (words,); words (outputs, taps, channels) are turned into (outputs, channels, taps)."""
    if len(partial) == 1 and taps == 1:
        return partial.view(-1)
    if not len(partial):  # of an empty batch
        return partial.new_zeros(math.prod(partial.shape[1:]))
    sums = torch.empty(math.prod(partial.shape[1:]), dtype=partial.dtype, device=partial.device)
    grid = (-(-sums.numel() // _COLUMN_LANES), 1, 1)
    kernel = f"sum_blocks<{type_name('sum', partial)}>"
    launch(kernel, partial, grid, _COLUMN_THREADS, partial, sums, len(partial), sums.numel(), taps, channels)
    return sums


def column_sums(launch: Launch, y: Tensor) -> Tensor:
    """Sum over N, H, W: (N, C, H, W), NHWC -> (C,) in the compute dtype."""
    if not y.numel():
        return y.new_zeros(y.shape[1], dtype=compute_dtype(y))
    sums = torch.empty(y.shape[1], dtype=compute_dtype(y), device=y.device)
    _columns(launch, f"column_sums<{type_name('sum', y)}>", y, 1, (y,), (sums,))
    return sums


def norm_statistics(launch: Launch, y: Tensor, norm: RunningNorm | None, batch_stats: bool) -> Tensor:
    """(3, C): mean, 1/sqrt(var + eps), unbiased variance, of ``y`` or the running ones; empty without a norm."""
    if norm is None:
        return y.new_empty(0)
    if not batch_stats:
        return torch.stack([norm.mean, (norm.var + norm.eps).rsqrt(), norm.var])
    return batch_statistics(launch, y, norm.eps)


def batch_statistics(launch: Launch, y: Tensor, eps: float) -> Tensor:
    """(3, C): mean, 1/sqrt(var + eps), unbiased variance, of ``y``, NHWC, dense."""
    channels = y.shape[1]
    if not y.numel():
        return y.new_zeros((3, channels), dtype=compute_dtype(y))
    rows = y.numel() // channels
    part = rows_per_block(rows)
    grid = (-(-rows // part), -(-channels // _COLUMN_LANES), 1)
    out = gathered(launch, y, channels, grid[0], grid[1], eps)
    launch(f"moments<{type_name('norm', y)}>", y, grid, _COLUMN_THREADS, y, *out, rows, channels, part)
    assert isinstance(out.stats, Tensor)
    return out.stats


def _packs(y: Tensor, *others: Tensor) -> tuple[int, int]:
    """Channels that a thread takes at once, and blocks after which its channels come again."""
    vec = lanes(y, *others)
    vec = 1 if y.shape[1] % vec else vec
    return vec, y.shape[1] // math.gcd(y.shape[1], THREADS * vec)


def norm_act(launch: Launch, y: Tensor, norm: RunningNorm | Affine | None, stats: Tensor | None, act: int) -> Tensor:
    """act(norm(y)), or act(y) without a norm; ``y`` NHWC, dense; statistics as `words`."""
    out = torch.empty_like(y)
    vec, multiple = _packs(y, out)
    kernel, count = f"norm_act<{type_name('norm', y)}, {vec}, {THREADS}>", y.numel() // vec
    arguments = (y, *words(norm, stats), out, count, y.shape[1], act)
    launch.strided(kernel, y, count, THREADS, *arguments, multiple=multiple)
    return out


def norm_sums(launch: Launch, dz: Tensor, y: Tensor, norm: Affine, stats: Tensor, act: int) -> tuple[Tensor, Tensor]:
    """Gradients of norm weight and norm bias."""
    make = torch.empty if y.numel() else torch.zeros
    d_weight, d_bias = (make(y.shape[1], dtype=compute_dtype(y), device=y.device) for _ in range(2))
    if y.numel():
        layer = (norm.weight, norm.bias, stats)
        _columns(launch, f"norm_sums<{type_name('norm', y)}>", y, 2, (dz, y, *layer), (d_bias, d_weight), act)
    return d_weight, d_bias


def norm_act_backward(
    launch: Launch, dz: Tensor, y: Tensor, norm: Affine | None, stats: Tensor, act: int, batch_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, norm weight and norm bias (empty without norm)."""
    dtype, channels, dy = type_name("norm", y), y.shape[1], torch.empty_like(y)
    d_weight, d_bias = y.new_empty(0), y.new_empty(0)
    parameters: tuple[Tensor | int, ...] = (0, 0, 0, 0, 0)
    if norm is not None:
        d_weight, d_bias = norm_sums(launch, dz, y, norm, stats, act)
        parameters = (norm.weight, norm.bias, stats, *((d_bias, d_weight) if batch_stats else (0, 0)))
    vec, multiple = _packs(y, dz, dy)
    kernel, count = f"norm_grad<{dtype}, {vec}, {THREADS}>", y.numel() // vec
    launch.strided(kernel, y, count, THREADS, dz, y, *parameters, dy, count, channels, act, multiple=multiple)
    return dy, d_weight, d_bias


def batch_norm_train(launch: Launch, a: BatchNormTrain) -> BatchNormTrained:
    """Output and statistics."""
    block = a.block
    x = nhwc(block.x)
    stats = norm_statistics(launch, x, block.norm, a.batch_stats)
    return BatchNormTrained(norm_act(launch, x, block.norm, stats, block.act), stats)


def batch_norm(launch: Launch, a: BatchNorm) -> Tensor:
    """Output with running statistics."""
    return norm_act(launch, nhwc(a.x), a.norm, None, a.act)


def batch_norm_backward(launch: Launch, a: BatchNormBackward) -> BatchNormGradients:
    """Gradients of x, weight and bias."""
    d_x, d_weight, d_bias = norm_act_backward(launch, nhwc(a.d_out), nhwc(a.x), a.norm, a.stats, a.act, a.batch_stats)
    params = (d_weight, d_bias) if a.needs.params else (a.x.new_empty(0), a.x.new_empty(0))
    return BatchNormGradients(d_x if a.needs.x else a.x.new_empty(0), *params)
