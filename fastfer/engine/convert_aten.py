# SPDX-License-Identifier: Apache-2.0
"""Handlers of torch's own ops: convolution, linear, norm, activations, pools, reductions, arithmetic, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.engine import views
from fastfer.engine.convert import Conversion, Lazy, covers, numbers
from fastfer.engine.convert_attention import Scores, Softmax, Weighted, weighted
from fastfer.engine.convert_fastfer import convolution, norm_affine, pointwise
from fastfer.engine.convert_joined import Joined
from fastfer.engine.graph import MAX, MEAN, Array
from fastfer.engine.views import Uncovered, View

_SIGMOID = ACTIVATIONS.index("sigmoid")


def _pair(value: int | Sequence[int], default: Sequence[int] | None = None) -> tuple[int, int]:
    """One or two numbers as two; ``default`` for none."""
    items = [value] if isinstance(value, int) else list(value) or list(default or ())
    return (items[0], items[-1])


def _sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    y, x = _pair(padding)
    return y, x, y, x


def _dense(into: Conversion, input: View, weight: Tensor, bias: Any, stride: Any, padding: Any, groups: int) -> View:
    offset = None if bias is None else numbers(bias)
    return convolution(into, input, numbers(weight), offset, _pair(stride), padding, groups)


@covers("aten.conv2d")
def _conv2d(
    into: Conversion, input: View, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> View:
    if _pair(dilation) != (1, 1):
        raise Uncovered(f"dilation {tuple(dilation)}")
    if isinstance(padding, str):
        spans = [size - 1 if padding == "same" else 0 for size in weight.shape[2:]]
        sides = (spans[0] // 2, spans[1] // 2, spans[0] - spans[0] // 2, spans[1] - spans[1] // 2)
    else:
        sides = _sides(padding)
    return _dense(into, input, weight, bias, stride, sides, groups)


@covers("aten.conv1d")
def _conv1d(
    into: Conversion, input: View, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> View:
    """A convolution along the channels of a vector (N, 1, C), as a product with a band matrix."""
    size, channels = weight.shape[2], input.shape.channels
    along = ("N", "", input.present("C"))
    if input.axes != along or weight.shape[:2] != (1, 1) or (*stride, *dilation, *padding) != (1, 1, size // 2):
        raise Uncovered("a one-dimensional convolution that is not along the channels of a vector, same size")
    taps, band = numbers(weight).reshape(-1), np.zeros((channels, channels))
    for tap in range(size):
        band += taps[tap] * np.eye(channels, k=tap - size // 2)
    offset = np.zeros(channels) if bias is None else np.full(channels, numbers(bias).item())
    return pointwise(into, input, 2, band, offset)


@covers("aten.linear")
def _linear(into: Conversion, input: View, weight: Any, bias: Any) -> View:
    if not isinstance(weight, Tensor):
        raise Uncovered("a linear layer whose weight depends on the input")
    matrix = numbers(weight)
    offset = np.zeros(len(matrix)) if bias is None else numbers(bias)
    last = len(input.axes) - 1
    if views.is_pixelwise(input, last):
        return pointwise(into, input, last, matrix, offset)
    c, h, w = input.shape
    if input.axes == ("N", input.present("CHW")):
        kernel = matrix.reshape(-1, c, h, w)
        value = into.add("conv", [input], (h, w, 1, 1, 0, 0, 0, 0, 1, 0), [kernel, offset])
        return into.view(views.vector, value)
    raise Uncovered(f"a linear layer over dimensions {input.axes}, expected its last to be the channels")


@covers("aten.batch_norm")
def _batch_norm(
    into: Conversion,
    input: View,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> View:
    if training or running_mean is None:
        raise Uncovered("a norm with the statistics of the batch")
    if not views.is_pixelwise(input, 1):
        raise Uncovered(f"a norm of dimensions {input.axes}, expected the channels as the second")
    return into.affine(input, *norm_affine(weight, bias, running_mean, running_var, eps))


@covers("aten._native_batch_norm_legit_no_training")
def _functional_batch_norm(
    into: Conversion,
    input: View,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
) -> Any:
    """What the functional form of a program has for it; its other results are empty."""
    return _batch_norm(into, input, weight, bias, running_mean, running_var, False, momentum, eps, False)


def _activation(act: str) -> Any:
    code = ACTIVATIONS.index(act)

    def handler(into: Conversion, self: View, inplace: bool = False) -> View:
        return into.pixelwise("act", self, [code])

    return handler


for _name in ACTIVATIONS[1:]:
    covers(f"aten.{_name}")(_activation(_name))


@covers("aten.hardtanh", "aten.clamp")
def _hardtanh(into: Conversion, self: View, **bounds: Any) -> View:
    low_bound, high = list(bounds.values())
    acts = {(0, 6): "relu6", (0, None): "relu"}
    if (low_bound, high) not in acts:
        raise Uncovered(f"bounds {low_bound} and {high}, expected 0 and 6")
    return into.pixelwise("act", self, [ACTIVATIONS.index(acts[low_bound, high])])


@covers("aten.tanh")
def _tanh(into: Conversion, self: View) -> View:
    """2 sigmoid(2x) - 1."""
    return into.affine(into.affine(self, 2, 0, _SIGMOID), 2, -1)


@covers("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout")
def _dropout(into: Conversion, input: View, p: float, train: bool) -> View:
    if train:
        raise Uncovered("dropout in training mode")
    return input


def _ceiled(size: int, kernel: int, stride: int, before: int) -> int:
    """Padding at the end that gives the rounded-up number of windows, the last of which starts within the image."""
    count = -(-(size + 2 * before - kernel) // stride) + 1
    count -= (count - 1) * stride >= size + before
    return max((count - 1) * stride + kernel - size - before, before)


def _window(x: View, kernel: Any, stride: Any, padding: Any, ceil: bool) -> tuple[int, ...]:
    """Kernel, stride, four-sided padding."""
    kernels, pads = _pair(kernel), _sides(padding)
    strides = _pair(stride, kernels)
    if ceil:
        ends = (_ceiled(x.shape[i + 1], kernels[i], strides[i], pads[i]) for i in (0, 1))
        pads = (*pads[:2], *ends)  # type: ignore[assignment]
    return (*kernels, *strides, *pads)


@covers("aten.max_pool2d")
def _max_pool2d(
    into: Conversion, self: View, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> View:
    if _pair(dilation) != (1, 1):
        raise Uncovered(f"dilation {tuple(dilation)}")
    return into.image("max_pool", self, _window(self, kernel_size, stride, padding, ceil_mode))


@covers("aten.avg_pool2d")
def _avg_pool2d(
    into: Conversion,
    self: View,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: Any,
) -> View:
    if divisor_override is not None or (ceil_mode and count_include_pad and any(_pair(padding))):
        raise Uncovered("a divisor of its own, or padding both counted and rounded up")
    counted = count_include_pad and not ceil_mode
    return into.image("avg_pool", self, (*_window(self, kernel_size, stride, padding, ceil_mode), counted))


def _adaptive(into: Conversion, x: View, sizes: Sequence[int], kind: int) -> View:
    h, w = x.shape[1:]
    oh, ow = _pair(sizes)
    if (oh, ow) == (1, 1) and views.is_image(x):
        return into.view(views.image, into.add("global_pool", [x], [kind]))
    if h % oh or w % ow:
        raise Uncovered(f"adaptive pooling of {h}×{w} to {oh}×{ow}, expected windows of one size")
    window = (h // oh, w // ow, h // oh, w // ow, 0, 0, 0, 0)
    return into.image("max_pool", x, window) if kind == MAX else into.image("avg_pool", x, (*window, 0))


@covers("aten.adaptive_avg_pool2d")
def _adaptive_avg_pool2d(into: Conversion, self: View, output_size: Any) -> View:
    return _adaptive(into, self, output_size, MEAN)


@covers("aten.adaptive_max_pool2d")
def _adaptive_max_pool2d(into: Conversion, self: View, output_size: Any) -> tuple[View, ...]:
    return (_adaptive(into, self, output_size, MAX),)


_REDUCTIONS = {
    "C": ("channel_pool", (2,), (3,)),
    "HW": ("global_pool", (MEAN,), (MAX,)),
    "W": ("line_pool", (0, MEAN), (0, MAX)),
    "H": ("line_pool", (1, MEAN), (1, MAX)),
}


def reduce(into: Conversion, x: View, dims: Sequence[int], keepdim: bool, kind: int) -> View:
    """Mean or maximum over dimensions."""
    letters, axes = views.reduced(x, dims, keepdim)
    if "N" in letters:
        raise Uncovered("a reduction over the images of a batch")
    y = x
    pixels = letters.replace("C", "")
    # One of height and width alone, where the other has a single pixel, is the whole image.
    pixels = "HW" if pixels and pixels == x.present("HW") else pixels
    for part in (pixels, "C" if "C" in letters else ""):
        if part:
            op, *attrs = _REDUCTIONS[part]
            y = into.pixelwise(op, y, attrs[kind])
    return replace(y, axes=axes)


def _reduction(kind: int) -> Any:
    def handler(into: Conversion, self: View, dim: Any = (), keepdim: bool = False, dtype: Any = None) -> View:
        return reduce(into, self, [dim] if isinstance(dim, int) else dim or (), keepdim, kind)

    return handler


covers("aten.mean")(_reduction(MEAN))
covers("aten.amax")(_reduction(MAX))


@covers("aten.max")
def _max(into: Conversion, self: View, dim: int | None = None, keepdim: bool = False, other: Any = None) -> Any:
    if other is not None:
        raise Uncovered("the larger of two tensors")
    return reduce(into, self, () if dim is None else (dim,), keepdim, MAX)


@covers("aten.sum")
def _sum(into: Conversion, self: Any, dim: Any = (), keepdim: bool = False, dtype: Any = None) -> View:
    if isinstance(self, Weighted):
        return self.summed(into, dim or (), keepdim)
    mean = reduce(into, self, dim or (), keepdim, MEAN)
    return into.affine(mean, prod(map(self.size, views.reduced(self, dim or (), keepdim)[0])), 0)


def _channelwise(x: View, constant: Any) -> Array | float | None:
    """A constant that has one value, or one a channel, as that; None for any other."""
    if not isinstance(constant, Tensor):
        return float(constant)
    if constant.numel() == 1:
        return float(numbers(constant).item())
    sizes = (1,) * (len(x.axes) - constant.dim()) + tuple(constant.shape)
    along = [i for i, size in enumerate(sizes) if size > 1]
    if len(sizes) == len(x.axes) and len(along) == 1 and x.axes[along[0]] == "C":
        return numbers(constant).reshape(-1)
    return None


def _ordered(op: str, a: View, b: View) -> tuple[View, View]:
    """The two with the one that repeats as the second."""
    for large, small in ((a, b), (b, a)):
        if views.broadcasts(large, small):
            return large, small
    raise Uncovered(f"{op} of dimensions {a.axes} and {b.axes}")


def _sum_of(into: Conversion, a: Any, b: Any, sign: float, first: float = 1.0) -> View:
    """first · a + sign · b, at most one of them a constant."""
    if not isinstance(a, View):
        a, b, first, sign = b, a, sign, first
    if not isinstance(b, View):
        shift = _channelwise(a, b)
        if shift is None:
            raise Uncovered(f"a constant of shape {tuple(b.shape)} added, expected a number or one a channel")
        return into.affine(a, first, sign * shift)
    parts = [t if rate == 1 else into.affine(t, rate, 0) for t, rate in ((a, first), (b, sign))]
    large, small = _ordered("sum", *parts)
    return into.seen_as(large, into.add("add", [large, small], [0]))


def _additive(first: float, second: float) -> Any:
    def handler(into: Conversion, self: Any, other: Any, alpha: float = 1) -> View:
        return _sum_of(into, self, other, second * alpha, first)

    return handler


for _name, _signs in (("add", (1, 1)), ("sub", (1, -1)), ("rsub", (-1, 1))):
    covers(f"aten.{_name}")(_additive(*_signs))


@covers("aten.neg")
def _neg(into: Conversion, self: View) -> View:
    return into.affine(self, -1, 0)


@covers("aten.mul")
def _mul(into: Conversion, self: Any, other: Any) -> Any:
    a, b = (self, other) if isinstance(self, (View, Lazy)) else (other, self)
    if isinstance(a, Scores) and not isinstance(b, (View, Lazy)):
        return a.scaled(b)
    if isinstance(a, Softmax) or isinstance(b, Softmax):
        return weighted(a, b)
    if isinstance(a, Lazy) or isinstance(b, Lazy):
        raise Uncovered("arithmetic on the scores of an attention")
    if not isinstance(b, View):
        scale = _channelwise(a, b)
        if scale is None:
            raise Uncovered(f"a constant factor of shape {tuple(b.shape)}, expected a number or one a channel")
        return into.affine(a, scale, 0)
    large, small = _ordered("product", a, b)
    return into.seen_as(large, into.add("mul", [large, small], [0]))


@covers("aten.div")
def _div(into: Conversion, self: Any, other: Any, rounding_mode: Any = None) -> Any:
    if isinstance(other, (View, Lazy)) or rounding_mode is not None:
        raise Uncovered("division by something that depends on the input")
    return _mul(into, self, 1 / other)


@covers("aten.cat")
def _cat(into: Conversion, tensors: Sequence[View], dim: int) -> View | Joined:
    first = tensors[0]
    if not all(isinstance(t, View) for t in tensors):
        raise Uncovered("a concatenation with a constant or with scores")
    at = first.dim(dim)
    if len(tensors) == 1:
        return first
    if all(t.axes[at] in ("H", "W") and views.is_pixelwise(t, 1) and at != 1 for t in tensors):
        return Joined(tuple(tensors), at)
    others = {(*t.axes[:at], *t.axes[at + 1 :]) for t in tensors}
    if len(others) != 1 or any(t.axes[at] not in ("C", "") or t.axes[at] != t.present("C") for t in tensors):
        raise Uncovered(f"tensors joined along dimension {at} of {first.axes}, expected the channels")
    value = into.add("concat", tensors)
    shape = into.graph.values[value]
    return View(value, shape, (*first.axes[:at], "C", *first.axes[at + 1 :]))
