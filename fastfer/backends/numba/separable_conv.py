# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block on Numba, with the functions of the reference backend.

Inference is one pass. Training forward: depthwise with moments; normalise and activate a row block, multiply, moments;
normalise and activate. Backward: sums for norm2; a row block's gradient through norm2, both products, sums for norm1;
the rest of norm1; depthwise. Activations and their derivatives are recomputed rather than saved.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastfer.backends.numba import _passes
from fastfer.backends.numba._depthwise import taps, tiles
from fastfer.backends.numba._numba import CHUNKS, Array, chunks, image, nhwc
from fastfer.backends.numba._steps import (
    PART_ELEMENTS,
    affine,
    batch,
    cut,
    dense,
    distinct,
    merged,
    norm_act,
    norm_backward,
    norm_gradients,
    norm_sums,
    pack,
    panel,
    running,
)
from fastfer.backends.reference import _linked
from fastfer.backends.reference.separable_conv import recomputes


def _taps_first(weight: Tensor) -> Tensor:
    """Depthwise weights (C, 1, KH, KW) as (KH, KW, C), flat."""
    return weight.permute(2, 3, 1, 0).contiguous()


class _Geometry:
    """Sizes of a depthwise convolution and its taps."""

    def __init__(self, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> None:
        self.images, channels, height, width = x.shape
        kh, kw = weight.shape[2:]
        top, left, bottom, right = padding
        self.out = (height + top + bottom - kh) // stride[0] + 1, (width + left + right - kw) // stride[1] + 1
        self.size = (channels, height, width, *self.out, kw, *stride)
        self.axes = (self.out[0], height, kh, stride[0], top), (self.out[1], width, kw, stride[1], left)
        self.rows = self.images * self.out[0]
        self.pixels = self.rows * self.out[1]
        self.work = self.pixels * channels * kh * kw

    def taps(self) -> tuple[Array, Array]:
        return taps(*self.axes[0], False), tiles(*self.axes[1], False)

    def taps_backward(self) -> tuple[Array, Array, Array, Array]:
        (out_h, height, *vertical), (out_w, width, *horizontal) = self.axes
        return (
            taps(*self.axes[0], False), tiles(*self.axes[1], False, False),
            taps(height, out_h, *vertical, True), tiles(width, out_w, *horizontal, True),
        )  # fmt: skip


def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, moments: bool
) -> tuple[Tensor, Tensor, Array]:
    """Depthwise convolution, its moments by chunk (or none) and the chunks' pixels."""
    y = image(x, x.shape[1], *geometry.out)
    count = chunks(geometry.rows, geometry.work)
    starts = cut(geometry.rows, count)
    stats = torch.zeros(count * 3 * x.shape[1] if moments else 0, dtype=torch.float64)
    if y.numel():
        arrays = y, nhwc(x), _taps_first(weight), dense(bias), *geometry.taps(), stats, starts
        _passes.depthwise(x.dtype, count, geometry.work, *arrays, *geometry.size)
    return y, stats, np.diff(starts) * geometry.out[1]


