# SPDX-License-Identifier: Apache-2.0
"""Convolutional block attention: the channel gate, the spatial gate, and both one after the other, each as one op.

out = x · g · s with g (N, C) from the poolings of x over pixels, s (N, H, W) from those of x · g over channels.
Saved for backward, in float32: x, 16 bytes a channel of an image (mean, maximum and its pixel, g) and 16 a pixel
(maximum and its channel, mean, convolution): at 8 channels of 48×48 half of x, at 128 of 6×6 a tenth. x · g, its
gradient and the gates' planes of gradients are recomputed: backward reads x and the output's gradient twice, the second
time (and without batch statistics the first) image by image in cache, and writes dx.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.norm import Norm, check_batch, running_norm, update_running
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

_CL = torch.channels_last


def _image(x: Tensor) -> Tensor:
    return x.new_empty(x.shape).contiguous(memory_format=_CL)


def _fake(a: Cbam | ChannelGate | SpatialGate) -> Tensor:
    return _image(a.x)


def _fake_channel_train(a: ChannelGate | Cbam) -> ChannelGateTrained:
    x = a.x
    return ChannelGateTrained(_image(x), x.new_empty((3, *x.shape[:2])), x.new_empty(x.shape[:2], dtype=torch.int32))


def _fake_spatial_kept(x: Tensor) -> SpatialGateTrained:
    n, _, h, w = x.shape
    planes, channels = x.new_empty((3, n, h, w)), x.new_empty((n, h, w), dtype=torch.int32)
    return SpatialGateTrained(_image(x), planes, channels, x.new_empty((3, 1)))


def _fake_spatial_train(a: SpatialGateTrain) -> SpatialGateTrained:
    return _fake_spatial_kept(a.block.x)


def _fake_cbam_train(a: CbamTrain) -> CbamTrained:
    channel, spatial = _fake_channel_train(a.block), _fake_spatial_kept(a.block.x)
    return CbamTrained(*channel, spatial.planes, spatial.channels, spatial.stats)


def _grad(t: Tensor, wanted: bool) -> Tensor:
    return t.new_empty(t.shape if wanted else 0)


def _mlp_grads(mlp: MlpKept, wanted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_b2 = mlp.w2.new_empty(mlp.w2.shape[0] if wanted else 0)
    return _grad(mlp.w1, wanted), _grad(mlp.b1, wanted), _grad(mlp.w2, wanted), d_b2


def _spatial_grads(weight: Tensor, norm: Affine, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _grad(weight, wanted), _grad(norm.weight, wanted), _grad(norm.bias, wanted)


def _x_grad(x: Tensor, wanted: bool) -> Tensor:
    return _image(x) if wanted else x.new_empty(0)


def _fake_channel_backward(a: ChannelGateBackward) -> ChannelGateGradients:
    return ChannelGateGradients(_x_grad(a.x, a.needs.x), *_mlp_grads(a.mlp, a.needs.params))


def _fake_spatial_backward(a: SpatialGateBackward) -> SpatialGateGradients:
    return SpatialGateGradients(_x_grad(a.x, a.needs.x), *_spatial_grads(a.weight, a.norm, a.needs.params))


def _fake_cbam_backward(a: CbamBackward) -> CbamGradients:
    mlp, spatial = _mlp_grads(a.mlp, a.needs.channel), _spatial_grads(a.weight, a.norm, a.needs.spatial)
    return CbamGradients(_x_grad(a.x, a.needs.x), *mlp, *spatial)


_cbam = _library.define("cbam", "cbam", Cbam, Tensor, _fake)
_cbam_train = _library.define("cbam_train", "cbam", CbamTrain, CbamTrained, _fake_cbam_train)
_cbam_backward = _library.define("cbam_backward", "cbam", CbamBackward, CbamGradients, _fake_cbam_backward)
_channel = _library.define("channel_gate", "cbam", ChannelGate, Tensor, _fake)
_channel_train = _library.define("channel_gate_train", "cbam", ChannelGate, ChannelGateTrained, _fake_channel_train)
_channel_backward = _library.define(
    "channel_gate_backward", "cbam", ChannelGateBackward, ChannelGateGradients, _fake_channel_backward
)
_spatial = _library.define("spatial_gate", "cbam", SpatialGate, Tensor, _fake)
_spatial_train = _library.define(
    "spatial_gate_train", "cbam", SpatialGateTrain, SpatialGateTrained, _fake_spatial_train
)
_spatial_backward = _library.define(
    "spatial_gate_backward", "cbam", SpatialGateBackward, SpatialGateGradients, _fake_spatial_backward
)
_library.autograd(_cbam_train, _cbam_backward)
_library.autograd(_channel_train, _channel_backward)
_library.autograd(_spatial_train, _spatial_backward)
for _op in (_cbam, _cbam_train, _channel, _channel_train, _spatial, _spatial_train):
    _library.autocast(_op)


def _check_input(op: str, x: Tensor) -> None:
    _checks.image(op, "x", x)
    if min(x.shape[1:]) == 0:
        raise ValueError(f"{op}: x: expected C, H and W >= 1, got shape {tuple(x.shape)}")


def _checked_mlp(op: str, x: Tensor, mlp: Mlp) -> Mlp:
    channels = x.shape[1]
    if _checks.is_tensor(op, "w1", mlp.w1).dim() != 2:
        raise ValueError(f"{op}: w1: expected 2 dimensions (H, C), got shape {tuple(mlp.w1.shape)}")
    hidden = mlp.w1.shape[0]
    _checks.like(op, "w1", mlp.w1, x, (hidden, channels))
    _checks.like(op, "b1", mlp.b1, x, (hidden,))
    _checks.like(op, "w2", mlp.w2, x, (channels, hidden))
    _checks.like(op, "b2", mlp.b2, x, (channels,))
    return mlp


def _checked_norm(op: str, x: Tensor, weight: Tensor, norm: Norm, name: str, training: bool) -> RunningNorm:
    """The norm's fields, after a look at the convolution's weight, too."""
    _checks.is_tensor(op, "spatial_weight", weight)
    size = weight.shape[-1] if weight.dim() else 0
    if size % 2 == 0:
        raise ValueError(f"{op}: spatial_weight: expected shape (1, 2, K, K) with K odd, got {tuple(weight.shape)}")
    _checks.like(op, "spatial_weight", weight, x, (1, 2, size, size))
    fields = running_norm(op, name, norm, x, 1)
    assert fields is not None
    if training:
        check_batch(op, x.shape)
    return fields


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x · sigmoid(mlp(mean) + mlp(max)), the two poolings over (H, W): x (N, C, H, W) -> the same shape, channels_last.

    mlp(v) = w2 · relu(w1 · v + b1) + b2 with w1 (H, C), b1 (H,), w2 (C, H), b2 (C,), H hidden units.
    """
    _check_input("channel_gate", x)
    fields = ChannelGate(x, _checked_mlp("channel_gate", x, Mlp(w1, b1, w2, b2)))
    return _channel_train(fields).out if _channel_train.needs_gradient(fields) else _channel(fields)


