# SPDX-License-Identifier: Apache-2.0
"""CBAM on CUDA tensors, NHWC; the functions and kept tensors of `backends.reference.cbam`, those in the compute dtype.

Forward reads x for everything the gates need, a block an image, and again to multiply; backward reads (dout, x) for the
pixels' sums, and again for the channels' and dx.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, compute_dtype, lanes, nhwc, type_name
from fastfer.backends.cuda.separable_conv import PLAIN, product_backward
from fastfer.signatures.separable_conv import ConvNeeds

THREADS, IMAGE_THREADS = 256, 512
_RUN = 4  # csrc/cbam/cuda.cuh
_SIGMOID = ACTIVATIONS.index("sigmoid")

_Mlp = tuple[Tensor, Tensor, Tensor, Tensor]


def _gates(launch: Launch, x: Tensor, mlp: _Mlp | None, spatial: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pooled (3, N, C), positions; planes (3, N, H, W), the third yet to fill, channels. Not asked for: empty."""
    (n, c, h, w), dtype = x.shape, compute_dtype(x)
    pooled = torch.empty((3, n, c) if mlp else 0, dtype=dtype, device=x.device)
    positions = torch.empty((n, c) if mlp else 0, dtype=torch.int32, device=x.device)
    planes = torch.empty((3, n, h, w) if spatial else 0, dtype=dtype, device=x.device)
    channels = torch.empty((n, h, w) if spatial else 0, dtype=torch.int32, device=x.device)
    layers: tuple[Tensor | int, ...] = mlp or (0, 0, 0, 0)
    targets = (pooled, positions, planes if spatial else 0, channels)
    name, hidden = f"cbam_gates<{type_name('cbam', x)}, {IMAGE_THREADS}>", mlp[0].shape[0] if mlp else 0
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


def _spatial(launch: Launch, y: Tensor, n_weight: Tensor, n_bias: Tensor, stats: Tensor) -> Tensor:
    """s (N, H, W)."""
    return norm.norm_act(launch, y[:, None], n_weight, n_bias, stats, _SIGMOID)[:, 0]


