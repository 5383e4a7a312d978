# SPDX-License-Identifier: Apache-2.0
"""CBAM and its two gates on Numba; NHWC, dense. Passes as in the native kernels, image by image.

What is summed over images is summed per chunk in float64, and chunks merge in order. An absent gate's tensors are None.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfer.backends.numba import _passes
from fastfer.backends.numba._gates import (
    channel_dots,
    channel_maxima,
    gate_sums,
    mlp_backward,
    mlp_gate,
    mlp_hidden,
    pixel_grads,
    scale_pixels,
)
from fastfer.backends.numba._numba import Array, Pointer, arguments, chunks, image, kernel, nhwc
from fastfer.backends.numba._planes import (
    border_size,
    correlate,
    enclose,
    plane_gate,
    plane_gate_grad,
    plane_moments,
    weight_grad,
)
from fastfer.backends.numba._pool import pool_image
from fastfer.backends.numba._simd import div, fill, fma, lanes, load, splat, store
from fastfer.backends.numba._span import absent, area, get, keep, put, room

_Tensors = tuple[Tensor, ...]


@kernel
def _forward(pointer: Pointer, chunk: int) -> None:
    """Gates of the images; ``out`` too, unless the statistics of the batch (``moments``) come first."""
    (
        out, avg, most, positions, gate, most_plane, mean_plane, y, channel, moments, x, w1, b1, w2, b2, weight, line,
        images, count, height, width, channels, size,
    ) = arguments(pointer, "FFFIFFFFIDFFFFFFFiiiiii")  # fmt: skip
    pixels = height * width
    memory = np.empty(room(x, channels), np.uint8)
    room_of_border = room(x, border_size(x, height, width, size)) if weight.size else 64
    borders = np.zeros(room_of_border, np.uint8), np.zeros(room_of_border, np.uint8)
    memory_hidden, memory_plane = np.empty(room(x, 2 * b1.size), np.uint8), np.empty(room(x, pixels), np.uint8)
    hidden = area(x, memory_hidden)
    local = area(x, memory) if w1.size else absent(x)
    plane = area(x, memory_plane) if weight.size else absent(x)
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        at, po = i * pixels * channels, i * pixels
        if w1.size:
            pool_image(avg, i * channels, most, positions, x, at, pixels, channels)
            mlp_hidden(hidden, avg, most, i * channels, w1, b1, channels)
            mlp_gate(gate, i * channels, hidden, w2, b2)
            for c in range(channels):
                put(local, c, get(gate, i * channels + c))
        if weight.size:
            channel_maxima(most_plane, po, mean_plane, po, channel, po, x, at, local, pixels, channels)
            padded_most, padded_mean = area(x, borders[0]), area(x, borders[1])
            enclose(padded_most, most_plane, po, height, width, size)
            enclose(padded_mean, mean_plane, po, height, width, size)
            correlate(y, po, padded_most, weight, 0, 1, 0, height, width, size)
            correlate(y, po, padded_mean, weight, size * size, 1, 1, height, width, size)
            if moments.size:
                plane_moments(moments, i, y, po, pixels)
            else:
                plane_gate(plane, 0, y, po, line, pixels)
        if not moments.size:
            scale_pixels(out, x, at, local, plane, pixels, channels)
    keep(memory)
    keep(borders[0])
    keep(borders[1])
    keep(memory_hidden)
    keep(memory_plane)


@kernel
def _scale(pointer: Pointer, chunk: int) -> None:
    """``out`` from the gate and the convolution of each image."""
    out, gate, y, x, line, images, count, pixels, channels = arguments(pointer, "FFFFFiiii")
    memory, memory_plane = np.empty(room(x, channels), np.uint8), np.empty(room(x, pixels), np.uint8)
    local, plane = area(x, memory) if gate.size else absent(x), area(x, memory_plane)
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        if gate.size:
            for c in range(channels):
                put(local, c, get(gate, i * channels + c))
        plane_gate(plane, 0, y, i * pixels, line, pixels)
        scale_pixels(out, x, i * pixels * channels, local, plane, pixels, channels)
    keep(memory)
    keep(memory_plane)


@kernel
def _slope(pointer: Pointer, chunk: int) -> None:
    """The spatial gate ``s``, the gradient ``t`` before its sigmoid, and the sums of t (images, 2)."""
    s, t, sums, dout, x, gate, y, line, mean, images, count, pixels, channels = arguments(pointer, "FFDFFFFFFiiii")
    memory = np.empty(room(x, channels), np.uint8)
    local = area(x, memory) if gate.size else absent(x)
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        if gate.size:
            for c in range(channels):
                put(local, c, get(gate, i * channels + c))
        po = i * pixels
        plane_gate(s, po, y, po, line, pixels)
        channel_dots(t, po, dout, x, po * channels, local, pixels, channels)
        plane_gate_grad(t, s, po, y, po, mean, pixels, sums, i)
    keep(memory)


@kernel
def _backward(pointer: Pointer, chunk: int) -> None:
    """dx, and per chunk the sums of the gradients of the MLP's tensors and of the convolution's weight."""
    (
        dx, mlp_grads, weight_grads, dout, x, avg, most, gate, positions, most_plane, mean_plane, y, channel, s, t,
        curve, w1, b1, w2, weight, images, count, height, width, channels, size,
    ) = arguments(pointer, "FDDFFFFFIFFFIFFFFFFFiiiiii")  # fmt: skip
    pixels, units = height * width, b1.size
    vectors = np.empty(room(x, 2 * units), np.uint8)
    border = np.zeros(room(x, border_size(x, height, width, size)) if weight.size else 64, np.uint8)
    plane0, plane1 = np.empty(room(x, pixels), np.uint8), np.empty(room(x, pixels), np.uint8)
    memory = (np.empty(room(x, channels), np.uint8), np.empty(room(x, channels), np.uint8),
              np.empty(room(x, channels), np.uint8), np.empty(room(x, channels), np.uint8))  # fmt: skip
    local = area(x, memory[0]) if w1.size else absent(x)
    dz, davg, dmost = area(x, memory[1]), area(x, memory[2]), area(x, memory[3])
    hidden, padded, dmean, dlargest = area(x, vectors), area(x, border), area(x, plane0), area(x, plane1)
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        at, po, vo = i * pixels * channels, i * pixels, i * channels
        if weight.size:
            for p in range(0, pixels, lanes(x)):
                n = min(lanes(x), pixels - p)
                bent = fma(load(y, po + p, n), splat(curve, 1), splat(curve, 2))
                store(dmean, p, fma(load(t, po + p, n), splat(curve, 0), bent), n)
            enclose(padded, dmean, 0, height, width, size)
            correlate(dlargest, 0, padded, weight, size * size - 1, -1, 0, height, width, size)
            correlate(dmean, 0, padded, weight, 2 * size * size - 1, -1, 0, height, width, size)
            for p in range(0, pixels, lanes(x)):
                n = min(lanes(x), pixels - p)
                store(dmean, p, div(load(dmean, p, n), fill(x, channels)), n)
            if weight_grads.size:
                to = 2 * size * size * chunk
                weight_grad(weight_grads, to, most_plane, po, padded, height, width, size)
                weight_grad(weight_grads, to + size * size, mean_plane, po, padded, height, width, size)
        if w1.size:
            gate_sums(dz, dout, x, at, s, po, dmean, dlargest, channel, po, pixels, channels)
            mlp_hidden(hidden, avg, most, vo, w1, b1, channels)
            go = (2 * units * channels + units + channels) * chunk
            mlp_backward(davg, dmost, dz, mlp_grads, go, hidden, gate, avg, most, vo, w1, w2, units, channels)
            for c in range(channels):
                put(local, c, get(gate, vo + c))
                put(davg, c, get(davg, c) / pixels)
        if dx.size:
            pixel_grads(dx, dout, at, local, davg, s, po, dmean, dlargest, channel, po, pixels, channels)
            if w1.size:
                for c in range(channels):
                    to = at + get(positions, vo + c) * channels + c
                    put(dx, to, get(dx, to) + get(dmost, c))
    keep(vectors)
    keep(border)
    keep(plane0)
    keep(plane1)
    keep(memory[0])
    keep(memory[1])
    keep(memory[2])
    keep(memory[3])


def _line(x: Tensor, n_weight: Tensor, n_bias: Tensor, stats: Tensor) -> Tensor:
    """Scale and shift of the norm."""
    scale = n_weight.double() * stats[1].double()
    return torch.cat([scale, n_bias.double() - scale * stats[0].double()]).to(x.dtype)


def _running(mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return torch.stack([mean, (var + eps).rsqrt(), var])


def _batch(moments: Array, pixels: int, eps: float, like: Tensor) -> Tensor:
    """Statistics (3, 1) from the images' means and squared deviations (N, 2)."""
    means, m2 = moments[:, 0], moments[:, 1]
    mean, count = means.mean(), len(moments) * pixels
    deviations = m2.sum() + pixels * ((means - mean) ** 2).sum()
    rows = [mean, 1 / np.sqrt(deviations / count + eps), deviations / max(count - 1, 1)]
    return torch.tensor(rows, dtype=like.dtype, device="cpu").view(3, 1)


