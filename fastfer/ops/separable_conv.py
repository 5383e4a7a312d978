# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and the fused separable block act2(norm2(pointwise(act1(norm1(depthwise(x)))))).

Evaluation without gradients is one pass over the activations; training keeps x, y1 (depthwise output), y2 (pointwise
output) and 3 statistics a channel: 4 bytes an element of each in float32, nothing of normalised or activated copies,
which backward recomputes, as it does y1 where nothing follows it (see `keeps_y1`). Depthwise with norm and activation
keeps x and its output before the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.elementwise import activation
from fastfer.ops.norm import Norm, check_batch, running_norm, update_running
from fastfer.signatures.separable_conv import (
    ConvGradients,
    Depthwise,
    DepthwiseBackward,
    DepthwiseNorm,
    DepthwiseNormBackward,
    DepthwiseNormGradients,
    DepthwiseNormLinked,
    DepthwiseNormLinkedBackward,
    DepthwiseNormLinkedGradients,
    DepthwiseNormTrain,
    DepthwiseNormTrained,
    Pointwise,
    PointwiseBackward,
    Separable,
    SeparableBackward,
    SeparableGradients,
    SeparableLinked,
    SeparableLinkedBackward,
    SeparableLinkedGradients,
    SeparableTrain,
    SeparableTrained,
    keeps_y1,
    output_size,
)

_FAMILY = "separable_conv"


def image(x: Tensor, channels: int, height: Any, width: Any) -> Tensor:
    """An activation (N, channels, height, width) without values, for the fakes."""
    return x.new_empty((x.shape[0], channels, height, width)).contiguous(memory_format=torch.channels_last)


def like(wanted: bool, t: Tensor | None, x: Tensor) -> Tensor:
    """A gradient of t without values, empty where it is not wanted."""
    return x.new_empty(0) if t is None or not wanted else x.new_empty(t.shape)


def image_like(wanted: bool, x: Tensor) -> Tensor:
    """A gradient of the activation x without values, empty where it is not wanted."""
    return image(x, *x.shape[1:]) if wanted else x.new_empty(0)


def _fake_depthwise(a: Depthwise | DepthwiseNorm) -> Tensor:
    return image(a.x, a.x.shape[1], *output_size(a.x, a.weight, a.stride, a.padding))


def _fake_conv_backward(a: DepthwiseBackward | PointwiseBackward) -> ConvGradients:
    return ConvGradients(
        image_like(a.needs.x, a.x),
        like(a.needs.weight, a.weight, a.x),
        a.x.new_empty(a.weight.shape[0] if a.needs.bias else 0),
    )


def _fake_depthwise_norm_train(a: DepthwiseNormTrain | DepthwiseNormLinked) -> DepthwiseNormTrained:
    y = _fake_depthwise(a.block)
    return DepthwiseNormTrained(y, torch.empty_like(y), y.new_empty((3, y.shape[1])))


def _fake_depthwise_norm_backward(a: DepthwiseNormBackward) -> DepthwiseNormGradients:
    wanted = (a.needs.params and a.needs.bias, a.needs.params, a.needs.params)
    d_channels = [like(each, a.norm.weight, a.x) for each in wanted]
    return DepthwiseNormGradients(image_like(a.needs.x, a.x), like(a.needs.params, a.weight, a.x), *d_channels)


def _fake_depthwise_norm_linked_backward(a: DepthwiseNormLinkedBackward) -> DepthwiseNormLinkedGradients:
    of_link = [torch.empty_like(t) for t in (a.link.stats, a.link.weight, a.link.bias)]
    return DepthwiseNormLinkedGradients(*_fake_depthwise_norm_backward(a.block), *of_link)


def _fake_pointwise(a: Pointwise) -> Tensor:
    return image(a.x, a.weight.shape[0], *a.x.shape[2:])


def _fake_separable(a: Separable) -> Tensor:
    return image(a.x, a.pw_weight.shape[0], *output_size(a.x, a.dw_weight, a.stride, a.padding))


