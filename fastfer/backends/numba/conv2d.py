# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with norm and activation on Numba, with the functions of the reference backend.

Inference is one pass. Training forward: convolution with moments; normalise and activate. Backward: sums for the norm;
a block's gradient through norm and activation and the weights' product; the input gradient as a convolution of that
with the kernel turned round, for each phase of the stride. Activations are recomputed rather than saved.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from fastfer.backends.numba import _conv
from fastfer.backends.numba._numba import CHUNKS, Array, chunks, image, nhwc
from fastfer.backends.numba._passes import BLOCK
from fastfer.backends.numba._steps import (
    PART_ELEMENTS,
    affine,
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
    running,
)
from fastfer.backends.numba.pool import max_pool2d_backward, max_pool2d_train
from fastfer.backends.reference import _linked
from fastfer.backends.reference.conv2d import with_pool

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


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    n_weight: Tensor | None, n_bias: Tensor | None, n_mean: Tensor | None, n_var: Tensor | None,
    eps: float, act: int, stride: list[int], padding: list[int],
) -> Tensor:  # fmt: skip
    """Output with running statistics."""
    norm = affine(n_weight, n_bias, running(n_mean, n_var, eps, x))
    return _convolution(x, weight, bias, _Geometry(x, weight, stride, padding), norm, act, False)[0]


def conv2d_train(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    n_weight: Tensor | None, n_bias: Tensor | None, n_mean: Tensor | None, n_var: Tensor | None,
    eps: float, act: int, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, y before the norm (empty where it is the output), statistics (3, O) as `_steps.batch` or empty."""
    gathered = batch_stats and n_weight is not None
    geometry = _Geometry(x, weight, stride, padding)
    y, moments, counts, times = _convolution(x, weight, bias, geometry, None, 0, gathered)
    stats = batch(moments, counts, eps, y, times) if gathered else running(n_mean, n_var, eps, x)
    if n_weight is None and act == 0:
        return y, y.new_empty(0), stats
    return norm_act(y, affine(n_weight, n_bias, stats), act), y, stats


def _weight_gradient(
    dy: Tensor, dout: Tensor, y: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry,
    norm: Tensor | None, coef: Tensor | None, act: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
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


def conv2d_backward(
    dout: Tensor, x: Tensor, y: Tensor, weight: Tensor, n_weight: Tensor | None, n_bias: Tensor | None, stats: Tensor,
    act: int, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; weight, bias, the norm's two. Those not asked for are empty; ``mask`` is [x, weight side]."""
    need_dx, need_dw = mask
    nothing = x.new_empty(0)
    dout, norm = nhwc(dout), affine(n_weight, n_bias, stats)
    y = nhwc(y) if y.dim() == 4 else dout
    d_scale, d_shift, coef = nothing, nothing, None
    if n_weight is not None and (need_dw or batch_stats):
        pixels = dout.shape[0] * dout.shape[2] * dout.shape[3]
        sums = norm_sums(dout, y, norm, act)
        d_scale, d_shift, coef = norm_gradients(sums, stats, n_weight, pixels, batch_stats)
    plain = norm is None and act == 0
    dy = dout if plain or not need_dx else torch.empty_like(dout)
    dw, db, dx = nothing, nothing, nothing
    if need_dw:
        geometry = _Geometry(x, weight, stride, padding)
        into = dy if need_dx and not plain else nothing
        dw, db = _weight_gradient(into, dout, y, x, weight, geometry, norm, coef, act)
    elif need_dx and not plain:
        norm_backward(dy, dout, y, norm, coef, act)
    if need_dx:
        dx = _input_gradient(dy, x, weight, stride, padding)
    return distinct(dx, dw, db, *((d_scale, d_shift) if need_dw else (nothing, nothing)))


conv2d_pool_train, conv2d_pool_backward = with_pool(
    conv2d_train, conv2d_backward, max_pool2d_train, max_pool2d_backward
)
conv2d_linked = partial(_linked.conv2d_linked, conv2d_train)
conv2d_linked_backward = partial(_linked.conv2d_linked_backward, conv2d_backward)
