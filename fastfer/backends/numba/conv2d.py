# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with norm and activation on Numba, with the functions of the reference backend.

Inference is one pass. Training forward: convolution with moments; normalise and activate. Backward: sums for the norm;
a block's gradient through norm and activation and the weights' product; the input gradient as a convolution of that
with the kernel turned round, for each phase of the stride. Activations are recomputed rather than saved.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastfer.backends import composed
from fastfer.backends.numba import _conv
from fastfer.backends.numba._numba import CHUNKS, Array, chunks, image, nhwc
from fastfer.backends.numba._passes import BLOCK
from fastfer.backends.numba._steps import (
    PART_ELEMENTS,
    batch,
    cut,
    dense,
    distinct,
    fitted,
    fold,
    folded,
    merged,
    norm_act,
    norm_backward,
    norm_gradients,
    norm_sums,
    pack,
    running_stats,
    scaled,
)
from fastfer.backends.numba.pool import max_pool2d_backward, max_pool2d_train
from fastfer.signatures.conv2d import (
    Conv2d,
    Conv2dBackward,
    Conv2dGradients,
    Conv2dLinked,
    Conv2dLinkedBackward,
    Conv2dLinkedTrained,
    Conv2dPoolBackward,
    Conv2dPoolTrain,
    Conv2dPoolTrained,
    Conv2dTrain,
    Conv2dTrained,
)
from fastfer.signatures.separable_conv import ConvGradients

_PART_PIXELS = 256
"""Pixels from which a chunk's work on its part of the weight gradient outweighs clearing and merging that."""


@lru_cache(maxsize=1024)
def _steps(kh: int, kw: int, channels: int, width: int) -> Array:
    """Offsets of a window's elements from its first, rows of ``width`` pixels, in the order KH, KW, C."""
    down = np.arange(kh, dtype=np.int64)[:, None] * width * channels
    return np.ascontiguousarray((down + np.arange(kw * channels, dtype=np.int64)).ravel())


