# SPDX-License-Identifier: Apache-2.0
"""CBAM on CUDA tensors, NHWC; the functions and kept tensors of `backends.reference.cbam`, those in the compute dtype.

Forward reads x for everything the gates need, a block an image, and again to multiply; backward reads (dout, x) for the
pixels' sums, and again for the channels' and dx.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.backends.cuda import norm
from fastfer.backends.cuda.gate import layer_gradients
from fastfer.backends.cuda.loader import Launch, compute_dtype, lanes, nhwc, type_name
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
    SpatialLayers,
)
from fastfer.signatures.fields import Affine, RunningNorm

THREADS, IMAGE_THREADS = 256, 512
_RUN = 4  # csrc/cbam/cuda.cuh
_SIGMOID = ACTIVATIONS.index("sigmoid")


class _Channel(NamedTuple):
    """What the kernel of an image's gradients needs of the channel gate."""

    pooled: Tensor
    positions: Tensor
    mlp: MlpKept


class _Pixels(NamedTuple):
    """What it needs of the spatial gate: s (N, H, W), the maximum's channel, gradients of the two planes."""

    s: Tensor
    channels: Tensor
    d_planes: Tensor


def _gates(launch: Launch, x: Tensor, mlp: Mlp | None, spatial: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pooled (3, N, C), positions; planes (3, N, H, W), the third yet to fill, channels. Not asked for: empty."""
    (n, c, h, w), dtype = x.shape, compute_dtype(x)
    pooled = torch.empty((3, n, c) if mlp else 0, dtype=dtype, device=x.device)
    positions = torch.empty((n, c) if mlp else 0, dtype=torch.int32, device=x.device)
    planes = torch.empty((3, n, h, w) if spatial else 0, dtype=dtype, device=x.device)
    channels = torch.empty((n, h, w) if spatial else 0, dtype=torch.int32, device=x.device)
    layers = tuple(t.contiguous() for t in mlp) if mlp else (0, 0, 0, 0)
    targets = (pooled, positions, planes if spatial else 0, channels)
    name, hidden = f"cbam_gates<{type_name('cbam', x)}, {IMAGE_THREADS}>", mlp.w1.shape[0] if mlp else 0
    launch(name, x, (n, 1, 1), IMAGE_THREADS, x, *layers, *targets, n, h * w, c, hidden)
    return pooled, positions, planes, channels


def _convolve(launch: Launch, planes: Tensor, weight: Tensor, target: Tensor, flip: bool) -> None:
    """Two planes (2, N, H, W) to one (N, H, W), or, transposed, back."""
    n, h, w = target.shape[-3:]
    size = weight.shape[-1]
    name = f"cbam_conv<{type_name('cbam', planes)}, {7 if size == 7 else 0}, {str(flip).lower()}, {THREADS}>"
    items = n * h * -(-w // _RUN) * (2 if flip else 1)
    launch.strided(name, planes, items, THREADS, planes, weight.contiguous(), target, n, h, w, size)


def _apply(launch: Launch, x: Tensor, gates: Tensor | None, spatial: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    vec = lanes(x, out)
    vec = 1 if x.shape[1] % vec else vec
    name = f"cbam_apply<{type_name('cbam', x)}, {vec}, {THREADS}>"
    factors = (0 if gates is None else gates, 0 if spatial is None else spatial)
    count = x.numel() // vec
    launch.strided(name, x, count, THREADS, x, *factors, out, count, x.shape[2] * x.shape[3], x.shape[1])
    return out


def _spatial(launch: Launch, y: Tensor, affine: RunningNorm | Affine, stats: Tensor | None) -> Tensor:
    """s (N, H, W)."""
    return norm.norm_act(launch, y[:, None], affine, stats, _SIGMOID)[:, 0]


def channel_gate_train(launch: Launch, a: ChannelGate) -> ChannelGateTrained:
    """x · g, pooled, positions."""
    x = nhwc(a.x)
    pooled, positions, *_ = _gates(launch, x, a.mlp, False)
    return ChannelGateTrained(_apply(launch, x, pooled[2], None), pooled, positions)


def channel_gate(launch: Launch, a: ChannelGate) -> Tensor:
    """x · g."""
    return channel_gate_train(launch, a).out


def _train(
    launch: Launch, x: Tensor, mlp: Mlp | None, spatial: SpatialLayers, batch_stats: bool, training: bool = True
) -> CbamTrained:
    """What training keeps; in inference without statistics: the norm reads the running ones."""
    x = nhwc(x)
    pooled, positions, planes, channels = _gates(launch, x, mlp, True)
    _convolve(launch, planes[:2], spatial.weight, planes[2], False)
    stats = norm.norm_statistics(launch, planes[2][:, None], spatial.norm, batch_stats) if training else None
    gate = _spatial(launch, planes[2], spatial.norm, stats)
    out = _apply(launch, x, pooled[2] if mlp else None, gate)
    return CbamTrained(out, pooled, positions, planes, channels, x.new_empty(0) if stats is None else stats)


def spatial_gate_train(launch: Launch, a: SpatialGateTrain) -> SpatialGateTrained:
    """x · s, planes, channels, stats."""
    block = a.block
    made = _train(launch, block.x, None, SpatialLayers(block.weight, block.norm), a.batch_stats)
    return SpatialGateTrained(made.out, made.planes, made.channels, made.stats)


def spatial_gate(launch: Launch, a: SpatialGate) -> Tensor:
    """x · s with running statistics."""
    return _train(launch, a.x, None, SpatialLayers(a.weight, a.norm), False, False).out


def cbam_train(launch: Launch, a: CbamTrain) -> CbamTrained:
    """out, pooled, positions, planes, channels, stats."""
    block = a.block
    return _train(launch, block.x, block.mlp, SpatialLayers(block.weight, block.norm), a.batch_stats)


def cbam(launch: Launch, a: Cbam) -> Tensor:
    """out with running statistics."""
    return _train(launch, a.x, a.mlp, SpatialLayers(a.weight, a.norm), False, False).out


def _backward_image(
    launch: Launch,
    dout: Tensor,
    x: Tensor,
    channel: _Channel | None,
    pixels: _Pixels | None,
    need_x: bool,
    need_mlp: bool,
) -> ChannelGateGradients:
    """Gradients of x and of the MLP."""
    n, c, h, w = x.shape
    none = x.new_empty(0)
    dx = torch.empty_like(x) if need_x else none
    hidden = channel.mlp.w1.shape[0] if channel else 0
    scratch = [
        torch.empty(size, dtype=compute_dtype(x), device=x.device)
        for size in ((n, c), (2 * n, hidden), (n, hidden), (2, n, c) if channel else 0)
    ]
    name = f"cbam_bwd<{type_name('cbam', x)}, {IMAGE_THREADS}>"
    gate: tuple[Tensor | int, ...] = (0,) * 5
    if channel:
        gate = (channel.pooled, channel.positions, *(t.contiguous() for t in channel.mlp))
    inputs = (*gate, *(pixels or (0,) * 3), dx if need_x else 0)
    launch(name, x, (n, 1, 1), IMAGE_THREADS, dout, x, *inputs, *scratch, n, h * w, c, hidden)
    if not channel or not need_mlp:
        return ChannelGateGradients(dx, none, none, none, none)
    dz, dh, sums, _ = scratch
    made = layer_gradients(launch, dh, channel.pooled[:2].flatten(0, 1), dz, sums, 2.0)
    return ChannelGateGradients(dx, *made)


def _backward_planes(
    launch: Launch,
    dout: Tensor,
    x: Tensor,
    gates: Tensor | None,
    planes: Tensor,
    stats: Tensor,
    weight: Tensor,
    affine: Affine,
    batch_stats: bool,
    need_params: bool,
) -> SpatialGateGradients:
    """Gradients of the two planes (2, N, H, W), in place of x's; weight, norm weight, norm bias."""
    n, c, h, w = x.shape
    dots = torch.empty((n, 1, h, w), dtype=planes.dtype, device=x.device)
    name, factor = f"pixel_dots<{type_name('cbam', x)}, {IMAGE_THREADS}>", 0 if gates is None else gates
    launch(name, x, (n, 1, 1), IMAGE_THREADS, dout, x, factor, dots, h * w, c)
    dy, *d_norm = norm.norm_act_backward(launch, dots, planes[2][:, None], affine, stats, _SIGMOID, batch_stats)
    dplanes = torch.empty((2, n, h, w), dtype=planes.dtype, device=x.device)
    _convolve(launch, dy[:, 0], weight, dplanes, True)
    if not need_params:
        none = x.new_empty(0)
        return SpatialGateGradients(dplanes, none, none, none)
    size = weight.shape[-1]
    partial = torch.empty((n, 2, size * size), dtype=planes.dtype, device=x.device)
    name = f"cbam_conv_weight<{type_name('cbam', planes)}, {THREADS}>"
    launch(name, x, (n, 1, 1), THREADS, planes, dy, partial, n, h, w, size)
    return SpatialGateGradients(dplanes, norm.total(launch, partial).view(weight.shape), *d_norm)


def channel_gate_backward(launch: Launch, a: ChannelGateBackward) -> ChannelGateGradients:
    """Gradients of x and of the MLP."""
    channel = _Channel(a.pooled, a.positions, a.mlp)
    return _backward_image(launch, nhwc(a.d_out), nhwc(a.x), channel, None, a.needs.x, a.needs.params)


def spatial_gate_backward(launch: Launch, a: SpatialGateBackward) -> SpatialGateGradients:
    """Gradients of x, of the convolution and of the norm."""
    dout, x, dx = nhwc(a.d_out), nhwc(a.x), a.x.new_empty(0)
    made = _backward_planes(launch, dout, x, None, a.planes, a.stats, a.weight, a.norm, a.batch_stats, a.needs.params)
    if a.needs.x:
        pixels = _Pixels(_spatial(launch, a.planes[2], a.norm, a.stats), a.channels, made.d_x)
        dx = _backward_image(launch, dout, x, None, pixels, True, False).d_x
    return made._replace(d_x=dx)


def cbam_backward(launch: Launch, a: CbamBackward) -> CbamGradients:
    """Gradients of x, of the MLP, of the convolution and of the norm."""
    dout, x, needs = nhwc(a.d_out), nhwc(a.x), a.needs
    made = _backward_planes(
        launch, dout, x, a.pooled[2], a.planes, a.stats, a.weight, a.norm, a.batch_stats, needs.spatial
    )
    pixels = _Pixels(_spatial(launch, a.planes[2], a.norm, a.stats), a.channels, made.d_x)
    channel = _backward_image(launch, dout, x, _Channel(a.pooled, a.positions, a.mlp), pixels, needs.x, needs.channel)
    return CbamGradients(*channel, made.d_weight, made.d_norm_weight, made.d_norm_bias)
