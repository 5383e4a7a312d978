# SPDX-License-Identifier: Apache-2.0
"""Gates on channels and on pixels, in parallel: out = x · (channel gate (N, C) + pixel gate (N, H, W)), one or both.

- channel: gate_act(w2 · act(w1 · m + b1) + b2) (squeeze-and-excitation, Hu et al. 2018), or, without w2,
  gate_act(convolution of m over the channels by w1, odd, zeros beside them) (ECA, Wang et al. 2020); m is mean_hw x;
- pixel: sigmoid(sw · [max_c x; mean_c x] + sb) (CSA, eq. 2), or, when ``linear``, sigmoid(sw · x + sb)
  (Roy et al. 2018). A maximum's gradient goes to the first of the largest channels.

``pool`` takes the 2×2 maximum of the result, stride 2, in the same pass.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fastfer.backends.reference import _linked, elementwise
from fastfer.backends.reference._layout import nhwc


def _channel_logits(
    means: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int
) -> tuple[Tensor, Tensor]:
    """Logits of the channel gates (N, C), and the hidden units before their activation (without w2: empty)."""
    if w2 is None:
        return F.conv1d(means[:, None], w1, padding=w1.shape[2] // 2)[:, 0], means.new_empty(0)
    hidden = F.linear(means, w1.flatten(1), b1)
    return F.linear(elementwise.apply(hidden, act), w2.flatten(1), b2), hidden


def _pixels(x: Tensor, sw: Tensor, sb: Tensor, linear: bool) -> Tensor:
    """Of each pixel the maximum, the mean and the maximum's channel (N, 3, H, W), or the logit (N, 1, H, W)."""
    if linear:
        return F.conv2d(x, sw, sb)
    largest = x.max(1, keepdim=True)
    return torch.cat([largest.values, x.mean(1, keepdim=True), largest.indices.to(x.dtype)], 1)


def _pixel_logits(pixels: Tensor, sw: Tensor, sb: Tensor, linear: bool) -> Tensor:
    return pixels if linear else F.conv2d(pixels[:, :2], sw, sb)


def gate_train(
    x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int, gate_act: int,
    sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, the images' means (N, C), the pixels' values (N, 3 or 1, H, W); the last two empty where not used.

    w1 (hidden, C) and w2 (C, hidden), with or without two axes of 1 behind, or w1 (1, 1, K); sw (1, 2 or C, 1, 1).
    """
    gates, means, pixels = x.new_zeros(()), x.new_empty(0), x.new_empty(0)
    if w1 is not None:
        means = x.mean((2, 3))
        gates = gates + elementwise.apply(_channel_logits(means, w1, b1, w2, b2, act)[0], gate_act)[:, :, None, None]
    if sw is not None and sb is not None:
        pixels = _pixels(x, sw, sb, linear).contiguous()
        gates = gates + _pixel_logits(pixels, sw, sb, linear).sigmoid()
    y = x * gates
    return nhwc(F.max_pool2d(y, 2) if pool else y), means, pixels


def gate(*args: object) -> Tensor:
    """Output; arguments as `gate_train`."""
    return gate_train(*args)[0]  # type: ignore[arg-type]


def _channel_backward(
    dg: Tensor, means: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None,
    act: int, gate_act: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the means, w1, b1, w2, b2 from that of the gates (N, C)."""
    logits, hidden = _channel_logits(means, w1, b1, w2, b2, act)
    dl = elementwise.backward(dg, logits, gate_act)
    nothing = dg.new_empty(0)
    if w2 is None:
        dm, dw, _ = torch.ops.aten.convolution_backward(
            dl[:, None], means[:, None], w1, None, [1], [w1.shape[2] // 2], [1], False, [0], 1, [True, True, False]
        )
        return dm[:, 0], dw, nothing, nothing.clone(), nothing.clone()
    dh = elementwise.backward(dl @ w2.flatten(1), hidden, act)
    return (
        dh @ w1.flatten(1),
        (dh.t() @ means).view(w1.shape),
        dh.sum(0),
        (dl.t() @ elementwise.apply(hidden, act)).view(w2.shape),
        dl.sum(0),
    )


def gate_backward(
    dout: Tensor, x: Tensor, means: Tensor, pixels: Tensor,
    w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, act: int, gate_act: int,
    sw: Tensor | None, sb: Tensor | None, linear: bool, pool: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x; w1, b1, w2, b2; sw, sb. Those not asked for (x, channel, pixel side) or not there are empty."""
    need_dx, need_channel, need_pixel = mask
    gates, s = x.new_zeros(()), x.new_empty(0)
    if w1 is not None:
        gates = gates + elementwise.apply(_channel_logits(means, w1, b1, w2, b2, act)[0], gate_act)[:, :, None, None]
    if sw is not None and sb is not None:
        s = _pixel_logits(pixels, sw, sb, linear).sigmoid()
        gates = gates + s
    if pool:
        _, where = F.max_pool2d((x * gates).contiguous(), 2, return_indices=True)
        dout = torch.zeros_like(x).contiguous().flatten(2).scatter_(2, where.flatten(2), dout.flatten(2)).view_as(x)
    dx, product, nothing = dout * gates, dout * x, x.new_empty(0)
    channel: tuple[Tensor, ...] = (nothing,) * 4
    pixel: tuple[Tensor, ...] = (nothing,) * 2
    if w1 is not None:
        dm, *channel_grads = _channel_backward(product.sum((2, 3)), means, w1, b1, w2, b2, act, gate_act)
        dx = dx + dm[:, :, None, None] / max(x.shape[2] * x.shape[3], 1)
        channel = tuple(channel_grads) if need_channel else channel
    if sw is not None:
        dl = product.sum(1, keepdim=True) * s * (1 - s)
        source = x if linear else pixels[:, :2]
        if need_pixel:
            pixel = (dl * source).sum((0, 2, 3)).view(sw.shape), dl.sum().view(1)
        if linear:
            dx = dx + dl * sw
        else:
            dx = dx + dl * sw[:, 1:] / x.shape[1]
            dx = dx.scatter_add(1, pixels[:, 2:].long(), dl * sw[:, :1])
    grads = (nhwc(dx) if need_dx else nothing, *channel, *pixel)
    return tuple(grad if grad.numel() else x.new_empty(grad.shape) for grad in grads)


gate_linked = partial(_linked.gate_linked, gate_train)
gate_linked_backward = partial(_linked.gate_linked_backward, gate_backward)
