# SPDX-License-Identifier: Apache-2.0
"""What the ops of several families do between kernels: chunks, packing, merging, statistics, passes of a norm."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastfer.backends.numba import _passes
from fastfer.backends.numba._numba import Array, chunks
from fastfer.backends.numba._simd import REGISTER_BYTES
from fastfer.signatures.fields import Affine, RunningNorm

PART_ELEMENTS = 1 << 22
"""Elements of weight gradient that all chunks together may hold: 16 MiB in float32."""

_FOLDED = 64
"""Channels from which a pass over pixels fills its registers and hides their latency."""


def cut(items: int, count: int) -> Array:
    """Bounds of ``count`` chunks of ``items``."""
    return np.arange(count + 1, dtype=np.int64) * items // count


def dense(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def panel(x: Tensor) -> int:
    """Columns of a panel."""
    return 2 * REGISTER_BYTES // x.element_size()


def fitted(x: Tensor, columns: int) -> int:
    """Columns of the panels of a matrix of ``columns``, as ``_gemm.fitted``."""
    return panel(x) // 2 if columns <= panel(x) // 2 else panel(x)


def pack(matrix: Tensor, transposed: bool, width: int = 0) -> Tensor:
    """Panels, of ``width`` or `panel` columns, of a dense matrix (columns, depth), or (depth, columns)."""
    rows, size = matrix.shape[:2]
    depth, columns = (rows, size) if transposed else (size, rows)
    width = width or panel(matrix)
    count = -(-columns // width)
    panels = matrix.new_empty(count * depth * width)
    steps = (size, 1) if transposed else (1, size)
    _passes.pack_panel(matrix.dtype, count, panels.numel(), panels, matrix.contiguous(), width, depth, columns, *steps)
    return panels


def merged(parts: Tensor, size: int) -> Tensor:
    """Sum of ``parts`` (chunks, size) over chunks."""
    out = parts.new_empty(size)
    count = chunks(size, parts.numel())
    _passes.merge_parts(parts.dtype, count, parts.numel(), out, parts, count)
    return out


def distinct(*grads: Tensor) -> tuple[Tensor, ...]:
    """The same tensors, none twice: an op's outputs must not alias."""
    return tuple(grad if grad.numel() else grad.new_empty(grad.shape) for grad in grads)


def affine(weight: Tensor | None, bias: Tensor | None, stats: Tensor) -> Tensor | None:
    """Mean, scale and bias of a norm, flat; None without norm."""
    return None if weight is None or bias is None else torch.cat([stats[0], stats[1] * weight, bias])


def running(mean: Tensor | None, var: Tensor | None, eps: float, like: Tensor) -> Tensor:
    """Statistics (3, C) from running ones; empty without norm."""
    return like.new_empty(0) if mean is None or var is None else torch.stack([mean, (var + eps).rsqrt(), var])


def scaled(norm: RunningNorm | Affine | None, stats: Tensor) -> Tensor | None:
    """Mean, scale and bias of a norm, flat; None without norm."""
    return None if norm is None else torch.cat([stats[0], stats[1] * norm.weight, norm.bias])


def running_stats(norm: RunningNorm | None, like: Tensor) -> Tensor:
    """Statistics (3, C) from running ones; empty without norm."""
    if norm is None:
        return like.new_empty(0)
    return torch.stack([norm.mean, (norm.var + norm.eps).rsqrt(), norm.var])


def fold(channels: int, pixels: int) -> int:
    """Pixels of few channels that a pass takes as one pixel of many; divides ``pixels``."""
    times = 1
    while channels * times < _FOLDED and pixels % (2 * times) == 0 and pixels:
        times *= 2
    return times


def folded(table: Tensor | None, rows: int, times: int) -> Tensor | None:
    """A flat (``rows``, C) as (``rows``, ``times`` · C)."""
    return table if table is None or times == 1 else table.view(rows, -1).repeat(1, times).flatten()


