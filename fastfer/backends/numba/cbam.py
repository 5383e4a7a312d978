# SPDX-License-Identifier: Apache-2.0
"""CBAM and its two gates on Numba; NHWC, dense. Passes as in the native kernels, image by image.

What is summed over images is summed per chunk in float64, and chunks merge in order. An absent gate's tensors are None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
from fastfer.signatures.cbam import (
    Cbam,
    CbamBackward,
    CbamGradients,
    CbamTrain,
    CbamTrained,
    ChannelGate,
    ChannelGateBackward,
    ChannelGateGradients,
    ChannelGateTrained,
    Mlp,
    MlpKept,
    SpatialGate,
    SpatialGateBackward,
    SpatialGateGradients,
    SpatialGateTrain,
    SpatialGateTrained,
)
from fastfer.signatures.fields import Affine, RunningNorm

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


class _Spatial(NamedTuple):
    """The spatial gate's layers."""

    weight: Tensor
    norm: RunningNorm


class _Forward(NamedTuple):
    """The output, and what training keeps of the gates; of one that is not there empty tensors."""

    out: Tensor
    pooled: Tensor
    positions: Tensor
    planes: Tensor
    channels: Tensor
    stats: Tensor


class _Kept(NamedTuple):
    """What backward needs of the gates that there are, with their layers; else None."""

    mlp: MlpKept | None = None
    pooled: Tensor | None = None
    positions: Tensor | None = None
    weight: Tensor | None = None
    norm: Affine | None = None
    planes: Tensor | None = None
    channels: Tensor | None = None
    stats: Tensor | None = None


class _Gradients(NamedTuple):
    """Gradients; empty where not asked for, or where there is no such gate."""

    x: Tensor
    mlp: tuple[Tensor, Tensor, Tensor, Tensor]
    spatial: tuple[Tensor, Tensor, Tensor]


def _line(x: Tensor, norm: RunningNorm | Affine, stats: Tensor) -> Tensor:
    """Scale and shift of the norm."""
    scale = norm.weight.double() * stats[1].double()
    return torch.cat([scale, norm.bias.double() - scale * stats[0].double()]).to(x.dtype)


def _running(norm: RunningNorm) -> Tensor:
    return torch.stack([norm.mean, (norm.var + norm.eps).rsqrt(), norm.var])


def _batch(moments: Array, pixels: int, eps: float, like: Tensor) -> Tensor:
    """Statistics (3, 1) from the images' means and squared deviations (N, 2)."""
    means, m2 = moments[:, 0], moments[:, 1]
    mean, count = means.mean(), len(moments) * pixels
    deviations = m2.sum() + pixels * ((means - mean) ** 2).sum()
    rows = [mean, 1 / np.sqrt(deviations / count + eps), deviations / max(count - 1, 1)]
    return torch.tensor(rows, dtype=like.dtype, device="cpu").view(3, 1)


def _run_forward(
    x: Tensor, mlp: Mlp | None, spatial: _Spatial | None, train: bool, batch_stats: bool = False
) -> _Forward:
    n, c, h, w = x.shape
    out, x, pixels = image(x, c, h, w), nhwc(x), h * w
    pooled = x.new_empty((3, 0) if mlp is None else (3, n, c))
    positions = x.new_empty(0 if mlp is None else (n, c), dtype=torch.int32)
    planes = x.new_empty((3, 0) if spatial is None else (3, n, h, w))
    channels = x.new_empty((n, h, w) if spatial is not None and train else 0, dtype=torch.int32)
    stats = x.new_zeros(0 if spatial is None else (3, 1))
    moments, line = np.zeros((n if batch_stats else 0, 2)), None
    if spatial is not None and not batch_stats:
        stats = _running(spatial.norm)
        line = _line(x, spatial.norm, stats)
    if x.numel():
        work = 4 * x.numel()
        count = chunks(n, work)
        w1, b1, w2 = (None,) * 3 if mlp is None else _dense(mlp)
        b2 = None if mlp is None else mlp.b2.contiguous()
        weight = None if spatial is None else spatial.weight.contiguous()
        arrays = (
            out, *pooled[:2], positions, pooled[2], *planes, channels, moments, x, w1, b1, w2, b2, weight, line,
        )  # fmt: skip
        _forward(x.dtype, count, work, *arrays, n, count, h, w, c, weight.shape[3] if weight is not None else 1)
        if spatial is not None and batch_stats:
            stats = _batch(moments, pixels, spatial.norm.eps, x)
            line = _line(x, spatial.norm, stats)
            _scale(x.dtype, count, work, out, pooled[2], planes[2], x, line, n, count, pixels, c)
    return _Forward(out, pooled, positions, planes, channels, stats)


