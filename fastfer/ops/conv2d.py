# SPDX-License-Identifier: Apache-2.0
"""Dense convolution with fused normalisation, activation and max pooling: pool(act(norm(convolution(x) + bias))).

Evaluation without gradients is one pass (two with a pool). Training keeps x, the convolution's output y where a norm or
an activation follows (4 bytes an element of each in float32) and 3 statistics a channel; normalised values are computed
again. With a norm and a pool it also keeps y at the maxima and their places, 4 bytes and 1 byte an element of the
pooled output; the unpooled output and its gradient are never in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastfer import _checks, _library
from fastfer.ops.norm import Norm, check_batch, running_norm, update_running
from fastfer.ops.pool import Pool, check_pool, fake_max_pool, max_pool2d
from fastfer.ops.separable_conv import image, image_like, like
from fastfer.signatures.conv2d import (
    Conv2d,
    Conv2dBackward,
    Conv2dGradients,
    Conv2dLinked,
    Conv2dLinkedBackward,
    Conv2dLinkedTrained,
    Conv2dPoolBackward,
    Conv2dPoolTrain,
    Conv2dPoolTrained,
    Conv2dTrain,
    Conv2dTrained,
)
from fastfer.signatures.pool import MaxPool
from fastfer.signatures.separable_conv import ConvGradients, output_size

_FAMILY = "conv2d"


def _fake(a: Conv2d) -> Tensor:
    return image(a.x, a.weight.shape[0], *output_size(a.x, a.weight, a.stride, a.padding))


def _fake_train(a: Conv2dTrain) -> Conv2dTrained:
    norm, out = a.block.norm, _fake(a.block)
    y = torch.empty_like(out) if norm is not None or a.block.act else out.new_empty(0)
    return Conv2dTrained(out, y, out.new_empty(0 if norm is None else (3, out.shape[1])))


def _fake_backward(a: Conv2dBackward | Conv2dPoolBackward) -> Conv2dGradients:
    params, outputs = a.needs.params, a.weight.shape[0]
    sizes = (outputs if wanted else 0 for wanted in (params and a.needs.bias, params and a.norm is not None))
    d_bias, d_norm_weight = (a.x.new_empty(size) for size in sizes)
    return Conv2dGradients(
        d_x=image_like(a.needs.x, a.x),
        d_weight=like(params, a.weight, a.x),
        d_bias=d_bias,
        d_norm_weight=d_norm_weight,
        d_norm_bias=torch.empty_like(d_norm_weight),
    )


def _fake_pool_train(a: Conv2dPoolTrain) -> Conv2dPoolTrained:
    y = _fake(a.block)
    out = fake_max_pool(MaxPool(y, a.pool))
    positions = torch.empty_like(out, dtype=torch.uint8)
    return Conv2dPoolTrained(out, y, torch.empty_like(out), positions, y.new_empty((3, y.shape[1])))


def _fake_linked(a: Conv2dLinked) -> Conv2dLinkedTrained:
    y = image(a.x, a.weight.shape[0], *output_size(a.x, a.weight, a.stride, a.padding))
    return Conv2dLinkedTrained(y, y.new_empty((3, y.shape[1])))


def _fake_linked_backward(a: Conv2dLinkedBackward) -> ConvGradients:
    d_bias = a.x.new_empty(a.weight.shape[0] if a.needs.bias else 0)
    return ConvGradients(image_like(a.needs.x, a.x), like(a.needs.weight, a.weight, a.x), d_bias)


_conv2d = _library.define("conv2d", _FAMILY, Conv2d, Tensor, _fake)
_conv2d_train = _library.define("conv2d_train", _FAMILY, Conv2dTrain, Conv2dTrained, _fake_train)
_conv2d_backward = _library.define("conv2d_backward", _FAMILY, Conv2dBackward, Conv2dGradients, _fake_backward)
_conv2d_pool_train = _library.define("conv2d_pool_train", _FAMILY, Conv2dPoolTrain, Conv2dPoolTrained, _fake_pool_train)
_conv2d_pool_backward = _library.define(
    "conv2d_pool_backward", _FAMILY, Conv2dPoolBackward, Conv2dGradients, _fake_backward
)
conv2d_linked = _library.define("conv2d_linked", _FAMILY, Conv2dLinked, Conv2dLinkedTrained, _fake_linked)
_conv2d_linked_backward = _library.define(
    "conv2d_linked_backward", _FAMILY, Conv2dLinkedBackward, ConvGradients, _fake_linked_backward
)
_library.autograd(_conv2d_train, _conv2d_backward)
_library.autograd(_conv2d_pool_train, _conv2d_pool_backward)
_library.autograd(conv2d_linked, _conv2d_linked_backward)
for _op in (_conv2d, _conv2d_train, _conv2d_pool_train, conv2d_linked):
    _library.autocast(_op, lower=True)


def _check_weight(op: str, x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """(O, KH, KW) of a weight that fits ``x``."""
    _checks.is_tensor(op, "weight", weight)
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"{op}: weight: expected shape (O, C, KH, KW), got {tuple(weight.shape)}")
    _checks.image(op, "x", x, weight.shape[1])
    _checks.like(op, "weight", weight, x, weight.shape)
    return weight.shape[0], weight.shape[2], weight.shape[3]


def conv_fields(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm | None,
    act: str | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
) -> tuple[Conv2d, int, int]:
    """The signature of a convolution, checked, and its height and width."""
    op = "conv2d"
    _checks.image(op, "x", x)
    out, kh, kw = _check_weight(op, x, weight)
    if bias is not None:
        _checks.like(op, "bias", bias, x, (out,))
    strides, pads = _checks.pair(op, "stride", stride), _checks.padding4(op, padding)
    code = _checks.act_code(op, act)
    height = _checks.out_size(op, x.shape[2], pads[0], pads[2], kh, strides[0], "height")
    width = _checks.out_size(op, x.shape[3], pads[1], pads[3], kw, strides[1], "width")
    running = None if norm is None else running_norm(op, "norm", norm, x, out)
    return Conv2d(x, weight, bias, running, code, strides, pads), height, width


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    act: str | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    pool: Pool | None = None,
    training: bool = False,
) -> Tensor:
    """pool(act(norm(convolution(x) + bias))): x (N, C, H, W), weight (O, C, KH, KW) -> (N, O, OH, OW), channels_last.

    float32 or float64; bias (O,); stride an int or (vertical, horizontal); padding zeros as an int,
    (vertical, horizontal) or (top, left, bottom, right); norm a `Norm` or None, ``training`` as in `batch_norm`;
    pool the windows of a `max_pool2d` after it, or None.
    Raises TypeError or ValueError naming the argument.
    """
    block, height, width = conv_fields(x, weight, bias, norm, act, stride, padding)
    window = check_pool("conv2d", pool, height, width) if pool is not None else None
    batch_stats = training and norm is not None
    if batch_stats:
        check_batch("conv2d", (x.shape[0], weight.shape[0], height, width))
    if not batch_stats and not _conv2d.needs_gradient(block):
        y = _conv2d(block)
        return y if pool is None else max_pool2d(y, *pool)
    trained: Conv2dTrained | Conv2dPoolTrained
    if window is not None and norm is not None and math.prod(window.kernel) <= 256:
        trained = _conv2d_pool_train(Conv2dPoolTrain(block, window, batch_stats))
        pool = None
    else:
        trained = _conv2d_train(Conv2dTrain(block, batch_stats))
    if batch_stats and trained.out.numel():
        update_running(norm, trained.stats)
    return trained.out if pool is None else max_pool2d(trained.out, *pool)
