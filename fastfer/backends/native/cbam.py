# SPDX-License-Identifier: Apache-2.0
"""CBAM and its two gates on the native kernels; NHWC, dense."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import empty_nhwc, nhwc

_Tensors = tuple[Tensor, ...]
_Kernel = Callable[[bool, _C.CbamParams], None]


def _hidden(mlp: _Tensors) -> int:
    return mlp[0].shape[0] if mlp else 0


def _size(spatial: _Tensors) -> int:
    """Of the spatial gate's square kernel."""
    return spatial[0].shape[3] if spatial else 1


def _forward(
    kernel: _Kernel, train: bool, x: Tensor, mlp: _Tensors, spatial: _Tensors, eps: float, batch_stats: bool
) -> _Tensors:
    """Output, then what training keeps of the channel gate (2) and of the spatial gate (3)."""
    n, c, h, w = x.shape
    out = empty_nhwc(x, c, h, w)
    w1, b1, w2, b2 = (t.contiguous() for t in mlp) if mlp else (None,) * 4
    weight, n_weight, n_bias, n_mean, n_var = (t.contiguous() for t in spatial) if spatial else (None,) * 5
    pooled = positions = planes = channels = stats = None
    if train and mlp:
        pooled, positions = x.new_empty((3, n, c)), x.new_empty((n, c), dtype=torch.int32)
    if train and spatial:
        planes, channels = x.new_empty((3, n, h, w)), x.new_empty((n, h, w), dtype=torch.int32)
        stats = x.new_empty((3, 1))
    params = _C.CbamParams(
        n=n,
        h=h,
        w=w,
        c=c,
        hidden=_hidden(mlp),
        k=_size(spatial),
        x=nhwc(x),
        w1=w1,
        b1=b1,
        w2=w2,
        b2=b2,
        weight=weight,
        norm_weight=n_weight,
        norm_bias=n_bias,
        norm_mean=n_mean,
        norm_var=n_var,
        eps=eps,
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
    kept = (pooled, positions, planes, channels, stats)
    return out, *(t for t in kept if t is not None)


def _backward(
    kernel: _Kernel,
    dout: Tensor,
    x: Tensor,
    mlp: _Tensors,
    spatial: _Tensors,
    kept: _Tensors,
    batch_stats: bool,
    mask: list[bool],
) -> _Tensors:
    """Gradients of x, of the MLP's four tensors (b2 last) and of the spatial gate's three."""
    need_dx, need_mlp, need_spatial = mask
    n, c, h, w = x.shape
    w1, b1, w2 = (t.contiguous() for t in mlp) if mlp else (None,) * 3
    weight, n_weight, n_bias = (t.contiguous() for t in spatial) if spatial else (None,) * 3
    pooled, positions = kept[:2] if mlp else (None, None)
    planes, channels, stats = kept[-3:] if spatial else (None, None, None)
    dx = empty_nhwc(x, c, h, w) if need_dx else None

    def grad(t: Tensor | None, needed: bool) -> Tensor | None:
        return x.new_empty(t.shape) if needed and t is not None else None

    d_w1, d_b1, d_w2 = grad(w1, need_mlp), grad(b1, need_mlp), grad(w2, need_mlp)
    d_b2 = x.new_empty(w2.shape[0]) if need_mlp and w2 is not None else None
    d_weight, d_n_weight, d_n_bias = (grad(t, need_spatial) for t in (weight, n_weight, n_bias))
    params = _C.CbamParams(
        n=n,
        h=h,
        w=w,
        c=c,
        hidden=_hidden(mlp),
        k=_size(spatial),
        x=nhwc(x),
        w1=w1,
        b1=b1,
        w2=w2,
        weight=weight,
        norm_weight=n_weight,
        norm_bias=n_bias,
        batch_stats=batch_stats,
        pooled=pooled,
        positions=positions,
        planes=planes,
        channels=channels,
        stats=stats,
        dout=nhwc(dout),
        dx=dx,
        d_w1=d_w1,
        d_b1=d_b1,
        d_w2=d_w2,
        d_b2=d_b2,
        d_weight=d_weight,
        d_norm_weight=d_n_weight,
        d_norm_bias=d_n_bias,
        threads=num_threads(),
    )
    kernel(x.dtype == torch.float64, params)
    grads = (dx, *((d_w1, d_b1, d_w2, d_b2) if mlp else ()), *((d_weight, d_n_weight, d_n_bias) if spatial else ()))
    return tuple(x.new_empty(0) if t is None else t for t in grads)


def cbam(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    weight: Tensor,
    n_weight: Tensor,
    n_bias: Tensor,
    n_mean: Tensor,
    n_var: Tensor,
    eps: float,
) -> Tensor:
    """Output with running statistics."""
    spatial = (weight, n_weight, n_bias, n_mean, n_var)
    return _forward(_C.cbam_fwd, False, x, (w1, b1, w2, b2), spatial, eps, False)[0]


def cbam_train(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    weight: Tensor,
    n_weight: Tensor,
    n_bias: Tensor,
    n_mean: Tensor,
    n_var: Tensor,
    eps: float,
    batch_stats: bool,
) -> _Tensors:
    """Output, pooled, positions, planes, channels, statistics (see `fastfer.backends.reference.cbam`)."""
    spatial = (weight, n_weight, n_bias, n_mean, n_var)
    return _forward(_C.cbam_train, True, x, (w1, b1, w2, b2), spatial, eps, batch_stats)


def cbam_backward(
    dout: Tensor,
    x: Tensor,
    pooled: Tensor,
    positions: Tensor,
    planes: Tensor,
    channels: Tensor,
    stats: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    weight: Tensor,
    n_weight: Tensor,
    n_bias: Tensor,
    batch_stats: bool,
    mask: list[bool],
) -> _Tensors:
    """Gradients of x; w1, b1, w2, b2; weight, norm weight, norm bias. Those not asked for are empty."""
    kept = (pooled, positions, planes, channels, stats)
    return _backward(_C.cbam_bwd, dout, x, (w1, b1, w2), (weight, n_weight, n_bias), kept, batch_stats, mask)


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Output."""
    return _forward(_C.channel_gate_fwd, False, x, (w1, b1, w2, b2), (), 0.0, False)[0]


def channel_gate_train(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> _Tensors:
    """Output, pooled, positions."""
    return _forward(_C.channel_gate_train, True, x, (w1, b1, w2, b2), (), 0.0, False)


def channel_gate_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, mask: list[bool]
) -> _Tensors:
    """Gradients of x; w1, b1, w2, b2."""
    need_dx, need_mlp = mask
    kept = (pooled, positions)
    return _backward(_C.channel_gate_bwd, dout, x, (w1, b1, w2), (), kept, False, [need_dx, need_mlp, False])


def spatial_gate(
    x: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float
) -> Tensor:
    """Output with running statistics."""
    return _forward(_C.spatial_gate_fwd, False, x, (), (weight, n_weight, n_bias, n_mean, n_var), eps, False)[0]


def spatial_gate_train(
    x: Tensor,
    weight: Tensor,
    n_weight: Tensor,
    n_bias: Tensor,
    n_mean: Tensor,
    n_var: Tensor,
    eps: float,
    batch_stats: bool,
) -> _Tensors:
    """Output, planes, channels, statistics."""
    return _forward(_C.spatial_gate_train, True, x, (), (weight, n_weight, n_bias, n_mean, n_var), eps, batch_stats)


def spatial_gate_backward(
    dout: Tensor,
    x: Tensor,
    planes: Tensor,
    channels: Tensor,
    stats: Tensor,
    weight: Tensor,
    n_weight: Tensor,
    n_bias: Tensor,
    batch_stats: bool,
    mask: list[bool],
) -> _Tensors:
    """Gradients of x; weight, norm weight, norm bias."""
    need_dx, need_spatial = mask
    kept, spatial = (planes, channels, stats), (weight, n_weight, n_bias)
    masks = [need_dx, False, need_spatial]
    return _backward(_C.spatial_gate_bwd, dout, x, (), spatial, kept, batch_stats, masks)
