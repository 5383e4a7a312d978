# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block on Numba; arguments and results as ``fastfer.reference.separable_conv``.

Inference is one pass. Training forward: depthwise with moments; normalise and activate a row block, multiply, moments;
normalise and activate. Backward: sums for norm2; a row block's gradient through norm2, both products, sums for norm1; the
rest of norm1; depthwise. What is cheaper to recompute than to reload is recomputed: activations and their derivatives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastfer.fallback import _passes
from fastfer.fallback._depthwise import taps, tiles
from fastfer.fallback._norm import merge_moments
from fastfer.fallback._numba import CHUNKS, Array, buffer, chunks, empty, image, nhwc
from fastfer.fallback._simd import REGISTER_BYTES

_PART_ELEMENTS = 1 << 22
"""Elements of weight gradient that all chunks together may hold: 16 MiB in float32."""


def _starts(items: int, count: int) -> Array:
    return np.arange(count + 1, dtype=np.int64) * items // count


def _vector(v: Tensor | None, like: Tensor) -> Array:
    return empty(like) if v is None else v.detach().contiguous().view(-1).numpy()


def _taps_first(weight: Tensor) -> Array:
    """Depthwise weights (C, 1, KH, KW) as (KH, KW, C), flat."""
    return weight.detach().permute(2, 3, 1, 0).contiguous().view(-1).numpy()


def _panel(x: Tensor) -> int:
    return 2 * REGISTER_BYTES // x.element_size()


def _pack(x: Tensor, weight: Tensor, transposed: bool) -> Array:
    """Panels of the pointwise weights (O, C) for x · wᵀ, or for dy · w when ``transposed``."""
    outputs, inputs = weight.shape[:2]
    depth, columns = (outputs, inputs) if transposed else (inputs, outputs)
    count = -(-columns // _panel(x))
    panels = buffer(x, count * depth * _panel(x))
    steps = (inputs, 1) if transposed else (1, inputs)
    _passes.pack_panels(panels.size, panels, _vector(weight, x), depth, columns, *steps, count)
    return panels


def _merged(parts: Array, size: int, dtype: type | np.dtype) -> Array:
    """Sum of ``parts`` (chunks, size) over chunks."""
    out = np.empty(size, dtype)
    _passes.merge_parts(parts.size, out, parts, chunks(size, parts.size))
    return out


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
) -> tuple[Tensor, Array, Array]:
    """Depthwise convolution, its moments by chunk (or none) and the chunks' pixels."""
    y = image(x, x.shape[1], *geometry.out)
    starts = _starts(geometry.rows, chunks(geometry.rows, geometry.work))
    stats = np.zeros((starts.size - 1) * 3 * x.shape[1] if moments else 0)
    if y.numel():
        arrays = nhwc(y), nhwc(x), _taps_first(weight), _vector(bias, x)
        _passes.depthwise(geometry.work, *arrays, geometry.size, *geometry.taps(), stats, starts)
    return y, stats, np.diff(starts) * geometry.out[1]


