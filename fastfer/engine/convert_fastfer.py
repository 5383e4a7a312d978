# SPDX-License-Identifier: Apache-2.0
"""Handlers of fastfer's own ops; formulas are those of ``fastfer.backends.reference``, norms are folded in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from fastfer._signature import Signature
from fastfer._types import ACTIVATIONS
from fastfer.engine import views
from fastfer.engine.convert import Conversion, covers, numbers
from fastfer.engine.graph import MAX, MEAN, Array, vector
from fastfer.engine.views import Uncovered, View
from fastfer.signatures.bottleneck import Bottleneck
from fastfer.signatures.cbam import Cbam, ChannelGate, SpatialGate
from fastfer.signatures.conv2d import Conv2d
from fastfer.signatures.coordinate import Coordinate
from fastfer.signatures.fields import RunningNorm
from fastfer.signatures.gate import Gate
from fastfer.signatures.norm import BatchNorm
from fastfer.signatures.pool import GlobalPool, MaxPool
from fastfer.signatures.separable_conv import Depthwise, DepthwiseNorm, Pointwise, Separable

_SIGMOID, _HARDSWISH = ACTIVATIONS.index("sigmoid"), ACTIVATIONS.index("hardswish")
_RELU = ACTIVATIONS.index("relu")


def norm_affine(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Array, Array]:
    """Scale and shift of a norm with running statistics."""
    scale = 1 / np.sqrt(numbers(var) + eps)
    if weight is not None:
        scale = scale * numbers(weight)
    shift = -numbers(mean) * scale
    return scale, shift if bias is None else shift + numbers(bias)


def folded(weight: Array, bias: Array | None, scale: Array, shift: Array) -> tuple[Array, Array]:
    """Weights (O, ...) and bias (O,) of a convolution with ``scale`` and ``shift`` behind it."""
    wide = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return wide, shift if bias is None else bias * scale + shift


def convolution(
    into: Conversion, x: View, weight: Array, bias: Array | None, stride: Any, padding: Any, groups: int, act: int = 0
) -> View:
    """A convolution with four-sided padding; a pointwise one takes channels and pixels in any dimensions."""
    if groups == x.shape.channels > 1 and len(weight) != groups:
        raise Uncovered("several filters a channel")
    kh, kw = weight.shape[2:]
    bias = np.zeros(weight.shape[0]) if bias is None else bias
    attrs = (kh, kw, *stride, *padding, groups, act)
    if (kh, kw, *stride, *padding) == (1, 1, 1, 1, 0, 0, 0, 0) and views.is_pixelwise(x, 1):
        return pointwise(into, x, 1, weight, bias, groups, act)
    return into.image("conv", x, attrs, [weight, bias])


def pointwise(into: Conversion, x: View, dim: int, weight: Array, bias: Array, groups: int = 1, act: int = 0) -> View:
    """A 1×1 convolution of the channels, which are dimension ``dim`` of the tensor."""
    value = into.add("conv", [x], (1, 1, 1, 1, 0, 0, 0, 0, groups, act), [weight, bias])
    shape = into.graph.values[value]
    axes = list(x.axes)
    axes[dim] = View(value, shape, ()).present("C")
    return View(value, shape, tuple(axes))


Handler = Callable[["Conversion", Any], Any]


def described(name: str, signature: type) -> Callable[[Handler], Handler]:
    """`covers` for an op with a ``signature``, which the function takes, filled with views."""

    def decorate(function: Handler) -> Handler:
        unflatten = Signature(signature).unflatten
        covers(name)(lambda into, **values: function(into, unflatten(**values)))
        return function

    return decorate


def _block(
    into: Conversion, x: Any, weight: Tensor, bias: Tensor | None, norm: RunningNorm | None, act: int,
    stride: Any = (1, 1), padding: Any = (0, 0, 0, 0), groups: int = 1,
) -> View:  # fmt: skip
    """Convolution, norm, activation."""
    kernel, offset = numbers(weight), numbers(bias) if bias is not None else None
    if norm is not None:
        kernel, offset = folded(kernel, offset, *norm_affine(*norm))
    return convolution(into, x, kernel, offset, stride, padding, groups, act)


@described("fastfer.conv2d", Conv2d)
def _conv2d(into: Conversion, a: Conv2d) -> View:
    return _block(into, a.x, a.weight, a.bias, a.norm, a.act, a.stride, a.padding)


@described("fastfer.separable_conv2d", Separable)
def _separable(into: Conversion, a: Separable) -> View:
    y = _block(into, a.x, a.dw_weight, a.dw_bias, a.norm1, a.act1, a.stride, a.padding, a.dw_weight.shape[0])
    return _block(into, y, a.pw_weight, a.pw_bias, a.norm2, a.act2)


@described("fastfer.inverted_bottleneck", Bottleneck)
def _inverted_bottleneck(into: Conversion, a: Bottleneck) -> View:
    x: Any = a.x
    y = _block(into, x, a.expand_weight, None, a.norm1, a.act)
    y = _block(into, y, a.dw_weight, None, a.norm2, a.act, a.stride, a.padding, a.dw_weight.shape[0])
    if a.project_weight is None:
        return y
    y = _block(into, y, a.project_weight, None, a.norm3, 0)
    return into.seen_as(y, into.add("add", [y, x], [0])) if a.residual else y


@described("fastfer.depthwise_norm", DepthwiseNorm)
def _depthwise_norm(into: Conversion, a: DepthwiseNorm) -> View:
    return _block(into, a.x, a.weight, a.bias, a.norm, a.act, a.stride, a.padding, a.weight.shape[0])


@described("fastfer.depthwise_conv2d", Depthwise)
def _depthwise(into: Conversion, a: Depthwise) -> View:
    return _block(into, a.x, a.weight, a.bias, None, 0, a.stride, a.padding, a.weight.shape[0])


@described("fastfer.pointwise_conv2d", Pointwise)
def _pointwise(into: Conversion, a: Pointwise) -> View:
    return _block(into, a.x, a.weight, a.bias, None, 0)


@described("fastfer.batch_norm", BatchNorm)
def _batch_norm(into: Conversion, a: Any) -> View:
    return into.affine(a.x, *norm_affine(*a.norm), a.act)


@covers("fastfer.activation")
def _activation(into: Conversion, x: View, act: int) -> View:
    return into.pixelwise("act", x, [act])


@described("fastfer.max_pool2d", MaxPool)
def _max_pool2d(into: Conversion, a: Any) -> View:
    return into.image("max_pool", a.x, (*a.window.kernel, *a.window.stride, *a.window.padding))


def pooled(into: Conversion, x: View, kind: int) -> View:
    """Mean or maximum over the image: (N, C, H, W) -> (N, C)."""
    return into.view(views.vector, into.add("global_pool", [x], [kind]))


@described("fastfer.global_avg_pool", GlobalPool)
def _global_avg_pool(into: Conversion, a: Any) -> View:
    return pooled(into, a.x, MEAN)


@described("fastfer.global_max_pool", GlobalPool)
def _global_max_pool(into: Conversion, a: Any) -> tuple[View, ...]:
    return (pooled(into, a.x, MAX),)


@described("fastfer.global_avg_max_pool", GlobalPool)
def _global_avg_max_pool(into: Conversion, a: Any) -> tuple[View, ...]:
    return pooled(into, a.x, MEAN), pooled(into, a.x, MAX)


@described("fastfer.gate", Gate)
def _gate(into: Conversion, a: Any) -> View:
    side, pixel, pool = a.gates
    mlp = [] if side is None else [numbers(t) for t in (side.w1, side.b1, side.w2, side.b2) if t is not None]
    weights = [] if pixel is None else [numbers(pixel.sw), numbers(pixel.sb)]
    form = len(mlp), len(weights), pixel is not None and pixel.linear
    if pool and form != (1, 2, False):
        raise Uncovered("a gate with a pool after it that is not CSA's")
    if pixel is not None and side is not None and side.gate_act != _SIGMOID:
        raise Uncovered(f"a channel gate of {ACTIVATIONS[side.gate_act]} beside a pixel gate")
    if form == (4, 0, False):
        return into.image("se", a.x, (side.act, side.gate_act), mlp)
    if form == (1, 0, False) and side.gate_act == _SIGMOID:
        return into.image("eca", a.x, (), mlp)
    if form == (0, 2, False):
        return into.image("sa", a.x, (0, 1, 1), weights)
    if form == (1, 2, False):
        return into.image("csa", a.x, (pool,), [*mlp, *weights])
    if form == (4, 2, True):
        return into.image("scse", a.x, (side.act,), [*mlp, *weights])
    raise Uncovered(f"a gate of {len(mlp)} channel tensors and {len(weights)} pixel tensors")


def _spatial(weight: Tensor, norm: RunningNorm) -> list[Array]:
    """Weights and bias of a spatial gate's convolution, its norm folded in."""
    return list(folded(numbers(weight), None, *norm_affine(norm.weight, norm.bias, norm.mean, norm.var, norm.eps)))