def _fake_separable_train(a: SeparableTrain | SeparableLinked) -> SeparableTrained:
    block, out = a.block, _fake_separable(a.block)
    height, width = out.shape[2:]
    leaves = isinstance(a, SeparableLinked) and a.leaves
    return SeparableTrained(
        out=out,
        y1=image(block.x, block.x.shape[1], height, width) if keeps_y1(block, height, width) else out.new_empty(0),
        y2=torch.empty_like(out) if block.norm2 is not None or block.act2 else out.new_empty(0),
        stats1=out.new_empty(0 if block.norm1 is None else (3, block.x.shape[1])),
        stats2=out.new_empty(0 if block.norm2 is None and not leaves else (3, out.shape[1])),
    )


def _fake_separable_backward(a: SeparableBackward) -> SeparableGradients:
    x, needs = a.x, a.needs
    norm1, norm2 = needs.dw and a.norm1 is not None, needs.pw and a.norm2 is not None
    return SeparableGradients(
        d_x=image_like(needs.x, x),
        d_dw_weight=like(needs.dw, a.dw_weight, x),
        d_dw_bias=x.new_empty(a.dw_weight.shape[0] if needs.dw and needs.biases else 0),
        d_norm1_weight=x.new_empty(a.dw_weight.shape[0] if norm1 else 0),
        d_norm1_bias=x.new_empty(a.dw_weight.shape[0] if norm1 else 0),
        d_pw_weight=like(needs.pw, a.pw_weight, x),
        d_pw_bias=x.new_empty(a.pw_weight.shape[0] if needs.pw and needs.biases else 0),
        d_norm2_weight=x.new_empty(a.pw_weight.shape[0] if norm2 else 0),
        d_norm2_bias=x.new_empty(a.pw_weight.shape[0] if norm2 else 0),
    )


def _fake_separable_linked_backward(a: SeparableLinkedBackward) -> SeparableLinkedGradients:
    of_link = (None, None, None) if a.link is None else (a.link.stats, a.link.weight, a.link.bias)
    return SeparableLinkedGradients(*_fake_separable_backward(a.block), *(like(True, t, a.block.x) for t in of_link))


_depthwise = _library.define("depthwise_conv2d", _FAMILY, Depthwise, Tensor, _fake_depthwise)
_depthwise_backward = _library.define(
    "depthwise_conv2d_backward", _FAMILY, DepthwiseBackward, ConvGradients, _fake_conv_backward
)
_depthwise_norm = _library.define("depthwise_norm", _FAMILY, DepthwiseNorm, Tensor, _fake_depthwise)
_depthwise_norm_train = _library.define(
    "depthwise_norm_train", _FAMILY, DepthwiseNormTrain, DepthwiseNormTrained, _fake_depthwise_norm_train
)
_depthwise_norm_backward = _library.define(
    "depthwise_norm_backward", _FAMILY, DepthwiseNormBackward, DepthwiseNormGradients, _fake_depthwise_norm_backward
)
depthwise_norm_linked = _library.define(
    "depthwise_norm_linked", _FAMILY, DepthwiseNormLinked, DepthwiseNormTrained, _fake_depthwise_norm_train
)
_depthwise_norm_linked_backward = _library.define(
    "depthwise_norm_linked_backward",
    _FAMILY,
    DepthwiseNormLinkedBackward,
    DepthwiseNormLinkedGradients,
    _fake_depthwise_norm_linked_backward,
)
_pointwise = _library.define("pointwise_conv2d", _FAMILY, Pointwise, Tensor, _fake_pointwise)
_pointwise_backward = _library.define(
    "pointwise_conv2d_backward", _FAMILY, PointwiseBackward, ConvGradients, _fake_conv_backward
)
_separable = _library.define("separable_conv2d", _FAMILY, Separable, Tensor, _fake_separable)
_separable_train = _library.define(
    "separable_conv2d_train", _FAMILY, SeparableTrain, SeparableTrained, _fake_separable_train
)
_separable_backward = _library.define(
    "separable_conv2d_backward", _FAMILY, SeparableBackward, SeparableGradients, _fake_separable_backward
)
separable_linked = _library.define(
    "separable_conv2d_linked", _FAMILY, SeparableLinked, SeparableTrained, _fake_separable_train
)
_separable_linked_backward = _library.define(
    "separable_conv2d_linked_backward",
    _FAMILY,
    SeparableLinkedBackward,
    SeparableLinkedGradients,
    _fake_separable_linked_backward,
)