def batch(moments: Tensor, counts: Array, eps: float, like: Tensor, times: int = 1) -> Tensor:
    """Statistics (3, C) from the chunks' moments; ``counts`` of pixels folded by ``times``."""
    channels, rows = like.shape[1], int(counts.sum())
    count = rows * times
    _passes.merge_moments(like.dtype, 1, 0, moments, counts, times * channels)
    totals, means, squares = moments[: 3 * times * channels].view(3, times, channels)
    mean, m2 = totals.sum(0) / max(count, 1), squares.sum(0)
    if times > 1:
        m2 = m2 + rows * (means - mean).square().sum(0)
    return torch.stack([mean, (m2 / max(count, 1) + eps).rsqrt(), m2 / max(count - 1, 1)]).to(like.dtype)


def batch_of(y: Tensor, eps: float) -> Tensor:
    """Statistics (3, C) of ``y``, dense channels_last."""
    pixels, size = y.shape[0] * y.shape[2] * y.shape[3], y.numel()
    times = fold(y.shape[1], pixels)
    count = chunks(-(-pixels // _passes.BLOCK), size)
    starts = cut(pixels // times, count)
    moments = torch.zeros(count * 3 * times * y.shape[1], dtype=torch.float64, device="cpu")
    if size:
        _passes.norm_moments(y.dtype, count, size, moments, y, starts, times * y.shape[1])
    return batch(moments, np.diff(starts), eps, y, times)


def norm_act(y: Tensor, norm: Tensor | None, act: int) -> Tensor:
    """act(norm(y)) of a dense channels_last ``y``, with ``norm`` as `affine` returns it."""
    out, size = torch.empty_like(y), y.numel()
    if size:
        pixels = size // y.shape[1]
        times = fold(y.shape[1], pixels)
        count = chunks(pixels // times, size)
        starts = cut(pixels // times, count)
        _passes.norm_act(y.dtype, count, size, out, y, folded(norm, 3, times), starts, times * y.shape[1], act)
    return out


def norm_sums(dout: Tensor, y: Tensor, norm: Tensor | None, act: int) -> Tensor:
    """Sums (2, C) of ``_norm.gradient_sums`` in float64, flat."""
    channels, size = y.shape[1], y.numel()
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    times = fold(channels, pixels)
    count = chunks(-(-pixels // _passes.BLOCK), size)
    sums = torch.zeros(count * 2 * times * channels, dtype=torch.float64, device="cpu")
    if size:
        arrays = sums, dout, y, folded(norm, 3, times), cut(pixels // times, count)
        _passes.norm_sums(y.dtype, count, size, *arrays, times * channels, act)
    total = merged(sums, 2 * times * channels)
    return total if times == 1 else total.view(2, times, channels).sum(1).flatten()


def norm_gradients(
    sums: Tensor, stats: Tensor, weight: Tensor, pixels: int, batch_stats: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a norm's weight and bias, and the coefficients of its backward, from the sums (2, C)."""
    total, moment = sums.view(2, -1)
    invstd = stats[1].double()
    coef = None
    if batch_stats:
        coef = (torch.cat([total, moment * invstd**2]) * (-invstd * weight / max(pixels, 1)).repeat(2)).to(stats.dtype)
    return (moment * invstd).to(stats.dtype), total.to(stats.dtype, copy=True), coef


def norm_backward(dy: Tensor, dz: Tensor, y: Tensor, norm: Tensor | None, coef: Tensor | None, act: int) -> None:
    """Gradient of y from that of z = act(norm(y)), into ``dy``, which may be ``dz``; all dense channels_last."""
    size = y.numel()
    if size:
        pixels = size // y.shape[1]
        times = fold(y.shape[1], pixels)
        count = chunks(pixels // times, size)
        arrays = dy, dz, y, folded(norm, 3, times), folded(coef, 2, times), cut(pixels // times, count)
        _passes.norm_backward(y.dtype, count, size, *arrays, times * y.shape[1], act)
