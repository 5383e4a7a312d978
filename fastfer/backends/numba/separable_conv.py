# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block on Numba, with the functions of the reference backend.

Inference is one pass. Training forward: depthwise with moments; normalise and activate a row block, multiply, moments;
normalise and activate. Backward: sums for norm2; a row block's gradient through norm2, both products, sums for norm1;
the rest of norm1; depthwise. Activations and their derivatives are recomputed rather than saved.
"""

from __future__ import annotations

from typing import NamedTuple

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
            taps(*self.axes[0], False),
            tiles(*self.axes[1], False, False),
            taps(height, out_h, *vertical, True),
            tiles(width, out_w, *horizontal, True),
        )


class Product(NamedTuple):
    """A convolution, its moments by chunk (or none), and the chunks' pixels."""

    y: Tensor
    moments: Tensor
    counts: Array


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, moments: bool = False) -> Product:
    y = image(x, x.shape[1], *geometry.out)
    count = chunks(geometry.rows, geometry.work)
    starts = cut(geometry.rows, count)
    stats = torch.zeros(count * 3 * x.shape[1] if moments else 0, dtype=torch.float64, device="cpu")
    if y.numel():
        arrays = y, nhwc(x), _taps_first(weight), dense(bias), *geometry.taps(), stats, starts
        _passes.depthwise(x.dtype, count, geometry.work, *arrays, *geometry.size)
    return Product(y, stats, np.diff(starts) * geometry.out[1])


def pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None = None, act: int = 0, moments: bool = False
) -> Product:
    """Pointwise convolution of act(norm(x)); ``norm`` as `_steps.scaled` makes it."""
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
    return Product(y, stats, np.diff(starts))


def depthwise_conv2d(a: Depthwise) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return _depthwise(a.x, a.weight, a.bias, _Geometry(a.x, a.weight, a.stride, a.padding)).y


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
        DepthwiseBackward(dy, a.x, a.weight, a.stride, a.padding, ConvNeeds(a.needs.x, params, params and a.needs.bias))
    )
    of_norm = (d_weight, d_bias) if params else (nothing, nothing)
    return DepthwiseNormGradients(*distinct(*grads, *of_norm))


def pointwise_conv2d(a: Pointwise) -> Tensor:
    """1×1 convolution."""
    return pointwise(a.x, a.weight, a.bias).y


class ProductGradients(NamedTuple):
    """Gradients of a pointwise convolution: of its input before ``act1``, of the parameters; and sums for norm1."""

    d_y1: Tensor
    d_weight: Tensor
    d_bias: Tensor
    sums1: Tensor


def pointwise_backward(
    d_out: Tensor,
    y1: Tensor,
    weight: Tensor,
    *,
    need_input: bool,
    need_params: bool,
    act1: int = 0,
    norm1: Tensor | None = None,
    y2: Tensor | None = None,
    act2: int = 0,
    norm2: Tensor | None = None,
    coef2: Tensor | None = None,
) -> ProductGradients:
    """Backward of out = act2(norm2(y2)), y2 the convolution of act1(norm1(y1)), as ``_passes.pointwise_backward``.

    Norms as `_steps.scaled` makes them; ``coef2`` of `_steps.norm_gradients`. ``y2`` is wanted with norm2 or act2.
    ``sums1`` is (2, C), flat.
    """
    outputs, inputs = weight.shape[:2]
    pixels = y1.shape[0] * y1.shape[2] * y1.shape[3]
    padded = -(-inputs // panel(y1)) * panel(y1)
    work = 2 * pixels * inputs * outputs
    limit = min(CHUNKS, max(1, PART_ELEMENTS // (outputs * padded))) if need_params else CHUNKS
    count = chunks(-(-pixels // _passes.BLOCK), work, limit)
    nothing = y1.new_empty(0)
    d_y1 = image(y1, *y1.shape[1:]) if need_input else nothing
    parts = y1.new_zeros(count * outputs * padded if need_params else 0)
    sums2 = torch.zeros(count * outputs if need_params else 0, dtype=torch.float64, device="cpu")
    sums1 = torch.zeros(count * 2 * inputs, dtype=torch.float64, device="cpu")
    if pixels and (need_input or need_params):
        panels, d_out = pack(weight, True) if need_input else None, nhwc(d_out)
        of_output = d_out if y2 is None else nhwc(y2)
        arrays = d_y1, parts, sums2, sums1, d_out, of_output, nhwc(y1), panels, norm2, coef2, norm1
        _passes.pointwise_backward(y1.dtype, count, work, *arrays, cut(pixels, count), inputs, outputs, act2, act1)
    merged1 = merged(sums1, 2 * inputs)
    if not need_params:
        return ProductGradients(d_y1, nothing, nothing, merged1)
    d_weight = merged(parts, outputs * padded).view(outputs, padded)[:, :inputs].contiguous().view(weight.shape)
    return ProductGradients(d_y1, d_weight, merged(sums2, outputs).to(y1.dtype), merged1)


def pointwise_conv2d_backward(a: PointwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    needs, nothing = a.needs, a.x.new_empty(0)
    grads = pointwise_backward(a.d_out, a.x, a.weight, need_input=needs.x, need_params=needs.weight or needs.bias)
    return ConvGradients(
        grads.d_y1, grads.d_weight if needs.weight else nothing, grads.d_bias if needs.bias else nothing
    )


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
    y2, moments, counts = pointwise(y1, b.pw_weight, b.pw_bias, scaled(b.norm1, stats1), b.act1, batch2)
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
    product = pointwise_backward(
        dout,
        y1,
        a.pw_weight,
        need_input=needs.x or needs.dw,
        need_params=needs.pw,
        act1=a.act1,
        norm1=norm1,
        y2=y2,
        act2=a.act2,
        norm2=norm2,
        coef2=coef2,
    )
    pw_side = (nothing,) * 4
    if needs.pw:
        pw_side = product.d_weight, product.d_bias if needs.biases else nothing, *of_norm2
    if not (needs.x or needs.dw):
        return SeparableGradients(*distinct(nothing, nothing, nothing, nothing, nothing, *pw_side))
    of_norm1 = (nothing, nothing)
    if a.norm1 is not None:
        d_weight, d_bias, coef1 = norm_gradients(product.sums1, a.stats1, a.norm1.weight, pixels, a.batch_stats)
        of_norm1 = d_weight, d_bias
        norm_backward(product.d_y1, product.d_y1, nhwc(y1), norm1, coef1, 0)
    dw_needs = ConvNeeds(needs.x, needs.dw, needs.dw and needs.biases)
    grads = depthwise_conv2d_backward(DepthwiseBackward(product.d_y1, x, a.dw_weight, a.stride, a.padding, dw_needs))
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