def _run_forward(x: Tensor, mlp: _Tensors, spatial: _Tensors, eps: float, train: bool, batch_stats: bool) -> _Tensors:
    """Output, then what training keeps of the channel gate (2) and of the spatial gate (3)."""
    n, c, h, w = x.shape
    out, x, pixels = image(x, c, h, w), nhwc(x), h * w
    pooled = x.new_empty((3, n, c) if mlp else (3, 0))
    positions = x.new_empty((n, c) if mlp else 0, dtype=torch.int32)
    planes = x.new_empty((3, n, h, w) if spatial else (3, 0))
    channels = x.new_empty((n, h, w) if spatial and train else 0, dtype=torch.int32)
    stats = x.new_zeros((3, 1) if spatial else 0)
    moments, line = np.zeros((n if batch_stats else 0, 2)), None
    if spatial and not batch_stats:
        stats = _running(spatial[3], spatial[4], eps)
        line = _line(x, spatial[1], spatial[2], stats)
    if x.numel():
        work = 4 * x.numel()
        count = chunks(n, work)
        w1, b1, w2, b2 = (*_dense(*mlp[:3]), mlp[3].contiguous()) if mlp else (None,) * 4
        weight = spatial[0].contiguous() if spatial else None
        arrays = (
            out, *pooled[:2], positions, pooled[2], *planes, channels, moments, x, w1, b1, w2, b2, weight, line,
        )  # fmt: skip
        _forward(x.dtype, count, work, *arrays, n, count, h, w, c, weight.shape[3] if weight is not None else 1)
        if batch_stats:
            stats = _batch(moments, pixels, eps, x)
            line = _line(x, spatial[1], spatial[2], stats)
            _scale(x.dtype, count, work, out, pooled[2], planes[2], x, line, n, count, pixels, c)
    return out, *((pooled, positions) if mlp else ()), *((planes, channels, stats) if spatial else ())


