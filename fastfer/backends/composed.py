# SPDX-License-Identifier: Apache-2.0
"""Ops composed of a backend's own functions and a few passes of torch's: pooled convolutions and linked normalisations.

Of linked ops the first ends with y and its statistics (3, C); the next takes z = act((y - mean)·invstd·weight + bias)
for its input. Their gradients are those of tensors like others: with g = dz·act', s = sum(g), sx = sum(g·(y - mean))
over n values a channel, y gets g·weight·invstd, the statistics get (-weight·invstd·s, weight·sx, 0), weight invstd·sx
and bias s; and the first op adds what its statistics (m, i, v) got:
dy += dm/n - di·invstd³·(y - mean)/n + 2·dv·(y - mean)/(n - 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastfer.backends.reference import elementwise
from fastfer.backends.reference._layout import nhwc
from fastfer.backends.reference.norm import norm_statistics, normalise
from fastfer.backends.reference.pool import at_maxima
from fastfer.signatures.conv2d import (
    Conv2d,
    Conv2dBackward,
    Conv2dGradients,
    Conv2dLinked,
    Conv2dLinkedBackward,
    Conv2dLinkedTrained,
    Conv2dNeeds,
    Conv2dPoolBackward,
    Conv2dPoolTrain,
    Conv2dPoolTrained,
    Conv2dTrain,
    Conv2dTrained,
)
from fastfer.signatures.fields import Affine, Link, LinkGradients
from fastfer.signatures.gate import (
    Gate,
    GateBackward,
    GateGradients,
    GateLinked,
    GateLinkedBackward,
    GateLinkedGradients,
    GateTrained,
)
from fastfer.signatures.pool import MaxPool, MaxPoolBackward, MaxPoolTrained
from fastfer.signatures.separable_conv import (
    ConvGradients,
    DepthwiseNormBackward,
    DepthwiseNormGradients,
    DepthwiseNormLinked,
    DepthwiseNormLinkedBackward,
    DepthwiseNormLinkedGradients,
    DepthwiseNormTrain,
    DepthwiseNormTrained,
    SeparableBackward,
    SeparableGradients,
    SeparableLinked,
    SeparableLinkedBackward,
    SeparableLinkedGradients,
    SeparableTrain,
    SeparableTrained,
)

_DIMS = (0, 2, 3)


def _channels(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def normalised(y: Tensor, link: Link | None) -> Tensor:
    """z of the input y; y itself without a link."""
    return y if link is None else nhwc(normalise(y, Affine(link.weight, link.bias), link.stats, link.act).to(y.dtype))


def link_backward(dz: Tensor, y: Tensor, link: Link) -> tuple[Tensor, LinkGradients]:
    """Gradients of y and of the link's tensors from that of z."""
    invstd, centred = link.stats[1], y - _channels(link.stats[0])
    g = elementwise.backward(dz, centred * _channels(invstd * link.weight) + _channels(link.bias), link.act)
    s, sx = g.sum(_DIMS), (g * centred).sum(_DIMS)
    d_stats = torch.stack([-link.weight * invstd * s, link.weight * sx, torch.zeros_like(s)])
    return nhwc((g * _channels(link.weight * invstd)).to(dz.dtype)), LinkGradients(d_stats, invstd * sx, s)