@described("fastfer.cbam", Cbam)
def _cbam(into: Conversion, a: Any) -> View:
    return into.image("cbam", a.x, a.weight.shape[2:], [*map(numbers, a.mlp), *_spatial(a.weight, a.norm)])


@described("fastfer.spatial_gate", SpatialGate)
def _spatial_gate(into: Conversion, a: Any) -> View:
    return into.image("sa", a.x, (0, *a.weight.shape[2:]), _spatial(a.weight, a.norm))


@described("fastfer.channel_gate", ChannelGate)
def _channel_gate(into: Conversion, a: Any) -> View:
    """mlp(mean) + mlp(max): the second layer is linear, so one product takes the sum of the hidden units."""
    w1, b1, w2, b2 = map(numbers, a.mlp)
    hidden = [pointwise(into, pooled(into, a.x, kind), 1, w1, b1, act=_RELU) for kind in (MEAN, MAX)]
    both = into.seen_as(hidden[0], into.add("add", hidden, [0]))
    gate = pointwise(into, both, 1, w2, 2 * b2, act=_SIGMOID)
    return into.seen_as(a.x, into.add("mul", [a.x, gate], [0]))


@described("fastfer.coordinate_attention", Coordinate)
def _coordinate_attention(into: Conversion, a: Coordinate) -> View:
    x: Any = a.x
    if a.act != _HARDSWISH:
        raise Uncovered(f"coordinate attention with {ACTIVATIONS[a.act]} inside, expected hardswish")
    offset = numbers(a.bias) * (2 if a.kind == 2 else 1)
    squeeze = folded(numbers(a.weight), offset, *norm_affine(*a.norm))
    gates = [numbers(t) for t in (a.h_weight, a.h_bias, a.w_weight, a.w_bias)]
    return into.image("coordinate", x, (a.kind,), [*squeeze, *gates])


