# SPDX-License-Identifier: Apache-2.0
"""Training ops that leave a normalisation to the op after them: y is written once, act(norm(y)) never.

Between two fused blocks the usual ops write act(norm(y)) in a pass of its own and read dout and y in another for the
sums of norm's backward: four passes over the activation that go here, with the memory of act(norm(y)). A `Linked`
stands for it on the way: y with its statistics, and what is still to be done. Both ops have true gradients, those of y
and of the statistics as tensors of their own (`backends.composed` has the formulas). Saved for backward:
inputs, y1 as `separable_conv2d_train`, and y, 4 bytes an element each in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastfer.ops.conv2d import conv2d_linked, conv_fields
from fastfer.ops.gate import csa_gates, gate_linked
from fastfer.ops.norm import Norm, check_batch, update_running
from fastfer.ops.separable_conv import depthwise_fields, depthwise_norm_linked, separable_fields, separable_linked
from fastfer.signatures.conv2d import Conv2dLinked
from fastfer.signatures.fields import LeftNorm, Link
from fastfer.signatures.gate import GateLinked
from fastfer.signatures.separable_conv import DepthwiseNormLinked, SeparableLinked


class Linked(NamedTuple):
    """act((y - mean)·invstd·weight + bias), not computed yet: y (N, C, H, W), and what is still to be done."""

    y: Tensor
    link: Link


def linked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    act: str | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> Linked:
    """`conv2d` in training, its normalisation and activation left to the next op; arguments and errors as there."""
    block, height, width = conv_fields(x, weight, bias, norm, act, stride, padding)
    check_batch("conv2d", (x.shape[0], weight.shape[0], height, width))
    trained = conv2d_linked(Conv2dLinked(x, weight, bias, _left(norm), block.stride, block.padding))
    if trained.y.numel():
        update_running(norm, trained.stats.detach())
    return Linked(trained.y, Link(trained.stats, norm.weight, norm.bias, block.act))


def _left(norm: Norm) -> LeftNorm:
    return LeftNorm(norm.running_mean, norm.running_var, norm.eps)


def linked_separable_conv2d(
    x: Tensor | Linked,
    dw_weight: Tensor,
    pw_weight: Tensor,
    *,
    norm1: Norm | None,
    act1: str | None,
    norm2: Norm | None,
    act2: str | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dw_bias: Tensor | None,
    pw_bias: Tensor | None,
    leaves: bool,
) -> Tensor | Linked:
    """`separable_conv2d` in training, of a linked input, or with its last normalisation left to the next op.

    Arguments and errors as there; where it ``leaves`` its norm2, the result is a `Linked`.
    """
    y, link = (x.y, x.link) if isinstance(x, Linked) else (x, None)
    block, height, width = separable_fields(
        y, dw_weight, pw_weight, dw_bias, norm1, act1, pw_bias, norm2, act2, stride, padding
    )
    if norm1 is not None or norm2 is not None:
        check_batch("separable_conv2d", (y.shape[0], y.shape[1], height, width))
    left, code = None, block.act2
    if leaves and norm2 is not None:
        left = _left(norm2)
        block = block._replace(norm2=None, act2=0)
    trained = separable_linked(SeparableLinked(block, link, left))
    if trained.out.numel():
        update_running(norm1, trained.stats1)
        update_running(norm2, trained.stats2.detach())
    if left is None or norm2 is None:
        return trained.out
    return Linked(trained.out, Link(trained.stats2, norm2.weight, norm2.bias, code))


def linked_depthwise_conv2d(
    x: Linked,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    act: str | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> Tensor:
    """`depthwise_conv2d` with a norm in training, of a linked input; arguments and errors as there."""
    block, height, width = depthwise_fields(x.y, weight, bias, norm, act, stride, padding)
    check_batch("depthwise_conv2d", (x.y.shape[0], x.y.shape[1], height, width))
    trained = depthwise_norm_linked(DepthwiseNormLinked(block, x.link))
    if trained.out.numel():
        update_running(norm, trained.stats)
    return trained.out


def linked_csa(
    x: Linked, channel_weight: Tensor, spatial_weight: Tensor, spatial_bias: Tensor, *, pool: bool
) -> Tensor:
    """`csa` in training, of a linked input; arguments and errors as there."""
    gates = csa_gates(x.y, channel_weight, spatial_weight, spatial_bias, pool)
    return gate_linked(GateLinked(x.y, x.link, gates)).out