def _pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None, act: int, moments: bool
) -> tuple[Tensor, Tensor, Array]:
    """Pointwise convolution of act(norm(x)), its moments by chunk (or none) and the chunks' pixels."""
    outputs, inputs = weight.shape[:2]
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    y = image(x, outputs, x.shape[2], x.shape[3])
    work = pixels * inputs * outputs
    count = chunks(-(-pixels // _passes.BLOCK), work)
    starts = cut(pixels, count)
    stats = torch.zeros(count * 3 * outputs if moments else 0, dtype=torch.float64)
    if y.numel():
        arrays = y, nhwc(x), pack(weight, False), dense(bias), norm, stats, starts
        _passes.pointwise(x.dtype, count, work, *arrays, inputs, outputs, act)
    return y, stats, np.diff(starts)


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return _depthwise(x, weight, bias, _Geometry(x, weight, stride, padding), False)[0]


def depthwise_conv2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias."""
    geometry = _Geometry(x, weight, stride, padding)
    need_dx, need_dw = mask[0], mask[1] or mask[2]
    channels, nothing = x.shape[1], x.new_empty(0)
    dx = image(x, *x.shape[1:]) if need_dx else nothing
    count = chunks(geometry.rows, geometry.work, min(CHUNKS, max(1, PART_ELEMENTS // weight.numel())))
    parts = x.new_zeros(count * weight.numel() if need_dw else 0)
    sums = torch.zeros(count * channels if need_dw else 0, dtype=torch.float64)
    if geometry.rows and (need_dx or need_dw):
        arrays = dx, parts, sums, nhwc(dy), nhwc(x), _taps_first(weight), *geometry.taps_backward()
        _passes.depthwise_backward(x.dtype, count, 2 * geometry.work, *arrays, geometry.images, count, *geometry.size)
    dw, db = nothing, nothing
    if mask[1]:
        dw = merged(parts, weight.numel()).view(*weight.shape[2:], 1, channels).permute(3, 2, 0, 1).contiguous()
    if mask[2]:
        db = merged(sums, channels).to(x.dtype)
    return distinct(dx, dw, db)


def depthwise_norm_train(
    x: Tensor, weight: Tensor, bias: Tensor | None, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor,
    eps: float, act: int, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """act(norm(y)), the depthwise output y, and statistics (3, C): mean, 1/sqrt(var + eps), unbiased variance."""
    y, moments, counts = _depthwise(x, weight, bias, _Geometry(x, weight, stride, padding), batch_stats)
    stats = batch(moments, counts, eps, y) if batch_stats else running(n_mean, n_var, eps, x)
    return norm_act(y, affine(n_weight, n_bias, stats), act), y, stats


def depthwise_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor,
    eps: float, act: int, stride: list[int], padding: list[int],
) -> Tensor:  # fmt: skip
    """act(norm(depthwise(x))) with running statistics."""
    y = depthwise_conv2d(x, weight, bias, stride, padding)
    return norm_act(y, affine(n_weight, n_bias, running(n_mean, n_var, eps, x)), act)


def depthwise_norm_backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, stats: Tensor, act: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; weight, bias and norm's two; ``mask`` is [x, the others], those not asked for are empty."""
    need_dx, need_dw = mask
    norm, dout, y, nothing = affine(n_weight, n_bias, stats), nhwc(dout), nhwc(y), x.new_empty(0)
    sums = norm_sums(dout, y, norm, act)
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    d_weight, d_bias, coef = norm_gradients(sums, stats, n_weight, pixels, batch_stats)
    dy = torch.empty_like(y)
    norm_backward(dy, dout, y, norm, coef, act)
    dx, dw, db = depthwise_conv2d_backward(dy, x, weight, stride, padding, [need_dx, need_dw, need_dw])
    return distinct(dx, dw, db, d_weight if need_dw else nothing, d_bias if need_dw else nothing)


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution."""
    return _pointwise(x, weight, bias, None, 0, False)[0]


def _pointwise_backward(
    dout: Tensor, y2: Tensor, y1: Tensor, weight: Tensor, norm2: Tensor | None, coef2: Tensor | None, act2: int,
    norm1: Tensor | None, act1: int, need_da: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients before act1, of weights and bias, and sums (2, C) for norm1, as ``_passes.pointwise_backward``."""
    outputs, inputs = weight.shape[:2]
    pixels = y1.shape[0] * y1.shape[2] * y1.shape[3]
    padded = -(-inputs // panel(y1)) * panel(y1)
    work = 2 * pixels * inputs * outputs
    limit = min(CHUNKS, max(1, PART_ELEMENTS // (outputs * padded))) if need_dw else CHUNKS
    count = chunks(-(-pixels // _passes.BLOCK), work, limit)
    nothing = y1.new_empty(0)
    da = image(y1, *y1.shape[1:]) if need_da else nothing
    parts = y1.new_zeros(count * outputs * padded if need_dw else 0)
    sums2 = torch.zeros(count * outputs if need_dw else 0, dtype=torch.float64)
    sums1 = torch.zeros(count * 2 * inputs, dtype=torch.float64)
    if pixels and (need_da or need_dw):
        panels = pack(weight, True) if need_da else None
        arrays = da, parts, sums2, sums1, nhwc(dout), nhwc(y2), nhwc(y1), panels, norm2, coef2, norm1
        _passes.pointwise_backward(y1.dtype, count, work, *arrays, cut(pixels, count), inputs, outputs, act2, act1)
    merged1 = merged(sums1, 2 * inputs)
    if not need_dw:
        return da, nothing, nothing, merged1
    dw = merged(parts, outputs * padded).view(outputs, padded)[:, :inputs].contiguous().view(weight.shape)
    return da, dw, merged(sums2, outputs).to(y1.dtype), merged1


def pointwise_conv2d_backward(dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias."""
    dx, dw, db, _ = _pointwise_backward(dy, dy, x, weight, None, None, 0, None, 0, mask[0], mask[1] or mask[2])
    return dx, dw if mask[1] else x.new_empty(0), db if mask[2] else x.new_empty(0)


def separable_conv2d(
    x: Tensor, dw: Tensor, dw_bias: Tensor | None,
    n1_weight: Tensor | None, n1_bias: Tensor | None, n1_mean: Tensor | None, n1_var: Tensor | None,
    eps1: float, act1: int,
    pw: Tensor, pw_bias: Tensor | None,
    n2_weight: Tensor | None, n2_bias: Tensor | None, n2_mean: Tensor | None, n2_var: Tensor | None,
    eps2: float, act2: int,
    stride: list[int], padding: list[int],
) -> Tensor:  # fmt: skip
    """Output with running statistics."""
    geometry = _Geometry(x, dw, stride, padding)
    outputs = pw.shape[0]
    out = image(x, outputs, *geometry.out)
    if not out.numel():
        return out
    norm1 = affine(n1_weight, n1_bias, running(n1_mean, n1_var, eps1, x))
    norm2 = affine(n2_weight, n2_bias, running(n2_mean, n2_var, eps2, x))
    work = geometry.work + geometry.pixels * pw.numel()
    count = chunks(geometry.rows, work)
    arrays = (
        out,
        nhwc(x),
        _taps_first(dw),
        dense(dw_bias),
        norm1,
        pack(pw, False),
        dense(pw_bias),
        norm2,
        *geometry.taps(),
    )
    _passes.separable(x.dtype, count, work, *arrays, cut(geometry.rows, count), outputs, act1, act2, *geometry.size)
    return out


def separable_conv2d_train(
    x: Tensor, dw: Tensor, dw_bias: Tensor | None,
    n1_weight: Tensor | None, n1_bias: Tensor | None, n1_mean: Tensor | None, n1_var: Tensor | None,
    eps1: float, act1: int,
    pw: Tensor, pw_bias: Tensor | None,
    n2_weight: Tensor | None, n2_bias: Tensor | None, n2_mean: Tensor | None, n2_var: Tensor | None,
    eps2: float, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, y1, y2, statistics (3, C) and (3, O): mean, 1/sqrt(var + eps), unbiased variance."""
    geometry = _Geometry(x, dw, stride, padding)
    batch1, batch2 = batch_stats and n1_weight is not None, batch_stats and n2_weight is not None
    y1, moments, counts = _depthwise(x, dw, dw_bias, geometry, batch1)
    stats1 = batch(moments, counts, eps1, y1) if batch1 else running(n1_mean, n1_var, eps1, x)
    y2, moments, counts = _pointwise(y1, pw, pw_bias, affine(n1_weight, n1_bias, stats1), act1, batch2)
    stats2 = batch(moments, counts, eps2, y2) if batch2 else running(n2_mean, n2_var, eps2, x)
    if recomputes(dw_bias, n1_weight, act1, *y1.shape[1:]):
        y1 = x.new_empty(0)
    if n2_weight is None and act2 == 0:
        return y2, y1, y2.new_empty(0), stats1, stats2
    return norm_act(y2, affine(n2_weight, n2_bias, stats2), act2), y1, y2, stats1, stats2


def separable_conv2d_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor,
    dw: Tensor, n1_weight: Tensor | None, n1_bias: Tensor | None, stats1: Tensor, act1: int,
    pw: Tensor, n2_weight: Tensor | None, n2_bias: Tensor | None, stats2: Tensor, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; dw, its bias, norm1's two; pw, its bias, norm2's two. Those not asked for are empty."""
    need_dx, need_dw, need_pw = mask
    need_da, nothing = need_dx or need_dw, x.new_empty(0)
    y1 = y1 if y1.dim() == 4 else depthwise_conv2d(x, dw, None, stride, padding)
    pixels = dout.shape[0] * dout.shape[2] * dout.shape[3]
    norm1, norm2 = affine(n1_weight, n1_bias, stats1), affine(n2_weight, n2_bias, stats2)
    dout = nhwc(dout)
    y2 = nhwc(y2) if y2.dim() == 4 else dout
    d_w2, d_b2, coef2 = nothing, nothing, None
    if n2_weight is not None:
        needed = need_pw or batch_stats
        sums = norm_sums(dout, y2, norm2, act2) if needed else torch.zeros(2 * n2_weight.numel(), dtype=torch.float64)
        d_w2, d_b2, coef2 = norm_gradients(sums, stats2, n2_weight, pixels, batch_stats)
    dy1, d_pw, d_pb, sums1 = _pointwise_backward(dout, y2, y1, pw, norm2, coef2, act2, norm1, act1, need_da, need_pw)
    pw_side = (d_pw, d_pb, d_w2, d_b2) if need_pw else (nothing,) * 4
    if not need_da:
        return distinct(nothing, nothing, nothing, nothing, nothing, *pw_side)
    d_w1, d_b1 = nothing, nothing
    if n1_weight is not None:
        d_w1, d_b1, coef1 = norm_gradients(sums1, stats1, n1_weight, pixels, batch_stats)
        norm_backward(dy1, dy1, nhwc(y1), norm1, coef1, 0)
    dx, d_dw, d_db = depthwise_conv2d_backward(dy1, x, dw, stride, padding, [need_dx, need_dw, need_dw])
    return distinct(dx, d_dw, d_db, d_w1 if need_dw else nothing, d_b1 if need_dw else nothing, *pw_side)


separable_conv2d_linked = partial(_linked.separable_conv2d_linked, separable_conv2d_train)
separable_conv2d_linked_backward = partial(_linked.separable_conv2d_linked_backward, separable_conv2d_backward)
depthwise_norm_linked = partial(_linked.depthwise_norm_linked, depthwise_norm_train)
depthwise_norm_linked_backward = partial(_linked.depthwise_norm_linked_backward, depthwise_norm_backward)