def statistics_backward(dy: Tensor, d_stats: Tensor | None, y: Tensor, stats: Tensor) -> Tensor:
    """The whole gradient of y: what it got itself, and through its statistics."""
    if d_stats is None:
        return dy
    count = max(y.numel() // y.shape[1], 1)
    bend = 2 * d_stats[2] / max(count - 1, 1) - d_stats[1] * stats[1] ** 3 / count
    through = _channels(d_stats[0] / count) + _channels(bend) * (y - _channels(stats[0]))
    return nhwc((dy + through).to(dy.dtype))


def conv2d_linked(train: Callable[[Conv2dTrain], Conv2dTrained], a: Conv2dLinked) -> Conv2dLinkedTrained:
    """The op ``conv2d_linked``; ``train`` is the backend's `conv2d_train`."""
    block = Conv2d(a.x, a.weight, a.bias, None, 0, a.stride, a.padding)
    y = train(Conv2dTrain(block, True)).out
    return Conv2dLinkedTrained(y, norm_statistics(y, a.left, True))


def conv2d_linked_backward(
    backward: Callable[[Conv2dBackward], Conv2dGradients], a: Conv2dLinkedBackward
) -> ConvGradients:
    """The op ``conv2d_linked_backward``; ``backward`` is the backend's `conv2d_backward`."""
    nothing = a.y.new_empty(0)
    grads = backward(Conv2dBackward(
        d_out=statistics_backward(a.d_y, a.d_stats, a.y, a.stats), x=a.x, y=nothing, weight=a.weight, norm=None,
        stats=nothing, act=0, stride=a.stride, padding=a.padding, batch_stats=True,
        needs=Conv2dNeeds(a.needs.x, a.needs.weight, a.needs.bias),
    ))  # fmt: skip
    return ConvGradients(grads.d_x, grads.d_weight, grads.d_bias)


def conv2d_pool_train(
    train: Callable[[Conv2dTrain], Conv2dTrained], pool_train: Callable[[MaxPool], MaxPoolTrained], a: Conv2dPoolTrain
) -> Conv2dPoolTrained:
    """The op ``conv2d_pool_train``, of the backend's `conv2d_train` and `max_pool2d_train`."""
    full = train(Conv2dTrain(a.block, a.batch_stats))
    pooled = pool_train(MaxPool(full.out, a.pool))
    return Conv2dPoolTrained(
        out=pooled.out,
        y=full.y,
        best=at_maxima(full.y, pooled.positions, a.pool),
        positions=pooled.positions,
        stats=full.stats,
    )


def conv2d_pool_backward(
    backward: Callable[[Conv2dBackward], Conv2dGradients],
    pool_backward: Callable[[MaxPoolBackward], Tensor],
    a: Conv2dPoolBackward,
) -> Conv2dGradients:
    """The op ``conv2d_pool_backward``, of the backend's `conv2d_backward` and `max_pool2d_backward`."""
    d_out = pool_backward(MaxPoolBackward(a.d_out, a.positions, list(a.y.shape[2:]), a.pool))
    return backward(
        Conv2dBackward(d_out, a.x, a.y, a.weight, a.norm, a.stats, a.act, a.stride, a.padding, a.batch_stats, a.needs)
    )


def separable_conv2d_linked(
    train: Callable[[SeparableTrain], SeparableTrained], a: SeparableLinked
) -> SeparableTrained:
    """The op ``separable_conv2d_linked``; ``train`` is the backend's `separable_conv2d_train`."""
    block = a.block._replace(x=normalised(a.block.x, a.link))
    trained = train(SeparableTrain(block, True))
    return trained if a.left is None else trained._replace(stats2=norm_statistics(trained.out, a.left, True))


def separable_conv2d_linked_backward(
    backward: Callable[[SeparableBackward], SeparableGradients], a: SeparableLinkedBackward
) -> SeparableLinkedGradients:
    """The op ``separable_conv2d_linked_backward``; ``backward`` is the backend's `separable_conv2d_backward`."""
    block, y = a.block, a.block.x
    nothing = y.new_empty(0)
    if a.leaves:
        d_out = statistics_backward(block.d_out, a.d_stats2, block.y2, block.stats2)
        block = block._replace(d_out=d_out, y2=nothing)
    if a.link is None:
        return SeparableLinkedGradients(*backward(block), *(y.new_empty(0) for _ in range(3)))
    grads = backward(block._replace(x=normalised(y, a.link), needs=block.needs._replace(x=True)))
    d_x, of_link = link_backward(grads.d_x, y, a.link)
    return SeparableLinkedGradients(*grads._replace(d_x=d_x), *of_link)


def depthwise_norm_linked(
    train: Callable[[DepthwiseNormTrain], DepthwiseNormTrained], a: DepthwiseNormLinked
) -> DepthwiseNormTrained:
    """The op ``depthwise_norm_linked``; ``train`` is the backend's `depthwise_norm_train`."""
    return train(DepthwiseNormTrain(a.block._replace(x=normalised(a.block.x, a.link)), True))


def depthwise_norm_linked_backward(
    backward: Callable[[DepthwiseNormBackward], DepthwiseNormGradients], a: DepthwiseNormLinkedBackward
) -> DepthwiseNormLinkedGradients:
    """The op ``depthwise_norm_linked_backward``; ``backward`` is the backend's `depthwise_norm_backward`."""
    y = a.block.x
    grads = backward(a.block._replace(x=normalised(y, a.link), needs=a.block.needs._replace(x=True)))
    d_x, of_link = link_backward(grads.d_x, y, a.link)
    return DepthwiseNormLinkedGradients(*grads._replace(d_x=d_x), *of_link)


def gate_linked(train: Callable[[Gate], GateTrained], a: GateLinked) -> GateTrained:
    """The op ``gate_linked``; ``train`` is the backend's `gate_train`."""
    return train(Gate(normalised(a.x, a.link), a.gates))


def gate_linked_backward(
    backward: Callable[[GateBackward], GateGradients], a: GateLinkedBackward
) -> GateLinkedGradients:
    """The op ``gate_linked_backward``; ``backward`` is the backend's `gate_backward`."""
    z, needs = normalised(a.x, a.link), a.needs._replace(x=True)
    grads = backward(GateBackward(a.d_out, z, a.means, a.pixels, a.gates, needs))
    d_x, of_link = link_backward(grads.d_x, a.x, a.link)
    return GateLinkedGradients(*grads._replace(d_x=d_x), *of_link)
