# SPDX-License-Identifier: Apache-2.0
"""CBAM and its two gates on the native kernels; NHWC, dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, nhwc
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
    SpatialGate,
    SpatialGateBackward,
    SpatialGateGradients,
    SpatialGateTrain,
    SpatialGateTrained,
    SpatialLayers,
)

_Kernel = Callable[[bool, _C.CbamParams], None]


class _Forward(NamedTuple):
    """The output, and what training keeps of the gates that there are; else None."""

    out: Tensor
    pooled: Tensor | None
    positions: Tensor | None
    planes: Tensor | None
    channels: Tensor | None
    stats: Tensor | None


def _forward(
    kernel: _Kernel, train: bool, x: Tensor, mlp: Mlp | None, spatial: SpatialLayers | None, batch_stats: bool = False
) -> _Forward:
    n, c, h, w = x.shape
    out = empty_nhwc(x, c, h, w)
    pooled = positions = planes = channels = stats = None
    if train and mlp is not None:
        pooled, positions = x.new_empty((3, n, c)), x.new_empty((n, c), dtype=torch.int32)
    if train and spatial is not None:
        planes, channels = x.new_empty((3, n, h, w)), x.new_empty((n, h, w), dtype=torch.int32)
        stats = x.new_empty((3, 1))
    norm = None if spatial is None else spatial.norm
    params = _C.CbamParams(
        n=n,
        h=h,
        w=w,
        c=c,
        hidden=0 if mlp is None else mlp.w1.shape[0],
        k=1 if spatial is None else spatial.weight.shape[3],
        x=nhwc(x),
        w1=None if mlp is None else mlp.w1.contiguous(),
        b1=None if mlp is None else mlp.b1.contiguous(),
        w2=None if mlp is None else mlp.w2.contiguous(),
        b2=None if mlp is None else mlp.b2.contiguous(),
        weight=None if spatial is None else spatial.weight.contiguous(),
        norm_weight=None if norm is None else norm.weight.contiguous(),
        norm_bias=None if norm is None else norm.bias.contiguous(),
        norm_mean=None if norm is None else norm.mean.contiguous(),
        norm_var=None if norm is None else norm.var.contiguous(),
        eps=0.0 if norm is None else norm.eps,
        batch_stats=batch_stats,
        out=out,
        pooled=pooled,
        positions=positions,
        planes=planes,
        channels=channels,
        stats=stats,
        threads=num_threads(),
    )
    kernel(x.dtype == torch.float64, params)
    return _Forward(out, pooled, positions, planes, channels, stats)


def _backward(
    kernel: _Kernel,
    dout: Tensor,
    x: Tensor,
    kept: KeptGates,
    batch_stats: bool,
    need_x: bool,
    need_mlp: bool,
    need_spatial: bool,
) -> GatesGradients:
    n, c, h, w = x.shape
    mlp, weight, norm = kept.mlp, kept.weight, kept.norm
    dx = empty_nhwc(x, c, h, w) if need_x else None

    def grad(t: Tensor | None, needed: bool) -> Tensor | None:
        return x.new_empty(t.shape) if needed and t is not None else None

    layers = (None, None, None) if mlp is None else tuple(t.contiguous() for t in mlp)
    w1, b1, w2 = layers
    d_w1, d_b1, d_w2 = grad(w1, need_mlp), grad(b1, need_mlp), grad(w2, need_mlp)
    d_b2 = x.new_empty(w2.shape[0]) if need_mlp and w2 is not None else None
    d_weight, d_norm_weight, d_norm_bias = (
        grad(t, need_spatial) for t in (weight, *((None, None) if norm is None else norm))
    )
    params = _C.CbamParams(
        n=n,
        h=h,
        w=w,
        c=c,
        hidden=0 if w1 is None else w1.shape[0],
        k=1 if weight is None else weight.shape[3],
        x=nhwc(x),
        w1=w1,
        b1=b1,
        w2=w2,
        weight=None if weight is None else weight.contiguous(),
        norm_weight=None if norm is None else norm.weight.contiguous(),
        norm_bias=None if norm is None else norm.bias.contiguous(),
        batch_stats=batch_stats,
        pooled=kept.pooled,
        positions=kept.positions,
        planes=kept.planes,
        channels=kept.channels,
        stats=kept.stats,
        dout=nhwc(dout),
        dx=dx,
        d_w1=d_w1,
        d_b1=d_b1,
        d_w2=d_w2,
        d_b2=d_b2,
        d_weight=d_weight,
        d_norm_weight=d_norm_weight,
        d_norm_bias=d_norm_bias,
        threads=num_threads(),
    )
    kernel(x.dtype == torch.float64, params)

    def made(t: Tensor | None) -> Tensor:
        return x.new_empty(0) if t is None else t

    return GatesGradients(
        made(dx),
        (made(d_w1), made(d_b1), made(d_w2), made(d_b2)),
        (made(d_weight), made(d_norm_weight), made(d_norm_bias)),
    )


def _there(t: Tensor | None) -> Tensor:
    assert t is not None
    return t


def cbam(a: Cbam) -> Tensor:
    """Output with running statistics."""
    return _forward(_C.cbam_fwd, False, a.x, a.mlp, SpatialLayers(a.weight, a.norm)).out


def cbam_train(a: CbamTrain) -> CbamTrained:
    """Output, and what backward needs."""
    block = a.block
    made = _forward(_C.cbam_train, True, block.x, block.mlp, SpatialLayers(block.weight, block.norm), a.batch_stats)
    return CbamTrained(*map(_there, made))


def cbam_backward(a: CbamBackward) -> CbamGradients:
    """Gradients of x, of the MLP, of the convolution and of the norm."""
    kept = KeptGates(a.mlp, a.pooled, a.positions, a.weight, a.norm, a.planes, a.channels, a.stats)
    needs = a.needs
    grads = _backward(_C.cbam_bwd, a.d_out, a.x, kept, a.batch_stats, needs.x, needs.channel, needs.spatial)
    return CbamGradients(grads.x, *grads.mlp, *grads.spatial)


def channel_gate(a: ChannelGate) -> Tensor:
    """Output."""
    return _forward(_C.channel_gate_fwd, False, a.x, a.mlp, None).out


def channel_gate_train(a: ChannelGate) -> ChannelGateTrained:
    """Output, pooled, positions."""
    made = _forward(_C.channel_gate_train, True, a.x, a.mlp, None)
    return ChannelGateTrained(made.out, _there(made.pooled), _there(made.positions))


def channel_gate_backward(a: ChannelGateBackward) -> ChannelGateGradients:
    """Gradients of x and of the MLP."""
    kept = KeptGates(mlp=a.mlp, pooled=a.pooled, positions=a.positions)
    grads = _backward(_C.channel_gate_bwd, a.d_out, a.x, kept, False, a.needs.x, a.needs.params, False)
    return ChannelGateGradients(grads.x, *grads.mlp)


def spatial_gate(a: SpatialGate) -> Tensor:
    """Output with running statistics."""
    return _forward(_C.spatial_gate_fwd, False, a.x, None, SpatialLayers(a.weight, a.norm)).out


def spatial_gate_train(a: SpatialGateTrain) -> SpatialGateTrained:
    """Output, planes, channels, statistics."""
    block = a.block
    made = _forward(_C.spatial_gate_train, True, block.x, None, SpatialLayers(block.weight, block.norm), a.batch_stats)
    return SpatialGateTrained(made.out, _there(made.planes), _there(made.channels), _there(made.stats))


def spatial_gate_backward(a: SpatialGateBackward) -> SpatialGateGradients:
    """Gradients of x, of the convolution and of the norm."""
    kept = KeptGates(weight=a.weight, norm=a.norm, planes=a.planes, channels=a.channels, stats=a.stats)
    grads = _backward(_C.spatial_gate_bwd, a.d_out, a.x, kept, a.batch_stats, a.needs.x, False, a.needs.params)
    return SpatialGateGradients(grads.x, *grads.spatial)