def _dense(w1: Tensor, b1: Tensor, w2: Tensor) -> _Tensors:
    """The MLP's tensors, w2 as (H, C)."""
    return w1.contiguous(), b1.contiguous(), w2.T.contiguous()


def _merged(parts: Array) -> Array:
    """Sum over chunks, in order."""
    out = np.zeros(parts.shape[1])
    if parts.size:
        _passes.merge_parts(torch.float64, 1, parts.size, out, parts, 1)
    return out


def _tensors(values: Array, dtype: torch.dtype, *shapes: Any) -> _Tensors:
    """The flat values cut into tensors of these shapes."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(values, ends[:-1])
    return tuple(torch.from_numpy(v).to(dtype, copy=True).view(s) for v, s in zip(parts, shapes, strict=True))


def _norm_backward(sums: Array, stats: Tensor, n_weight: Tensor, count: int, batch_stats: bool) -> _Tensors:
    """Coefficients of t, y and 1 in the gradient of y; gradients of the norm's weight and bias."""
    mean, invstd, weight = (float(v) for v in (stats[0], stats[1], n_weight))
    both = _merged(sums)
    moment, plain = both[1] * invstd, both[0]
    slope = weight * invstd
    bend = slope * invstd * moment / count if batch_stats else 0.0
    offset = bend * mean - slope * plain / count if batch_stats else 0.0
    return _tensors(np.array([slope, -bend, offset, moment, plain]), stats.dtype, 3, 1, 1)