@covers("fastfer.cpsca_pool")
def _cpsca_pool(into: Conversion, x: View) -> tuple[View, ...]:
    def line(axis: int, kind: int) -> View:
        value = into.add("line_pool", [x], [axis, kind])
        shape = into.graph.values[value]
        return View(value, shape, ("N", *(View(value, shape, ()).present(c) for c in ("CW" if axis else "CH"))))

    return line(0, MEAN), line(0, MAX), line(1, MEAN), line(1, MAX)


def _check_tokens(*tensors: View) -> None:
    for t in tensors:
        if "N" not in t.axes[0]:
            raise Uncovered("attention over the images of a batch: logits of one would depend on the others")
        if t != views.tokens(t.value, t.shape):
            raise Uncovered(f"attention over dimensions {t.axes}, expected each image's pixels as tokens (N, HW, C)")


def attention(into: Conversion, q: View, k: View, v: View, scale: float) -> View:
    """softmax(scale · q kᵀ) v of tokens (N, T, D), keys and values one tensor."""
    if k != v:
        raise Uncovered("attention whose keys are not its values")
    _check_tokens(q, k)
    return into.view(views.tokens, into.add("dot_attention", [q, k], [0], [vector([scale])]))


@covers("fastfer.dot_product_attention")
def _dot_product_attention(into: Conversion, q: View, k: View, v: View, scale: Any, factor: float) -> View:
    rate = factor if scale is None else factor * float(numbers(scale).reshape(()))
    return attention(into, q, k, v, rate)


@covers("fastfer.additive_attention")
def _additive_attention(
    into: Conversion, x: View, h: View, weight: Tensor, bias: Tensor, v: Tensor, v_bias: Tensor
) -> View:
    _check_tokens(x, h)
    tensors = [numbers(t) for t in (weight, bias, v, v_bias)]
    return into.view(views.vector, into.add("additive_attention", [h, x], (), tensors))