def _kept_of_linked(fields: SeparableLinked, trained: SeparableTrained) -> tuple[SeparableLinked, SeparableTrained]:
    """Where the last norm is left to the next op, y2 is the output."""
    return fields, trained._replace(y2=trained.out) if fields.leaves else trained


_library.autograd(_depthwise, _depthwise_backward)
_library.autograd(_depthwise_norm_train, _depthwise_norm_backward)
_library.autograd(depthwise_norm_linked, _depthwise_norm_linked_backward)
_library.autograd(_pointwise, _pointwise_backward)
_library.autograd(_separable_train, _separable_backward)
_library.autograd(separable_linked, _separable_linked_backward, kept=_kept_of_linked)
for _op in (
    _depthwise,
    _depthwise_norm,
    _depthwise_norm_train,
    depthwise_norm_linked,
    _pointwise,
    _separable,
    _separable_train,
    separable_linked,
):
    _library.autocast(_op, lower=True)


def _check_depthwise(
    op: str, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], name: str
) -> tuple[int, int]:
    """Output height and width, or an error."""
    _checks.is_tensor(op, name, weight)
    if weight.dim() != 4 or weight.shape[0] != x.shape[1] or weight.shape[1] != 1 or 0 in weight.shape:
        raise ValueError(f"{op}: {name}: expected shape ({x.shape[1]}, 1, KH, KW), got {tuple(weight.shape)}")
    _checks.like(op, name, weight, x, weight.shape)
    return (
        _checks.out_size(op, x.shape[2], padding[0], padding[2], weight.shape[2], stride[0], "height"),
        _checks.out_size(op, x.shape[3], padding[1], padding[3], weight.shape[3], stride[1], "width"),
    )


def _check_pointwise(op: str, x: Tensor, weight: Tensor, name: str) -> None:
    _checks.is_tensor(op, name, weight)
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (x.shape[1], 1, 1) or weight.shape[0] == 0:
        raise ValueError(f"{op}: {name}: expected shape (O, {x.shape[1]}, 1, 1), got {tuple(weight.shape)}")
    _checks.like(op, name, weight, x, weight.shape)