def _run_backward(
    dout: Tensor, x: Tensor, mlp: _Tensors, spatial: _Tensors, kept: _Tensors, batch_stats: bool, mask: list[bool]
) -> _Tensors:
    """Gradients of x, of the MLP's four tensors (b2 last) and of the spatial gate's three."""
    n, c, h, w = x.shape
    need_dx, need_mlp, need_spatial = mask
    dx = image(x, c, h, w) if need_dx else x.new_empty(0)
    dout, x, pixels, work = nhwc(dout), nhwc(x), h * w, 4 * x.numel()
    count = chunks(n, work)
    dense, units = _dense(*mlp) if mlp else (None,) * 3, mlp[1].numel() if mlp else 0
    pooled, positions = kept[:2] if mlp else ((None,) * 3, None)
    planes, channel, stats = kept[-3:] if spatial else ((None,) * 3, None, x)
    s = x.new_empty((n, pixels) if spatial else 0)
    t, sums, curve = torch.empty_like(s), np.zeros((n, 2)), None
    mlp_grads = np.zeros((count, c * (2 * units + 1) + units if mlp and need_mlp else 0))
    weight_grads = np.zeros((count, spatial[0].numel() if spatial and need_spatial else 0))
    d_norm: _Tensors = ()
    if spatial:
        if x.numel():
            line = _line(x, spatial[1], spatial[2], stats)
            _slope(x.dtype, count, work, s, t, sums, dout, x, pooled[2], planes[2], line, stats[0], n, count, pixels, c)
        curve, *params = _norm_backward(sums, stats, spatial[1], max(n * pixels, 1), batch_stats)
        d_norm = tuple(params)
    if x.numel():
        arrays = (
            dx, mlp_grads, weight_grads, dout, x, *pooled, positions, *planes, channel, s, t, curve, *dense,
            spatial[0].contiguous() if spatial else None,
        )  # fmt: skip
        _backward(x.dtype, count, work, *arrays, n, count, h, w, c, spatial[0].shape[3] if spatial else 1)
    d_mlp = tuple(x.new_empty(0) for _ in range(4 if mlp else 0))
    if mlp and need_mlp:
        d_w1, d_w2, d_b1, d_b2 = _tensors(_merged(mlp_grads), x.dtype, (units, c), (units, c), units, c)
        d_mlp = d_w1, d_b1, d_w2.T.contiguous(), d_b2
    d_spatial = tuple(x.new_empty(0) for _ in range(3 if spatial else 0))
    if spatial and need_spatial:
        d_spatial = (*_tensors(_merged(weight_grads), x.dtype, spatial[0].shape), *d_norm)
    return dx, *d_mlp, *d_spatial


def cbam(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """Output with running statistics."""
    spatial = (weight, n_weight, n_bias, n_mean, n_var)
    return _run_forward(x, (w1, b1, w2, b2), spatial, eps, False, False)[0]


def cbam_train(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float, batch_stats: bool,
) -> _Tensors:  # fmt: skip
    """Output, pooled, positions, planes, channels, statistics (see `fastfer.backends.reference.cbam`)."""
    spatial = (weight, n_weight, n_bias, n_mean, n_var)
    return _run_forward(x, (w1, b1, w2, b2), spatial, eps, True, batch_stats)


def cbam_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, positions: Tensor, planes: Tensor, channels: Tensor, stats: Tensor,
    w1: Tensor, b1: Tensor, w2: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor,
    batch_stats: bool, mask: list[bool],
) -> _Tensors:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2; weight, norm weight, norm bias. Those not asked for are empty."""
    kept = (pooled, positions, planes, channels, stats)
    return _run_backward(dout, x, (w1, b1, w2), (weight, n_weight, n_bias), kept, batch_stats, mask)


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Output."""
    return _run_forward(x, (w1, b1, w2, b2), (), 0.0, False, False)[0]


def channel_gate_train(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> _Tensors:
    """Output, pooled, positions."""
    return _run_forward(x, (w1, b1, w2, b2), (), 0.0, True, False)


def channel_gate_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, mask: list[bool]
) -> _Tensors:
    """Gradients of x; w1, b1, w2, b2."""
    need_dx, need_mlp = mask
    kept = (pooled, positions)
    return _run_backward(dout, x, (w1, b1, w2), (), kept, False, [need_dx, need_mlp, False])


def spatial_gate(
    x: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float
) -> Tensor:
    """Output with running statistics."""
    return _run_forward(x, (), (weight, n_weight, n_bias, n_mean, n_var), eps, False, False)[0]


def spatial_gate_train(
    x: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float,
    batch_stats: bool,
) -> _Tensors:  # fmt: skip
    """Output, planes, channels, statistics."""
    return _run_forward(x, (), (weight, n_weight, n_bias, n_mean, n_var), eps, True, batch_stats)


def spatial_gate_backward(
    dout: Tensor, x: Tensor, planes: Tensor, channels: Tensor, stats: Tensor, weight: Tensor, n_weight: Tensor,
    n_bias: Tensor, batch_stats: bool, mask: list[bool],
) -> _Tensors:  # fmt: skip
    """Gradients of x; weight, norm weight, norm bias."""
    need_dx, need_spatial = mask
    kept, spatial = (planes, channels, stats), (weight, n_weight, n_bias)
    masks = [need_dx, False, need_spatial]
    return _run_backward(dout, x, (), spatial, kept, batch_stats, masks)