def _dense(mlp: Mlp | MlpKept) -> tuple[Tensor, Tensor, Tensor]:
    """The MLP's tensors but for the last bias, w2 as (H, C)."""
    return mlp.w1.contiguous(), mlp.b1.contiguous(), mlp.w2.T.contiguous()


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
    dout: Tensor, x: Tensor, kept: _Kept, batch_stats: bool, need_x: bool, need_mlp: bool, need_spatial: bool
) -> _Gradients:
    n, c, h, w = x.shape
    mlp, weight, norm = kept.mlp, kept.weight, kept.norm
    dx = image(x, c, h, w) if need_x else x.new_empty(0)
    dout, x, pixels, work = nhwc(dout), nhwc(x), h * w, 4 * x.numel()
    count = chunks(n, work)
    dense, units = ((None,) * 3, 0) if mlp is None else (_dense(mlp), mlp.b1.numel())
    pooled = (None,) * 3 if kept.pooled is None else tuple(kept.pooled)
    planes = (None,) * 3 if kept.planes is None else tuple(kept.planes)
    s = x.new_empty(0 if weight is None else (n, pixels))
    t, sums, curve = torch.empty_like(s), np.zeros((n, 2)), None
    mlp_grads = np.zeros((count, c * (2 * units + 1) + units if mlp is not None and need_mlp else 0))
    weight_grads = np.zeros((count, weight.numel() if weight is not None and need_spatial else 0))
    none = x.new_empty(0)
    d_norm_weight = d_norm_bias = none
    if norm is not None and kept.stats is not None:
        if x.numel():
            line, mean = _line(x, norm, kept.stats), kept.stats[0]
            _slope(x.dtype, count, work, s, t, sums, dout, x, pooled[2], planes[2], line, mean, n, count, pixels, c)
        curve, d_norm_weight, d_norm_bias = _norm_backward(
            sums, kept.stats, norm.weight, max(n * pixels, 1), batch_stats
        )
    if x.numel():
        arrays = (
            dx, mlp_grads, weight_grads, dout, x, *pooled, kept.positions, *planes, kept.channels, s, t, curve, *dense,
            None if weight is None else weight.contiguous(),
        )  # fmt: skip
        _backward(x.dtype, count, work, *arrays, n, count, h, w, c, 1 if weight is None else weight.shape[3])
    d_mlp, d_spatial = (none, none, none, none), (none, none, none)
    if mlp is not None and need_mlp:
        d_w1, d_w2, d_b1, d_b2 = _tensors(_merged(mlp_grads), x.dtype, (units, c), (units, c), units, c)
        d_mlp = d_w1, d_b1, d_w2.T.contiguous(), d_b2
    if weight is not None and need_spatial:
        (d_weight,) = _tensors(_merged(weight_grads), x.dtype, weight.shape)
        d_spatial = d_weight, d_norm_weight, d_norm_bias
    return _Gradients(dx, d_mlp, d_spatial)


def cbam(a: Cbam) -> Tensor:
    """Output with running statistics."""
    return _run_forward(a.x, a.mlp, _Spatial(a.weight, a.norm), False).out


def cbam_train(a: CbamTrain) -> CbamTrained:
    """Output, and what backward needs."""
    block = a.block
    return CbamTrained(*_run_forward(block.x, block.mlp, _Spatial(block.weight, block.norm), True, a.batch_stats))


def cbam_backward(a: CbamBackward) -> CbamGradients:
    """Gradients of x, of the MLP, of the convolution and of the norm."""
    kept = _Kept(a.mlp, a.pooled, a.positions, a.weight, a.norm, a.planes, a.channels, a.stats)
    grads = _run_backward(a.d_out, a.x, kept, a.batch_stats, a.needs.x, a.needs.channel, a.needs.spatial)
    return CbamGradients(grads.x, *grads.mlp, *grads.spatial)


def channel_gate(a: ChannelGate) -> Tensor:
    """Output."""
    return _run_forward(a.x, a.mlp, None, False).out


def channel_gate_train(a: ChannelGate) -> ChannelGateTrained:
    """Output, pooled, positions."""
    made = _run_forward(a.x, a.mlp, None, True)
    return ChannelGateTrained(made.out, made.pooled, made.positions)


def channel_gate_backward(a: ChannelGateBackward) -> ChannelGateGradients:
    """Gradients of x and of the MLP."""
    kept = _Kept(mlp=a.mlp, pooled=a.pooled, positions=a.positions)
    grads = _run_backward(a.d_out, a.x, kept, False, a.needs.x, a.needs.params, False)
    return ChannelGateGradients(grads.x, *grads.mlp)


def spatial_gate(a: SpatialGate) -> Tensor:
    """Output with running statistics."""
    return _run_forward(a.x, None, _Spatial(a.weight, a.norm), False).out


def spatial_gate_train(a: SpatialGateTrain) -> SpatialGateTrained:
    """Output, planes, channels, statistics."""
    block = a.block
    made = _run_forward(block.x, None, _Spatial(block.weight, block.norm), True, a.batch_stats)
    return SpatialGateTrained(made.out, made.planes, made.channels, made.stats)


def spatial_gate_backward(a: SpatialGateBackward) -> SpatialGateGradients:
    """Gradients of x, of the convolution and of the norm."""
    kept = _Kept(weight=a.weight, norm=a.norm, planes=a.planes, channels=a.channels, stats=a.stats)
    grads = _run_backward(a.d_out, a.x, kept, a.batch_stats, a.needs.x, False, a.needs.params)
    return SpatialGateGradients(grads.x, *grads.spatial)