def depthwise_fields(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    act: str | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> tuple[DepthwiseNorm, int, int]:
    """The signature of a depthwise convolution with a norm, checked, and the output's height and width."""
    plain, height, width = _plain_depthwise(x, weight, bias, stride, padding)
    code = _checks.act_code("depthwise_conv2d", act)
    running = running_norm("depthwise_conv2d", "norm", norm, x, x.shape[1])
    return DepthwiseNorm(x, weight, bias, running, code, plain.stride, plain.padding), height, width


def _plain_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int | Sequence[int], padding: int | Sequence[int]
) -> tuple[Depthwise, int, int]:
    op = "depthwise_conv2d"
    _checks.image(op, "x", x)
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    height, width = _check_depthwise(op, x, weight, strides, pads, "weight")
    if bias is not None:
        _checks.like(op, "bias", bias, x, (x.shape[1],))
    return Depthwise(x, weight, bias, strides, pads), height, width


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    *,
    norm: Norm | None = None,
    act: str | None = None,
    training: bool = False,
) -> Tensor:
    """act(norm(y)), y depthwise: y[n,c,i,j] = bias[c] + sum_kl x[n,c,i·s+k-top,j·s+l-left] · weight[c,0,k,l].

    x (N, C, H, W) float32 or float64; weight (C, 1, KH, KW); bias (C,); stride int or (vertical, horizontal); padding
    int, (vertical, horizontal) or (top, left, bottom, right); norm, act and training as `separable_conv2d`.
    Returns channels_last (N, C, OH, OW).
    Raises TypeError or ValueError naming the argument. Source: Howard et al. 2017, eq. 3.
    """
    if norm is None:
        plain, _, _ = _plain_depthwise(x, weight, bias, stride, padding)
        _checks.act_code("depthwise_conv2d", act)
        return activation(_depthwise(plain), act)
    block, height, width = depthwise_fields(x, weight, bias, norm, act, stride, padding)
    if not training and not _depthwise_norm.needs_gradient(block):
        return _depthwise_norm(block)
    if training:
        check_batch("depthwise_conv2d", (x.shape[0], x.shape[1], height, width))
    trained = _depthwise_norm_train(DepthwiseNormTrain(block, training))
    if training and trained.out.numel():
        update_running(norm, trained.stats)
    return trained.out


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1×1 convolution: y[n,o,i,j] = bias[o] + sum_c weight[o,c] · x[n,c,i,j].

    x (N, C, H, W) float32 or float64; weight (O, C, 1, 1); bias (O,). Returns channels_last (N, O, H, W).
    Raises TypeError or ValueError naming the argument. Source: Howard et al. 2017, section 3.1.
    """
    op = "pointwise_conv2d"
    _checks.image(op, "x", x)
    _check_pointwise(op, x, weight, "weight")
    if bias is not None:
        _checks.like(op, "bias", bias, x, (weight.shape[0],))
    return _pointwise(Pointwise(x, weight, bias))


def separable_fields(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None,
    norm1: Norm | None,
    act1: str | None,
    pw_bias: Tensor | None,
    norm2: Norm | None,
    act2: str | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> tuple[Separable, int, int]:
    """The signature of a separable block, checked, and the output's height and width."""
    op = "separable_conv2d"
    _checks.image(op, "x", x)
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    height, width = _check_depthwise(op, x, dw_weight, strides, pads, "dw_weight")
    _check_pointwise(op, x, pw_weight, "pw_weight")
    for name, bias, size in (("dw_bias", dw_bias, x.shape[1]), ("pw_bias", pw_bias, pw_weight.shape[0])):
        if bias is not None:
            _checks.like(op, name, bias, x, (size,))
    block = Separable(
        x,
        dw_weight,
        dw_bias,
        None if norm1 is None else running_norm(op, "norm1", norm1, x, x.shape[1]),
        _checks.act_code(op, act1, "act1"),
        pw_weight,
        pw_bias,
        None if norm2 is None else running_norm(op, "norm2", norm2, x, pw_weight.shape[0]),
        _checks.act_code(op, act2, "act2"),
        strides,
        pads,
    )
    return block, height, width


def separable_conv2d(
    x: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    *,
    dw_bias: Tensor | None = None,
    norm1: Norm | None = None,
    act1: str | None = None,
    pw_bias: Tensor | None = None,
    norm2: Norm | None = None,
    act2: str | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    training: bool = False,
) -> Tensor:
    """act2(norm2(pointwise(act1(norm1(depthwise(x)))))) as one op with one backward.

    x (N, C, H, W) float32 or float64; dw_weight (C, 1, KH, KW); pw_weight (O, C, 1, 1); biases (C,) and (O,); each norm
    a `Norm` or None; stride and padding as `depthwise_conv2d`. With ``training`` the norms use the statistics of this
    batch and update their running ones in place (unbiased variance, momentum), else the running ones are constants.
    Returns channels_last (N, O, OH, OW). Raises TypeError or ValueError naming the argument, and ValueError for one
    value per channel in training. Source: Howard et al. 2017, section 3.1; Ioffe and Szegedy 2015.
    """
    block, height, width = separable_fields(
        x, dw_weight, pw_weight, dw_bias, norm1, act1, pw_bias, norm2, act2, stride, padding
    )
    batch_stats = training and (norm1 is not None or norm2 is not None)
    if not batch_stats and not _separable.needs_gradient(block):
        return _separable(block)
    if batch_stats:
        check_batch("separable_conv2d", (x.shape[0], x.shape[1], height, width))
    trained = _separable_train(SeparableTrain(block, batch_stats))
    if batch_stats and trained.out.numel():
        update_running(norm1, trained.stats1)
        update_running(norm2, trained.stats2)
    return trained.out