def _pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: Array, act: int, moments: bool
) -> tuple[Tensor, Array, Array]:
    """Pointwise convolution of act(norm(x)), its moments by chunk (or none) and the chunks' pixels."""
    outputs, inputs = weight.shape[:2]
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    y = image(x, outputs, x.shape[2], x.shape[3])
    work = pixels * inputs * outputs
    starts = _starts(pixels, chunks(-(-pixels // _passes.BLOCK), work))
    stats = np.zeros((starts.size - 1) * 3 * outputs if moments else 0)
    if y.numel():
        panels = _pack(x, weight, False)
        arrays = nhwc(y), nhwc(x), panels, _vector(bias, x)
        _passes.pointwise(work, *arrays, inputs, outputs, norm, act, stats, starts)
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
    dx = torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last) if need_dx else nothing
    count = chunks(geometry.rows, geometry.work, min(CHUNKS, max(1, _PART_ELEMENTS // weight.numel())))
    parts = np.zeros(count * weight.numel() if need_dw else 0, empty(x).dtype)
    sums = np.zeros(count * channels if need_dw else 0)
    if geometry.images and (need_dx or need_dw):
        arrays = nhwc(dx) if need_dx else empty(x), parts, sums, nhwc(dy), nhwc(x), _taps_first(weight)
        _passes.depthwise_backward(
            2 * geometry.work, *arrays, geometry.size, *geometry.taps_backward(), need_dx, need_dw, geometry.images, count
        )
    dw, db = nothing, nothing
    if mask[1]:
        flat = torch.from_numpy(_merged(parts, weight.numel(), parts.dtype))
        dw = flat.view(*weight.shape[2:], 1, channels).permute(3, 2, 0, 1).contiguous()
    if mask[2]:
        db = torch.from_numpy(_merged(sums, channels, parts.dtype))
    return dx, dw, db


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution."""
    return _pointwise(x, weight, bias, empty(x), 0, False)[0]


def _pointwise_backward(
    dout: Tensor, y2: Tensor, y1: Tensor, weight: Tensor, norm2: Array, coef2: Array, act2: int, norm1: Array, act1: int,
    need_da: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor, Array]:  # fmt: skip
    """Gradients before act1, of the weights and of the bias, and the sums (2, C) for norm1, as ``_passes.pointwise_backward``."""
    outputs, inputs = weight.shape[:2]
    pixels = y1.shape[0] * y1.shape[2] * y1.shape[3]
    padded = -(-inputs // _panel(y1)) * _panel(y1)
    work = 2 * pixels * inputs * outputs
    limit = min(CHUNKS, max(1, _PART_ELEMENTS // (outputs * padded))) if need_dw else CHUNKS
    starts = _starts(pixels, chunks(-(-pixels // _passes.BLOCK), work, limit))
    count = starts.size - 1
    nothing = y1.new_empty(0)
    da = torch.empty(y1.shape, dtype=y1.dtype, memory_format=torch.channels_last) if need_da else nothing
    parts = np.zeros(count * outputs * padded if need_dw else 0, empty(y1).dtype)
    sums2, sums1 = np.zeros(count * outputs if need_dw else 0), np.zeros(count * 2 * inputs)
    if pixels and (need_da or need_dw):
        panels = _pack(y1, weight, True) if need_da else empty(y1)
        arrays = nhwc(da) if need_da else empty(y1), parts, sums2, sums1, nhwc(dout), nhwc(y2), nhwc(y1), panels
        _passes.pointwise_backward(
            work, *arrays, inputs, outputs, norm2, coef2, act2, norm1, act1, need_da, need_dw, starts
        )
    merged1 = _merged(sums1, 2 * inputs, np.float64)
    if not need_dw:
        return da, nothing, nothing, merged1
    dw = torch.from_numpy(_merged(parts, outputs * padded, parts.dtype)).view(outputs, padded)[:, :inputs]
    db = torch.from_numpy(_merged(sums2, outputs, parts.dtype))
    return da, dw.contiguous().view(weight.shape), db, merged1


def pointwise_conv2d_backward(dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias."""
    none = empty(x)
    dx, dw, db, _ = _pointwise_backward(dy, dy, x, weight, none, none, 0, none, 0, mask[0], mask[1] or mask[2])
    return dx, dw if mask[1] else x.new_empty(0), db if mask[2] else x.new_empty(0)


def _norm(weight: Tensor | None, bias: Tensor | None, stats: Tensor) -> Array:
    """Mean, scale and bias of a norm, flat; empty without norm."""
    if weight is None or bias is None:
        return empty(stats)
    return torch.cat([stats[0], stats[1] * weight, bias]).detach().numpy()


def _stats(
    y: Tensor, mean: Tensor | None, var: Tensor | None, eps: float, moments: Array, counts: Array
) -> Tensor:
    """Statistics (3, C) of a norm from the chunks' moments, or from running ones when there are no moments."""
    if mean is None or var is None:
        return y.new_empty(0)
    if moments.size == 0:
        return torch.stack([mean, (var + eps).rsqrt(), var])
    channels = y.shape[1]
    merge_moments(moments, counts, channels)
    total, _, m2 = moments[: 3 * channels].reshape(3, channels)
    count = int(counts.sum())
    with np.errstate(all="ignore"):
        rows = total / count, 1 / np.sqrt(m2 / count + eps), m2 / max(count - 1, 1)
    return torch.from_numpy(np.stack(rows)).to(y.dtype)


def separable_conv2d(
    x: Tensor, dw: Tensor, dw_bias: Tensor | None,
    n1_weight: Tensor | None, n1_bias: Tensor | None, n1_mean: Tensor | None, n1_var: Tensor | None, eps1: float, act1: int,
    pw: Tensor, pw_bias: Tensor | None,
    n2_weight: Tensor | None, n2_bias: Tensor | None, n2_mean: Tensor | None, n2_var: Tensor | None, eps2: float, act2: int,
    stride: list[int], padding: list[int],
) -> Tensor:  # fmt: skip
    """Output with running statistics."""
    geometry = _Geometry(x, dw, stride, padding)
    outputs, inputs = pw.shape[:2]
    out = image(x, outputs, *geometry.out)
    if not out.numel():
        return out
    none = np.empty(0)
    norm1 = _norm(n1_weight, n1_bias, _stats(x, n1_mean, n1_var, eps1, none, none))
    norm2 = _norm(n2_weight, n2_bias, _stats(x, n2_mean, n2_var, eps2, none, none))
    work = geometry.work + geometry.pixels * inputs * outputs
    arrays = nhwc(out), nhwc(x), _taps_first(dw), _vector(dw_bias, x)
    products = _pack(x, pw, False), _vector(pw_bias, x), outputs
    starts = _starts(geometry.rows, chunks(geometry.rows, work))
    _passes.separable(work, *arrays, geometry.size, *geometry.taps(), norm1, act1, *products, norm2, act2, starts)
    return out


def separable_conv2d_train(
    x: Tensor, dw: Tensor, dw_bias: Tensor | None,
    n1_weight: Tensor | None, n1_bias: Tensor | None, n1_mean: Tensor | None, n1_var: Tensor | None, eps1: float, act1: int,
    pw: Tensor, pw_bias: Tensor | None,
    n2_weight: Tensor | None, n2_bias: Tensor | None, n2_mean: Tensor | None, n2_var: Tensor | None, eps2: float, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, y1, y2, statistics (3, C) and (3, O): mean, 1/sqrt(var + eps), unbiased variance."""
    geometry = _Geometry(x, dw, stride, padding)
    y1, moments, counts = _depthwise(x, dw, dw_bias, geometry, batch_stats and n1_weight is not None)
    stats1 = _stats(y1, n1_mean, n1_var, eps1, moments, counts)
    norm1 = _norm(n1_weight, n1_bias, stats1)
    y2, moments, counts = _pointwise(y1, pw, pw_bias, norm1, act1, batch_stats and n2_weight is not None)
    stats2 = _stats(y2, n2_mean, n2_var, eps2, moments, counts)
    if n2_weight is None and act2 == 0:
        return y2, y1, y2.new_empty(0), stats1, stats2
    out = torch.empty_like(y2)
    if y2.numel():
        starts = _starts(geometry.pixels, chunks(geometry.pixels, y2.numel()))
        norm2 = _norm(n2_weight, n2_bias, stats2)
        _passes.norm_act(y2.numel(), nhwc(out), nhwc(y2), y2.shape[1], norm2, act2, starts)
    return out, y1, y2, stats1, stats2


def _norm_gradients(sums: Array, stats: Tensor, norm: Array, pixels: int, batch_stats: bool) -> tuple[Tensor, Tensor, Array]:
    """Gradients of a norm's weight and bias, and the coefficients of its backward, from the sums (2, C)."""
    channels = stats.shape[1]
    total, moment = sums.reshape(2, channels)
    invstd = stats[1].double().numpy()
    scale = norm[channels : 2 * channels].astype(np.float64)
    coef = np.concatenate([total, moment * invstd**2]) * np.tile(-scale / max(pixels, 1), 2)
    weight, bias = (torch.from_numpy(v).to(stats.dtype) for v in (moment * invstd, total.copy()))
    return weight, bias, coef.astype(norm.dtype) if batch_stats else norm[:0]


def separable_conv2d_backward(
    dout: Tensor, x: Tensor, y1: Tensor, y2: Tensor,
    dw: Tensor, n1_weight: Tensor | None, n1_bias: Tensor | None, stats1: Tensor, act1: int,
    pw: Tensor, n2_weight: Tensor | None, n2_bias: Tensor | None, stats2: Tensor, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; dw, its bias, norm1's two; pw, its bias, norm2's two. Those not asked for are empty."""
    need_dx, need_dw, need_pw = mask
    nothing, none = x.new_empty(0), empty(x)
    inputs, outputs = y1.shape[1], dout.shape[1]
    pixels = dout.shape[0] * dout.shape[2] * dout.shape[3]
    norm1, norm2 = _norm(n1_weight, n1_bias, stats1), _norm(n2_weight, n2_bias, stats2)
    y2 = y2 if y2.numel() else dout
    d_w2, d_b2, coef2 = nothing, nothing, none
    if norm2.size and (need_pw or batch_stats):
        starts = _starts(pixels, chunks(-(-pixels // _passes.BLOCK), dout.numel()))
        sums = np.zeros((starts.size - 1) * 2 * outputs)
        _passes.norm_sums(dout.numel(), sums, nhwc(dout), nhwc(y2), outputs, norm2, act2, starts)
        d_w2, d_b2, coef2 = _norm_gradients(_merged(sums, 2 * outputs, np.float64), stats2, norm2, pixels, batch_stats)
    need_da = need_dx or need_dw
    dy1, d_pw, d_pb, sums1 = _pointwise_backward(
        dout, y2, y1, pw, norm2, coef2, act2, norm1, act1, need_da, need_pw
    )
    pw_side = (d_pw, d_pb, d_w2, d_b2) if need_pw else (nothing,) * 4
    if not need_da:
        return nothing, nothing, nothing, nothing, nothing, *pw_side
    d_w1, d_b1 = nothing, nothing
    if norm1.size:
        d_w1, d_b1, coef1 = _norm_gradients(sums1, stats1, norm1, pixels, batch_stats)
        if dy1.numel():
            starts = _starts(pixels, chunks(pixels, dy1.numel()))
            _passes.norm_backward(dy1.numel(), nhwc(dy1), nhwc(dy1), nhwc(y1), inputs, norm1, coef1, starts)
    dx, d_dw, d_db = depthwise_conv2d_backward(dy1, x, dw, stride, padding, [need_dx, need_dw, need_dw])
    return dx, d_dw, d_db, d_w1 if need_dw else nothing, d_b1 if need_dw else nothing, *pw_side