class _Geometry:
    """Sizes of a convolution, and how it is cut into blocks and chunks."""

    def __init__(
        self, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], out: tuple[int, int] | None = None
    ) -> None:
        self.images, channels, height, width = x.shape
        self.outputs, _, kh, kw = weight.shape
        (sh, sw), (top, left, bottom, right) = stride, padding
        self.out = out or ((height + top + bottom - kh) // sh + 1, (width + left + right - kw) // sw + 1)
        padded = (self.out[1] - 1) * sw + kw if any(padding) else 0
        self.lines = max(1, BLOCK // max(self.out[1], 1))
        self.rows = self.images * self.out[0]
        self.pixels = self.rows * self.out[1]
        self.depth = channels * kh * kw
        self.work = self.pixels * self.depth * self.outputs
        self.steps = _steps(kh, kw, channels, padded or width)
        self.size = (self.lines, channels, height, width, *self.out, kh, sh, sw, top, left, padded)

    def chunks(self, limit: int = CHUNKS) -> int:
        return chunks(-(-self.rows // self.lines), self.work, limit)


def _taps_first(weight: Tensor) -> Tensor:
    """Weights (O, C, KH, KW) as (KH · KW · C, O)."""
    return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, norm: Tensor | None, act: int, moments: bool
) -> tuple[Tensor, Tensor, Array, int]:
    """act(norm(convolution)), moments by chunk (or none), the chunks' folded pixels and the pixels in each."""
    y = image(x, geometry.outputs, *geometry.out)
    times = fold(geometry.outputs, geometry.out[1])
    count = geometry.chunks()
    starts = cut(geometry.rows, count)
    stats = torch.zeros(count * 3 * times * geometry.outputs if moments else 0, dtype=torch.float64, device="cpu")
    if y.numel():
        panels = pack(_taps_first(weight), True, fitted(x, geometry.outputs))
        arrays = y, nhwc(x), panels, dense(bias), folded(norm, 3, times), geometry.steps, stats, starts
        _conv.convolution(x.dtype, count, geometry.work, *arrays, geometry.outputs, act, times, *geometry.size)
    return y, stats, np.diff(starts) * (geometry.out[1] // times), times


def conv2d(a: Conv2d) -> Tensor:
    """Output with running statistics."""
    norm = scaled(a.norm, running_stats(a.norm, a.x))
    return _convolution(a.x, a.weight, a.bias, _Geometry(a.x, a.weight, a.stride, a.padding), norm, a.act, False)[0]


def conv2d_train(a: Conv2dTrain) -> Conv2dTrained:
    """Output, y before the norm (empty where it is the output), statistics as `_steps.batch` or empty."""
    b = a.block
    gathered = a.batch_stats and b.norm is not None
    geometry = _Geometry(b.x, b.weight, b.stride, b.padding)
    y, moments, counts, times = _convolution(b.x, b.weight, b.bias, geometry, None, 0, gathered)
    if gathered and b.norm is not None:
        stats = batch(moments, counts, b.norm.eps, y, times)
    else:
        stats = running_stats(b.norm, b.x)
    if b.norm is None and b.act == 0:
        return Conv2dTrained(y, y.new_empty(0), stats)
    return Conv2dTrained(norm_act(y, scaled(b.norm, stats), b.act), y, stats)


def _weight_gradient(
    dy: Tensor,
    dout: Tensor,
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: _Geometry,
    norm: Tensor | None,
    coef: Tensor | None,
    act: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias, and of y into ``dy`` where that has elements."""
    outputs, depth = geometry.outputs, geometry.depth
    width = fitted(x, outputs)
    padded = -(-outputs // width) * width
    most = min(PART_ELEMENTS // max(1, depth * padded), geometry.pixels // _PART_PIXELS)
    count = geometry.chunks(min(CHUNKS, max(1, most)))
    parts, sums = x.new_zeros(count * depth * padded), torch.zeros(count * outputs, dtype=torch.float64, device="cpu")
    if dout.numel():
        arrays = parts, sums, dy, dout, y, nhwc(x), norm, coef, geometry.steps, cut(geometry.rows, count)
        _conv.convolution_weights(x.dtype, count, geometry.work, *arrays, outputs, act, *geometry.size)
    kernel = (*weight.shape[2:], weight.shape[1], padded)
    dw = merged(parts, depth * padded).view(kernel)[..., :outputs].permute(3, 2, 0, 1).contiguous()
    return dw, merged(sums, outputs).to(x.dtype, copy=True)


def _phases(kernel: int, stride: int, pad: int, size: int) -> list[tuple[int, int, int, int]]:
    """Convolutions whose outputs interleave to the input gradient along an axis of ``size`` input positions.

    For each phase: its first position, the kernel's first tap for it, how many positions, the padding before.
    """
    phases = []
    for phase in range(min(stride, size)):
        first = (phase + pad) % stride
        taps = max(0, -(-(kernel - first) // stride))
        phases.append((phase, first, -(-(size - phase) // stride), taps - 1 - (phase + pad - first) // stride))
    return phases


def _input_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    dx = image(x, *x.shape[1:])
    for row, tap_y, height, top in _phases(weight.shape[2], stride[0], padding[0], x.shape[2]):
        for column, tap_x, width, left in _phases(weight.shape[3], stride[1], padding[1], x.shape[3]):
            part = dx[:, :, row :: stride[0], column :: stride[1]]
            turned = weight[:, :, tap_y :: stride[0], tap_x :: stride[1]].flip(2, 3).transpose(0, 1)
            if not turned.numel() or not dy.numel():
                part.zero_()
                continue
            bottom, right = height + turned.shape[2] - dy.shape[2], width + turned.shape[3] - dy.shape[3]
            pads = [top, left, bottom - 1 - top, right - 1 - left]
            grad = _convolution(dy, turned, None, _Geometry(dy, turned, [1, 1], pads), None, 0, False)[0]
            if stride == [1, 1]:
                return grad
            part.copy_(grad)
    return dx


def conv2d_backward(a: Conv2dBackward) -> Conv2dGradients:
    """Gradients of x; weight, bias, the norm's two."""
    x, needs, nothing = a.x, a.needs, a.x.new_empty(0)
    dout, norm = nhwc(a.d_out), scaled(a.norm, a.stats)
    y = nhwc(a.y) if a.y.dim() == 4 else dout
    d_scale, d_shift, coef = nothing, nothing, None
    if a.norm is not None and (needs.params or a.batch_stats):
        pixels = dout.shape[0] * dout.shape[2] * dout.shape[3]
        sums = norm_sums(dout, y, norm, a.act)
        d_scale, d_shift, coef = norm_gradients(sums, a.stats, a.norm.weight, pixels, a.batch_stats)
    plain = norm is None and a.act == 0
    dy = dout if plain or not needs.x else torch.empty_like(dout)
    d_weight, d_bias, d_x = nothing, nothing, nothing
    if needs.params:
        geometry = _Geometry(x, a.weight, a.stride, a.padding)
        into = dy if needs.x and not plain else nothing
        d_weight, d_bias = _weight_gradient(into, dout, y, x, a.weight, geometry, norm, coef, a.act)
    elif needs.x and not plain:
        norm_backward(dy, dout, y, norm, coef, a.act)
    if needs.x:
        d_x = _input_gradient(dy, x, a.weight, a.stride, a.padding)
    of_norm = (d_scale, d_shift) if needs.params else (nothing, nothing)
    return Conv2dGradients(*distinct(d_x, d_weight, d_bias if needs.bias else nothing, *of_norm))


def conv2d_pool_train(a: Conv2dPoolTrain) -> Conv2dPoolTrained:
    """Output of the pooling after `conv2d_train`, y, y at the maxima, their places in the windows, statistics."""
    return composed.conv2d_pool_train(conv2d_train, max_pool2d_train, a)


def conv2d_pool_backward(a: Conv2dPoolBackward) -> Conv2dGradients:
    """Gradients as `conv2d_backward`, ``d_out`` that of the pooled output."""
    return composed.conv2d_pool_backward(conv2d_backward, max_pool2d_backward, a)


def conv2d_linked(a: Conv2dLinked) -> Conv2dLinkedTrained:
    """As `fastfer.backends.composed` composes it of these functions."""
    return composed.conv2d_linked(conv2d_train, a)


def conv2d_linked_backward(a: Conv2dLinkedBackward) -> ConvGradients:
    """As `fastfer.backends.composed` composes it of these functions."""
    return composed.conv2d_linked_backward(conv2d_backward, a)
