# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block on Numba, with the functions of the reference backend.

Inference is one pass. Training forward: depthwise with moments; normalise and activate a row block, multiply, moments;
normalise and activate. Backward: sums for norm2; a row block's gradient through norm2, both products, sums for norm1;
the rest of norm1; depthwise. Activations and their derivatives are recomputed rather than saved.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastfer.backends import composed
from fastfer.backends.numba import _passes
from fastfer.backends.numba._depthwise import taps, tiles
from fastfer.backends.numba._numba import CHUNKS, Array, chunks, image, nhwc
from fastfer.backends.numba._steps import (
    PART_ELEMENTS,
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
    running_stats,
    scaled,
)
from fastfer.signatures.fields import RunningNorm
from fastfer.signatures.separable_conv import (
    ConvGradients,
    ConvNeeds,
    Depthwise,
    DepthwiseBackward,
    DepthwiseNorm,
    DepthwiseNormBackward,
    DepthwiseNormGradients,
    DepthwiseNormLinked,
    DepthwiseNormLinkedBackward,
    DepthwiseNormLinkedGradients,
    DepthwiseNormTrain,
    DepthwiseNormTrained,
    Pointwise,
    PointwiseBackward,
    Separable,
    SeparableBackward,
    SeparableGradients,
    SeparableLinked,
    SeparableLinkedBackward,
    SeparableLinkedGradients,
    SeparableTrain,
    SeparableTrained,
    keeps_y1,
)


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
    stats = torch.zeros(count * 3 * x.shape[1] if moments else 0, dtype=torch.float64, device="cpu")
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
    stats = torch.zeros(count * 3 * outputs if moments else 0, dtype=torch.float64, device="cpu")
    if y.numel():
        arrays = y, nhwc(x), pack(weight, False), dense(bias), norm, stats, starts
        _passes.pointwise(x.dtype, count, work, *arrays, inputs, outputs, act)
    return y, stats, np.diff(starts)


def depthwise_conv2d(a: Depthwise) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return _depthwise(a.x, a.weight, a.bias, _Geometry(a.x, a.weight, a.stride, a.padding), False)[0]


