# SPDX-License-Identifier: Apache-2.0
"""CBAM and its two gates on Numba; NHWC, dense. Passes as in the native kernels, image by image.

What is summed over images is summed per chunk in float64, and chunks merge in order. An absent gate's tensors are None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastfer.backends.numba import _cbam, _passes
from fastfer.backends.numba._numba import Array, chunks, image, nhwc
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
    GatesGradients,
    KeptGates,
    Mlp,
    MlpKept,
    SpatialGate,
    SpatialGateBackward,
    SpatialGateGradients,
    SpatialGateTrain,
    SpatialGateTrained,
    SpatialLayers,
)
from fastfer.signatures.fields import Affine, RunningNorm

_Tensors = tuple[Tensor, ...]


class _Forward(NamedTuple):
    """The output, and what training keeps of the gates; of one that is not there empty tensors."""

    out: Tensor
    pooled: Tensor
    positions: Tensor
    planes: Tensor
    channels: Tensor
    stats: Tensor


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
    x: Tensor, mlp: Mlp | None, spatial: SpatialLayers | None, train: bool, batch_stats: bool = False
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
        _cbam.forward(x.dtype, count, work, *arrays, n, count, h, w, c, weight.shape[3] if weight is not None else 1)
        if spatial is not None and batch_stats:
            stats = _batch(moments, pixels, spatial.norm.eps, x)
            line = _line(x, spatial.norm, stats)
            _cbam.scale(x.dtype, count, work, out, pooled[2], planes[2], x, line, n, count, pixels, c)
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
    dout: Tensor, x: Tensor, kept: KeptGates, batch_stats: bool, need_x: bool, need_mlp: bool, need_spatial: bool
) -> GatesGradients:
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
            _cbam.slope(
                x.dtype, count, work, s, t, sums, dout, x, pooled[2], planes[2], line, mean, n, count, pixels, c
            )
        curve, d_norm_weight, d_norm_bias = _norm_backward(
            sums, kept.stats, norm.weight, max(n * pixels, 1), batch_stats
        )
    if x.numel():
        arrays = (
            dx, mlp_grads, weight_grads, dout, x, *pooled, kept.positions, *planes, kept.channels, s, t, curve, *dense,
            None if weight is None else weight.contiguous(),
        )  # fmt: skip
        _cbam.backward(x.dtype, count, work, *arrays, n, count, h, w, c, 1 if weight is None else weight.shape[3])
    d_mlp, d_spatial = (none, none, none, none), (none, none, none)
    if mlp is not None and need_mlp:
        d_w1, d_w2, d_b1, d_b2 = _tensors(_merged(mlp_grads), x.dtype, (units, c), (units, c), units, c)
        d_mlp = d_w1, d_b1, d_w2.T.contiguous(), d_b2
    if weight is not None and need_spatial:
        (d_weight,) = _tensors(_merged(weight_grads), x.dtype, weight.shape)
        d_spatial = d_weight, d_norm_weight, d_norm_bias
    return GatesGradients(dx, d_mlp, d_spatial)


def cbam(a: Cbam) -> Tensor:
    """Output with running statistics."""
    return _run_forward(a.x, a.mlp, SpatialLayers(a.weight, a.norm), False).out


def cbam_train(a: CbamTrain) -> CbamTrained:
    """Output, and what backward needs."""
    block = a.block
    return CbamTrained(*_run_forward(block.x, block.mlp, SpatialLayers(block.weight, block.norm), True, a.batch_stats))


def cbam_backward(a: CbamBackward) -> CbamGradients:
    """Gradients of x, of the MLP, of the convolution and of the norm."""
    kept = KeptGates(a.mlp, a.pooled, a.positions, a.weight, a.norm, a.planes, a.channels, a.stats)
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
    kept = KeptGates(mlp=a.mlp, pooled=a.pooled, positions=a.positions)
    grads = _run_backward(a.d_out, a.x, kept, False, a.needs.x, a.needs.params, False)
    return ChannelGateGradients(grads.x, *grads.mlp)


def spatial_gate(a: SpatialGate) -> Tensor:
    """Output with running statistics."""
    return _run_forward(a.x, None, SpatialLayers(a.weight, a.norm), False).out


def spatial_gate_train(a: SpatialGateTrain) -> SpatialGateTrained:
    """Output, planes, channels, statistics."""
    block = a.block
    made = _run_forward(block.x, None, SpatialLayers(block.weight, block.norm), True, a.batch_stats)
    return SpatialGateTrained(made.out, made.planes, made.channels, made.stats)


def spatial_gate_backward(a: SpatialGateBackward) -> SpatialGateGradients:
    """Gradients of x, of the convolution and of the norm."""
    kept = KeptGates(weight=a.weight, norm=a.norm, planes=a.planes, channels=a.channels, stats=a.stats)
    grads = _run_backward(a.d_out, a.x, kept, a.batch_stats, a.needs.x, False, a.needs.params)
    return SpatialGateGradients(grads.x, *grads.spatial)
