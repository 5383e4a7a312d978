# SPDX-License-Identifier: Apache-2.0
"""The inverted bottleneck: expansion, depthwise convolution and projection, each with its norm, as one op.

Evaluation without gradients is one pass over the activations. Training keeps x, the depthwise and the projection's
output before their norms (4 bytes an element of each in float32), 3 statistics a channel, and on a CPU with batch
statistics the covariance of the expansion with x: 4 bytes for each of the expansion's weights. The expansion, the
largest activation of a network made of these blocks, is not kept, and natively neither it nor its gradient is ever in
memory: its statistics follow from mean and covariance of x, and backward computes its rows again while they are in
cache. On a GPU it is, for as long as the op runs: backward computes it again with one product.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.norm import Norm, check_batch, running_norm, update_running
from fastfer.ops.separable_conv import image, image_like, like
from fastfer.signatures.bottleneck import (
    Bottleneck,
    BottleneckBackward,
    BottleneckGradients,
    BottleneckTrain,
    BottleneckTrained,
)
from fastfer.signatures.separable_conv import output_size

_FAMILY = "bottleneck"


def pays(channels: int) -> bool:
    """Whether one op trains faster than the expansion, then the others: ``channels`` of x are few.

    Computing the expansion again then takes less time than writing and reading it and its gradient. Of the blocks of
    MobileNetV3, forward and backward, those of 16 to 40 channels take 0.75 to 0.87 of the time, of 80 as long, of 112
    1.05 of it.
    """
    return channels <= 64


def _fake_train(a: BottleneckTrain) -> BottleneckTrained:
    b, x, hidden = a.block, a.block.x, a.block.dw_weight.shape[0]
    size = output_size(x, b.dw_weight, b.stride, b.padding)
    outputs = 0 if b.project_weight is None else b.project_weight.shape[0]
    return BottleneckTrained(
        out=image(x, outputs or hidden, *size),
        y1=image(x, hidden, *size),
        y2=image(x, outputs, *size) if outputs else x.new_empty(0),
        covariance=x.new_empty((hidden + 1, x.shape[1]) if a.batch_stats and x.device.type == "cpu" else 0),
        stats1=x.new_empty((3, hidden)),
        stats2=x.new_empty((3, hidden)),
        stats3=x.new_empty((3, outputs) if outputs else 0),
    )


def _fake(a: Bottleneck) -> Tensor:
    return _fake_train(BottleneckTrain(a, False)).out


def _fake_backward(a: BottleneckBackward) -> BottleneckGradients:
    third = (None, None) if a.norm3 is None else a.norm3
    params = (a.expand_weight, *a.norm1, a.dw_weight, *a.norm2, a.project_weight, *third)
    return BottleneckGradients(image_like(a.needs.x, a.x), *(like(a.needs.params, t, a.x) for t in params))


_inverted_bottleneck = _library.define("inverted_bottleneck", _FAMILY, Bottleneck, Tensor, _fake)
_inverted_bottleneck_train = _library.define(
    "inverted_bottleneck_train", _FAMILY, BottleneckTrain, BottleneckTrained, _fake_train
)
_inverted_bottleneck_backward = _library.define(
    "inverted_bottleneck_backward", _FAMILY, BottleneckBackward, BottleneckGradients, _fake_backward
)
_library.autograd(_inverted_bottleneck_train, _inverted_bottleneck_backward)
for _op in (_inverted_bottleneck, _inverted_bottleneck_train):
    _library.autocast(_op, lower=True)


def _check_weights(
    op: str, x: Tensor, expand: Tensor, dw: Tensor, project: Tensor | None, strides: list[int], pads: list[int]
) -> tuple[int, int]:
    """Height and width of the output."""
    _checks.is_tensor(op, "expand_weight", expand)
    if expand.dim() != 4 or tuple(expand.shape[1:]) != (x.shape[1], 1, 1) or 0 in expand.shape:
        raise ValueError(f"{op}: expand_weight: expected shape (E, {x.shape[1]}, 1, 1), got {tuple(expand.shape)}")
    _checks.like(op, "expand_weight", expand, x, expand.shape)
    hidden = expand.shape[0]
    _checks.is_tensor(op, "dw_weight", dw)
    if dw.dim() != 4 or tuple(dw.shape[:2]) != (hidden, 1) or 0 in dw.shape:
        raise ValueError(f"{op}: dw_weight: expected shape ({hidden}, 1, KH, KW), got {tuple(dw.shape)}")
    _checks.like(op, "dw_weight", dw, x, dw.shape)
    if project is not None:
        _checks.is_tensor(op, "project_weight", project)
        if project.dim() != 4 or tuple(project.shape[1:]) != (hidden, 1, 1) or project.shape[0] == 0:
            raise ValueError(f"{op}: project_weight: expected shape (O, {hidden}, 1, 1), got {tuple(project.shape)}")
        _checks.like(op, "project_weight", project, x, project.shape)
    return (
        _checks.out_size(op, x.shape[2], pads[0], pads[2], dw.shape[2], strides[0], "height"),
        _checks.out_size(op, x.shape[3], pads[1], pads[3], dw.shape[3], strides[1], "width"),
    )


def inverted_bottleneck(
    x: Tensor,
    expand_weight: Tensor,
    norm1: Norm,
    dw_weight: Tensor,
    norm2: Norm,
    project_weight: Tensor | None = None,
    norm3: Norm | None = None,
    *,
    act: str | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    residual: bool = False,
    training: bool = False,
) -> Tensor:
    """norm3(project(a)) (+ x with ``residual``), a = act(norm2(depthwise(act(norm1(expand(x)))))); a without project.

    x (N, C, H, W) float32 or float64; expand_weight (E, C, 1, 1), dw_weight (E, 1, KH, KW), project_weight
    (O, E, 1, 1) with norm3, or None where an attention follows a; each norm a `Norm`; stride and padding as
    `depthwise_conv2d`. ``residual`` needs the output's shape to be x's. With ``training`` the norms use the statistics
    of this batch and update their running ones in place (unbiased variance, momentum), else the running ones are
    constants. Returns channels_last (N, O or E, OH, OW). Raises TypeError or ValueError naming the argument, and
    ValueError for one value per channel in training.
    Source: Sandler et al. 2018, section 3.3; Ioffe and Szegedy 2015.
    """
    op = "inverted_bottleneck"
    _checks.image(op, "x", x)
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    height, width = _check_weights(op, x, expand_weight, dw_weight, project_weight, strides, pads)
    hidden, outputs = expand_weight.shape[0], project_weight.shape[0] if project_weight is not None else 0
    first, second = (running_norm(op, arg, n, x, hidden) for arg, n in (("norm1", norm1), ("norm2", norm2)))
    if (norm3 is None) != (project_weight is None):
        expected = "a Norm with" if norm3 is None else "None without"
        raise ValueError(f"{op}: norm3: expected {expected} project_weight, got {norm3}")
    third = None if norm3 is None else running_norm(op, "norm3", norm3, x, outputs)
    if residual and (outputs, height, width) != tuple(x.shape[1:]):
        got = (outputs or hidden, height, width)
        raise ValueError(f"{op}: residual: expected a projection of x's shape {tuple(x.shape[1:])}, got {got}")
    block = Bottleneck(
        x, expand_weight, first, dw_weight, second, project_weight, third,
        _checks.act_code(op, act), residual, strides, pads,
    )  # fmt: skip
    if not training and not _inverted_bottleneck.needs_gradient(block):
        return _inverted_bottleneck(block)
    if training:
        check_batch(op, x.shape)
        check_batch(op, (x.shape[0], hidden, height, width))
    trained = _inverted_bottleneck_train(BottleneckTrain(block, training))
    if training and trained.out.numel():
        for norm, stats in ((norm1, trained.stats1), (norm2, trained.stats2), (norm3, trained.stats3)):
            update_running(norm, stats)
    return trained.out