def depthwise_conv2d_backward(a: DepthwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    x, weight, needs = a.x, a.weight, a.needs
    geometry = _Geometry(x, weight, a.stride, a.padding)
    need_dw = needs.weight or needs.bias
    channels, nothing = x.shape[1], x.new_empty(0)
    dx = image(x, *x.shape[1:]) if needs.x else nothing
    count = chunks(geometry.rows, geometry.work, min(CHUNKS, max(1, PART_ELEMENTS // weight.numel())))
    parts = x.new_zeros(count * weight.numel() if need_dw else 0)
    sums = torch.zeros(count * channels if need_dw else 0, dtype=torch.float64, device="cpu")
    if geometry.rows and (needs.x or need_dw):
        arrays = dx, parts, sums, nhwc(a.d_out), nhwc(x), _taps_first(weight), *geometry.taps_backward()
        _passes.depthwise_backward(x.dtype, count, 2 * geometry.work, *arrays, geometry.images, count, *geometry.size)
    dw, db = nothing, nothing
    if needs.weight:
        dw = merged(parts, weight.numel()).view(*weight.shape[2:], 1, channels).permute(3, 2, 0, 1).contiguous()
    if needs.bias:
        db = merged(sums, channels).to(x.dtype)
    return ConvGradients(*distinct(dx, dw, db))


def depthwise_norm_train(a: DepthwiseNormTrain) -> DepthwiseNormTrained:
    """act(norm(y)), the depthwise output y, and statistics."""
    block = a.block
    geometry = _Geometry(block.x, block.weight, block.stride, block.padding)
    y, moments, counts = _depthwise(block.x, block.weight, block.bias, geometry, a.batch_stats)
    stats = batch(moments, counts, block.norm.eps, y) if a.batch_stats else running_stats(block.norm, block.x)
    return DepthwiseNormTrained(norm_act(y, scaled(block.norm, stats), block.act), y, stats)


def depthwise_norm(a: DepthwiseNorm) -> Tensor:
    """act(norm(depthwise(x))) with running statistics."""
    y = depthwise_conv2d(Depthwise(a.x, a.weight, a.bias, a.stride, a.padding))
    return norm_act(y, scaled(a.norm, running_stats(a.norm, a.x)), a.act)


def depthwise_norm_backward(a: DepthwiseNormBackward) -> DepthwiseNormGradients:
    """Gradients of x; weight, bias and norm's two."""
    params, nothing = a.needs.params, a.x.new_empty(0)
    norm, dout, y = scaled(a.norm, a.stats), nhwc(a.d_out), nhwc(a.y)
    sums = norm_sums(dout, y, norm, a.act)
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    d_weight, d_bias, coef = norm_gradients(sums, a.stats, a.norm.weight, pixels, a.batch_stats)
    dy = torch.empty_like(y)
    norm_backward(dy, dout, y, norm, coef, a.act)
    grads = depthwise_conv2d_backward(
        DepthwiseBackward(dy, a.x, a.weight, a.stride, a.padding, ConvNeeds(a.needs.x, params, params))
    )
    of_norm = (d_weight, d_bias) if params else (nothing, nothing)
    return DepthwiseNormGradients(*distinct(*grads, *of_norm))


def pointwise_conv2d(a: Pointwise) -> Tensor:
    """1×1 convolution."""
    return _pointwise(a.x, a.weight, a.bias, None, 0, False)[0]


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
    sums2 = torch.zeros(count * outputs if need_dw else 0, dtype=torch.float64, device="cpu")
    sums1 = torch.zeros(count * 2 * inputs, dtype=torch.float64, device="cpu")
    if pixels and (need_da or need_dw):
        panels = pack(weight, True) if need_da else None
        arrays = da, parts, sums2, sums1, nhwc(dout), nhwc(y2), nhwc(y1), panels, norm2, coef2, norm1
        _passes.pointwise_backward(y1.dtype, count, work, *arrays, cut(pixels, count), inputs, outputs, act2, act1)
    merged1 = merged(sums1, 2 * inputs)
    if not need_dw:
        return da, nothing, nothing, merged1
    dw = merged(parts, outputs * padded).view(outputs, padded)[:, :inputs].contiguous().view(weight.shape)
    return da, dw, merged(sums2, outputs).to(y1.dtype), merged1


def pointwise_conv2d_backward(a: PointwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    needs = a.needs
    dx, dw, db, _ = _pointwise_backward(
        a.d_out, a.d_out, a.x, a.weight, None, None, 0, None, 0, needs.x, needs.weight or needs.bias
    )
    return ConvGradients(dx, dw if needs.weight else a.x.new_empty(0), db if needs.bias else a.x.new_empty(0))


def separable_conv2d(a: Separable) -> Tensor:
    """Output with running statistics."""
    geometry = _Geometry(a.x, a.dw_weight, a.stride, a.padding)
    outputs = a.pw_weight.shape[0]
    out = image(a.x, outputs, *geometry.out)
    if not out.numel():
        return out
    norm1, norm2 = (scaled(norm, running_stats(norm, a.x)) for norm in (a.norm1, a.norm2))
    work = geometry.work + geometry.pixels * a.pw_weight.numel()
    count = chunks(geometry.rows, work)
    arrays = (
        out,
        nhwc(a.x),
        _taps_first(a.dw_weight),
        dense(a.dw_bias),
        norm1,
        pack(a.pw_weight, False),
        dense(a.pw_bias),
        norm2,
        *geometry.taps(),
    )
    _passes.separable(
        a.x.dtype, count, work, *arrays, cut(geometry.rows, count), outputs, a.act1, a.act2, *geometry.size
    )
    return out


def separable_conv2d_train(a: SeparableTrain) -> SeparableTrained:
    """Output, y1, y2 and statistics."""
    b = a.block
    geometry = _Geometry(b.x, b.dw_weight, b.stride, b.padding)
    batch1, batch2 = a.batch_stats and b.norm1 is not None, a.batch_stats and b.norm2 is not None
    y1, moments, counts = _depthwise(b.x, b.dw_weight, b.dw_bias, geometry, batch1)
    stats1 = _statistics(b.norm1, y1, moments, counts, batch1)
    y2, moments, counts = _pointwise(y1, b.pw_weight, b.pw_bias, scaled(b.norm1, stats1), b.act1, batch2)
    stats2 = _statistics(b.norm2, y2, moments, counts, batch2)
    if not keeps_y1(b, y1.shape[2], y1.shape[3]):
        y1 = b.x.new_empty(0)
    if b.norm2 is None and b.act2 == 0:
        return SeparableTrained(y2, y1, y2.new_empty(0), stats1, stats2)
    return SeparableTrained(norm_act(y2, scaled(b.norm2, stats2), b.act2), y1, y2, stats1, stats2)


def _statistics(norm: RunningNorm | None, y: Tensor, moments: Tensor, counts: Array, of_batch: bool) -> Tensor:
    return batch(moments, counts, norm.eps, y) if of_batch and norm is not None else running_stats(norm, y)


def separable_conv2d_backward(a: SeparableBackward) -> SeparableGradients:
    """Gradients of x; the depthwise weight, its bias, norm1's two; the pointwise weight, its bias, norm2's two."""
    needs, x, nothing = a.needs, a.x, a.x.new_empty(0)
    need_da = needs.x or needs.dw
    y1 = a.y1
    if y1.dim() != 4:
        y1 = depthwise_conv2d(Depthwise(x, a.dw_weight, None, a.stride, a.padding))
    pixels = a.d_out.shape[0] * a.d_out.shape[2] * a.d_out.shape[3]
    norm1, norm2 = scaled(a.norm1, a.stats1), scaled(a.norm2, a.stats2)
    dout = nhwc(a.d_out)
    y2 = nhwc(a.y2) if a.y2.dim() == 4 else dout
    of_norm2, coef2 = (nothing, nothing), None
    if a.norm2 is not None:
        weight2 = a.norm2.weight
        needed = needs.pw or a.batch_stats
        sums = (
            norm_sums(dout, y2, norm2, a.act2)
            if needed
            else torch.zeros(2 * weight2.numel(), dtype=torch.float64, device="cpu")
        )
        d_weight, d_bias, coef2 = norm_gradients(sums, a.stats2, weight2, pixels, a.batch_stats)
        of_norm2 = d_weight, d_bias
    dy1, d_pw, d_pw_bias, sums1 = _pointwise_backward(
        dout, y2, y1, a.pw_weight, norm2, coef2, a.act2, norm1, a.act1, need_da, needs.pw
    )
    pw_side = (d_pw, d_pw_bias if needs.biases else nothing, *of_norm2) if needs.pw else (nothing,) * 4
    if not need_da:
        return SeparableGradients(*distinct(nothing, nothing, nothing, nothing, nothing, *pw_side))
    of_norm1 = (nothing, nothing)
    if a.norm1 is not None:
        d_weight, d_bias, coef1 = norm_gradients(sums1, a.stats1, a.norm1.weight, pixels, a.batch_stats)
        of_norm1 = d_weight, d_bias
        norm_backward(dy1, dy1, nhwc(y1), norm1, coef1, 0)
    dw_needs = ConvNeeds(needs.x, needs.dw, needs.dw and needs.biases)
    grads = depthwise_conv2d_backward(DepthwiseBackward(dy1, x, a.dw_weight, a.stride, a.padding, dw_needs))
    return SeparableGradients(*distinct(*grads, *(of_norm1 if needs.dw else (nothing, nothing)), *pw_side))


def separable_conv2d_linked(a: SeparableLinked) -> SeparableTrained:
    """As `fastfer.backends.composed` composes it of these functions."""
    return composed.separable_conv2d_linked(separable_conv2d_train, a)


def separable_conv2d_linked_backward(a: SeparableLinkedBackward) -> SeparableLinkedGradients:
    """As `fastfer.backends.composed` composes it of these functions."""
    return composed.separable_conv2d_linked_backward(separable_conv2d_backward, a)


def depthwise_norm_linked(a: DepthwiseNormLinked) -> DepthwiseNormTrained:
    """As `fastfer.backends.composed` composes it of these functions."""
    return composed.depthwise_norm_linked(depthwise_norm_train, a)


def depthwise_norm_linked_backward(a: DepthwiseNormLinkedBackward) -> DepthwiseNormLinkedGradients:
    """As `fastfer.backends.composed` composes it of these functions."""
    return composed.depthwise_norm_linked_backward(depthwise_norm_backward, a)