def spatial_gate(x: Tensor, spatial_weight: Tensor, norm: Norm, *, training: bool = False) -> Tensor:
    """x · sigmoid(norm(conv([max_c; mean_c]))): x (N, C, H, W) -> the same shape, channels_last.

    spatial_weight (1, 2, K, K), K odd (7 in CBAM), "same" padding; norm over one channel, ``training`` as `batch_norm`.
    """
    _check_input("spatial_gate", x)
    fields = SpatialGate(x, spatial_weight, _checked_norm("spatial_gate", x, spatial_weight, norm, "norm", training))
    if not training and not _spatial.needs_gradient(fields):
        return _spatial(fields)
    trained = _spatial_train(SpatialGateTrain(fields, training))
    if training and trained.out.numel():
        update_running(norm, trained.stats)
    return trained.out


def cbam(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    spatial_weight: Tensor,
    spatial_norm: Norm,
    *,
    training: bool = False,
) -> Tensor:
    """spatial_gate(channel_gate(x)): x (N, C, H, W) -> the same shape, channels_last (Woo et al. 2018).

    Arguments as in `channel_gate` and `spatial_gate`. TypeError or ValueError for a wrong dtype, device or shape.
    """
    _check_input("cbam", x)
    mlp = _checked_mlp("cbam", x, Mlp(w1, b1, w2, b2))
    norm = _checked_norm("cbam", x, spatial_weight, spatial_norm, "spatial_norm", training)
    fields = Cbam(x, mlp, spatial_weight, norm)
    if not training and not _cbam.needs_gradient(fields):
        return _cbam(fields)
    trained = _cbam_train(CbamTrain(fields, training))
    if training and trained.out.numel():
        update_running(spatial_norm, trained.stats)
    return trained.out
