# SPDX-License-Identifier: Apache-2.0
"""CBAM and its two gates on the native kernels; NHWC, dense."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastfer import _C
from fastfer.backend import num_threads
from fastfer.backends.native.memory import addresses, empty_nhwc, nhwc

_Tensors = tuple[Tensor, ...]
_NONE5 = [0] * 5


def _shape(x: Tensor, mlp: _Tensors, spatial: _Tensors) -> list[int]:
    """n, h, w, c, hidden, k."""
    n, c, h, w = x.shape
    return [n, h, w, c, mlp[0].shape[0] if mlp else 0, spatial[0].shape[3] if spatial else 1]


def _forward(
    kernel: Callable[..., None], train: bool, x: Tensor, mlp: _Tensors, spatial: _Tensors, eps: float, batch_stats: bool
) -> _Tensors:
    """Output, then what training keeps of the channel gate (2) and of the spatial gate (3)."""
    x = nhwc(x)
    mlp, spatial = tuple(t.contiguous() for t in mlp), tuple(t.contiguous() for t in spatial)
    n, c, h, w = x.shape
    out = empty_nhwc(x, c, h, w)
    saved = [0] * 5
    kept: _Tensors = ()
    if train and mlp:
        kept = (x.new_empty((3, n, c)), x.new_empty((n, c), dtype=torch.int32))
        saved[:2] = addresses(*kept)
    if train and spatial:
        planes = (x.new_empty((3, n, h, w)), x.new_empty((n, h, w), dtype=torch.int32), x.new_empty((3, 1)))
        saved[2:] = addresses(*planes)
        kept += planes
    channel = [x.data_ptr(), *(addresses(*mlp) if mlp else _NONE5[:4])]
    kernel(
        x.dtype == torch.float64, train, _shape(x, mlp, spatial), channel, addresses(*spatial) if spatial else _NONE5,
        eps, batch_stats, saved, out.data_ptr(), num_threads(),
    )  # fmt: skip
    return out, *kept


def _backward(
    kernel: Callable[..., None], dout: Tensor, x: Tensor, mlp: _Tensors, spatial: _Tensors, kept: _Tensors,
    batch_stats: bool, mask: list[bool],
) -> _Tensors:  # fmt: skip
    """Gradients of x, of the MLP's four tensors (b2 last) and of the spatial gate's three."""
    dout, x = nhwc(dout), nhwc(x)
    mlp, spatial = tuple(t.contiguous() for t in mlp), tuple(t.contiguous() for t in spatial)
    need_dx, need_mlp, need_spatial = mask
    dx = empty_nhwc(x, *x.shape[1:]) if need_dx else x.new_empty(0)
    like = (*mlp, mlp[2][:, 0]) if mlp else ()
    d_mlp = tuple(x.new_empty(t.shape if need_mlp else 0) for t in like)
    d_spatial = tuple(x.new_empty(t.shape if need_spatial else 0) for t in spatial)
    grads = [dx.data_ptr() if need_dx else 0, *_NONE5[:4], 0, 0, 0]
    if mlp and need_mlp:
        grads[1:5] = addresses(*d_mlp)
    if spatial and need_spatial:
        grads[5:] = addresses(*d_spatial)
    saved = [*(addresses(*kept[:2]) if mlp else (0, 0)), *(addresses(*kept[-3:]) if spatial else (0, 0, 0))]
    kernel(
        x.dtype == torch.float64, _shape(x, mlp, spatial), [x.data_ptr(), *(addresses(*mlp) if mlp else (0, 0, 0)), 0],
        [*(addresses(*spatial) if spatial else (0, 0, 0)), 0, 0], batch_stats, saved, dout.data_ptr(), grads,
        num_threads(),
    )  # fmt: skip
    return dx, *d_mlp, *d_spatial


def cbam(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """Output with running statistics."""
    spatial = (weight, n_weight, n_bias, n_mean, n_var)
    return _forward(_C.cbam_fwd, False, x, (w1, b1, w2, b2), spatial, eps, False)[0]


def cbam_train(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float, batch_stats: bool,
) -> _Tensors:  # fmt: skip
    """Output, pooled, positions, planes, channels, statistics (see `fastfer.backends.reference.cbam`)."""
    spatial = (weight, n_weight, n_bias, n_mean, n_var)
    return _forward(_C.cbam_fwd, True, x, (w1, b1, w2, b2), spatial, eps, batch_stats)


def cbam_backward(
    dout: Tensor, x: Tensor, pooled: Tensor, positions: Tensor, planes: Tensor, channels: Tensor, stats: Tensor,
    w1: Tensor, b1: Tensor, w2: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor,
    batch_stats: bool, mask: list[bool],
) -> _Tensors:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2; weight, norm weight, norm bias. Those not asked for are empty."""
    kept = (pooled, positions, planes, channels, stats)
    return _backward(_C.cbam_bwd, dout, x, (w1, b1, w2), (weight, n_weight, n_bias), kept, batch_stats, mask)


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Output."""
    return _forward(_C.channel_gate_fwd, False, x, (w1, b1, w2, b2), (), 0.0, False)[0]


def channel_gate_train(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> _Tensors:
    """Output, pooled, positions."""
    return _forward(_C.channel_gate_fwd, True, x, (w1, b1, w2, b2), (), 0.0, False)


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
    x: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float,
    batch_stats: bool,
) -> _Tensors:  # fmt: skip
    """Output, planes, channels, statistics."""
    return _forward(_C.spatial_gate_fwd, True, x, (), (weight, n_weight, n_bias, n_mean, n_var), eps, batch_stats)


def spatial_gate_backward(
    dout: Tensor, x: Tensor, planes: Tensor, channels: Tensor, stats: Tensor, weight: Tensor, n_weight: Tensor,
    n_bias: Tensor, batch_stats: bool, mask: list[bool],
) -> _Tensors:  # fmt: skip
    """Gradients of x; weight, norm weight, norm bias."""
    need_dx, need_spatial = mask
    kept, spatial = (planes, channels, stats), (weight, n_weight, n_bias)
    masks = [need_dx, False, need_spatial]
    return _backward(_C.spatial_gate_bwd, dout, x, (), spatial, kept, batch_stats, masks)