def channel_gate_train(
    launch: Launch, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x · g, pooled, positions."""
    x = nhwc(x)
    pooled, positions, *_ = _gates(launch, x, (w1, b1, w2, b2), False)
    return _apply(launch, x, pooled[2], None), pooled, positions


def channel_gate(launch: Launch, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x · g."""
    return channel_gate_train(launch, x, w1, b1, w2, b2)[0]


def _train(
    launch: Launch, x: Tensor, mlp: _Mlp | None, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor,
    n_var: Tensor, eps: float, batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    x = nhwc(x)
    pooled, positions, planes, channels = _gates(launch, x, mlp, True)
    _convolve(launch, planes[:2], weight, planes[2], False)
    stats = norm.statistics(launch, planes[2][:, None], n_mean, n_var, eps, batch_stats)
    gate = _spatial(launch, planes[2], n_weight, n_bias, stats)
    out = _apply(launch, x, pooled[2] if mlp else None, gate)
    return out, pooled, positions, planes, channels, stats


def spatial_gate_train(
    launch: Launch, x: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor,
    eps: float, batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x · s, planes, channels, stats."""
    out, _, _, *kept = _train(launch, x, None, weight, n_weight, n_bias, n_mean, n_var, eps, batch_stats)
    return out, *kept


def spatial_gate(
    launch: Launch, x: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor,
    eps: float,
) -> Tensor:  # fmt: skip
    """x · s with running statistics."""
    return _train(launch, x, None, weight, n_weight, n_bias, n_mean, n_var, eps, False)[0]


def cbam_train(
    launch: Launch, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float, batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """out, pooled, positions, planes, channels, stats."""
    return _train(launch, x, (w1, b1, w2, b2), weight, n_weight, n_bias, n_mean, n_var, eps, batch_stats)


def cbam(
    launch: Launch, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, n_mean: Tensor, n_var: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """out with running statistics."""
    return _train(launch, x, (w1, b1, w2, b2), weight, n_weight, n_bias, n_mean, n_var, eps, False)[0]


def _backward_image(
    launch: Launch, dout: Tensor, x: Tensor, channel: tuple[Tensor, ...] | None, spatial: tuple[Tensor, ...] | None,
    mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2 by ``mask`` from (pooled, positions, w1, b1, w2) and (s, channels, dplanes)."""
    n, c, h, w = x.shape
    dx = torch.empty_like(x) if mask[0] else x.new_empty(0)
    hidden = channel[2].shape[0] if channel else 0
    scratch = [
        torch.empty(size, dtype=compute_dtype(x), device=x.device)
        for size in ((n, c), (2 * n, hidden), (n, hidden), (2, n, c) if channel else 0)
    ]
    name = f"cbam_bwd<{type_name('cbam', x)}, {IMAGE_THREADS}>"
    inputs = (*(channel or (0,) * 5), *(spatial or (0,) * 3), dx if mask[0] else 0)
    launch(name, x, (n, 1, 1), IMAGE_THREADS, dout, x, *inputs, *scratch, n, h * w, c, hidden)
    if not channel or not mask[1]:
        return dx, *(x.new_empty(0) for _ in range(4))
    pooled, _, w1, _, w2 = channel
    dz, dh, sums, _ = scratch
    _, d_w1, d_b1 = product_backward(launch, dh, pooled[:2].flatten(0, 1), PLAIN, w1, ConvNeeds(False, True, True))
    _, d_w2, d_b2 = product_backward(launch, dz, sums, PLAIN, w2, ConvNeeds(False, True, True))
    return dx, d_w1, d_b1, d_w2, 2 * d_b2


def _backward_planes(
    launch: Launch, dout: Tensor, x: Tensor, gates: Tensor | None, planes: Tensor, stats: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, batch_stats: bool, mask: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the two planes (2, N, H, W); weight, norm weight, norm bias."""
    n, c, h, w = x.shape
    dots = torch.empty((n, 1, h, w), dtype=planes.dtype, device=x.device)
    name, factor = f"pixel_dots<{type_name('cbam', x)}, {IMAGE_THREADS}>", 0 if gates is None else gates
    launch(name, x, (n, 1, 1), IMAGE_THREADS, dout, x, factor, dots, h * w, c)
    dy, *d_norm = norm.norm_act_backward(
        launch, dots, planes[2][:, None], n_weight, n_bias, stats, _SIGMOID, batch_stats
    )
    dplanes = torch.empty((2, n, h, w), dtype=planes.dtype, device=x.device)
    _convolve(launch, dy[:, 0], weight, dplanes, True)
    if not mask:
        return dplanes, *(x.new_empty(0) for _ in range(3))
    size = weight.shape[-1]
    partial = torch.empty((n, 2, size * size), dtype=planes.dtype, device=x.device)
    name = f"cbam_conv_weight<{type_name('cbam', planes)}, {THREADS}>"
    launch(name, x, (n, 1, 1), THREADS, planes, dy, partial, n, h, w, size)
    return dplanes, norm.total(launch, partial).view(weight.shape), *d_norm


def channel_gate_backward(
    launch: Launch, dout: Tensor, x: Tensor, pooled: Tensor, positions: Tensor, w1: Tensor, b1: Tensor, w2: Tensor,
    mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2. ``mask``: of x, of the parameters; those not asked for are empty."""
    return _backward_image(launch, nhwc(dout), nhwc(x), (pooled, positions, w1, b1, w2), None, mask)


def spatial_gate_backward(
    launch: Launch, dout: Tensor, x: Tensor, planes: Tensor, channels: Tensor, stats: Tensor, weight: Tensor,
    n_weight: Tensor, n_bias: Tensor, batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; weight, norm weight, norm bias. ``mask``: of x, of the parameters; others are empty."""
    dout, x, dx = nhwc(dout), nhwc(x), x.new_empty(0)
    dplanes, *d_spatial = _backward_planes(
        launch, dout, x, None, planes, stats, weight, n_weight, n_bias, batch_stats, mask[1]
    )
    if mask[0]:
        spatial = (_spatial(launch, planes[2], n_weight, n_bias, stats), channels, dplanes)
        dx = _backward_image(launch, dout, x, None, spatial, [True, False])[0]
    return dx, *d_spatial


def cbam_backward(
    launch: Launch, dout: Tensor, x: Tensor, pooled: Tensor, positions: Tensor, planes: Tensor, channels: Tensor,
    stats: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, weight: Tensor, n_weight: Tensor, n_bias: Tensor,
    batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2; weight, norm weight, norm bias. ``mask``: of x and of the two groups."""
    dout, x = nhwc(dout), nhwc(x)
    dplanes, *d_spatial = _backward_planes(
        launch, dout, x, pooled[2], planes, stats, weight, n_weight, n_bias, batch_stats, mask[2]
    )
    spatial = (_spatial(launch, planes[2], n_weight, n_bias, stats), channels, dplanes)
    channel = (pooled, positions, w1, b1, w2)
    return *_backward_image(launch, dout, x, channel, spatial, mask[:2]), *d_spatial
