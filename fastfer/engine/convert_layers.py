# SPDX-License-Identifier: Apache-2.0
"""Handlers of layers in their general forms: convolutions, linear layers, norms, for tensors of any dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from fastfer.engine import strided, tensors
from fastfer.engine.convert import Conversion, generally, numbers
from fastfer.engine.convert_fastfer import norm_affine
from fastfer.engine.convert_math import binary, unary
from fastfer.engine.convert_tensor import ints, reshaped, tensor
from fastfer.engine.graph import Array, vector
from fastfer.engine.strided import Factor, Strided
from fastfer.engine.views import Uncovered, View

Any_ = View | Strided


def _image(into: Conversion, x: Any, rank: int) -> Strided:
    """A tensor (N, C, W) or (N, C, H, W) as a map with these axes."""
    form = strided.strided(tensor(into, x))
    if len(form.dims) != rank + 2 or form.dims[0] != (strided.IMAGES,):
        raise Uncovered(f"expected dimensions (N, C, {'H, W' if rank == 2 else 'W'}), got {form.axes}")
    return strided.arranged(into.graph, form, ["N", "C", *"HW"[2 - rank :]])


def _as_image(into: Conversion, value: int, rank: int) -> Any_:
    """The map as (N, C, W) or (N, C, H, W)."""
    c, h, w = shape = into.graph.values[value]
    sizes = {"C": (c, h * w), "H": (h, w), "W": (w, 1)}
    dims = [(Factor(*sizes[a]),) if sizes[a][0] > 1 else () for a in ("C", *"HW"[2 - rank :])]
    return strided.seen(Strided(value, shape, 0, ((strided.IMAGES,), *dims)))


def _spread(weight: Array, dilation: Sequence[int]) -> Array:
    """A kernel (O, I, kh, kw) with zeros between its taps."""
    if tuple(dilation) == (1, 1):
        return weight
    o, i, kh, kw = weight.shape
    wide = np.zeros((o, i, (kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1))
    wide[:, :, :: dilation[0], :: dilation[1]] = weight
    return wide


def convolution(
    into: Conversion, value: int, weight: Array, bias: Array | None, stride: Sequence[int], sides: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> int:  # fmt: skip
    """A convolution of a map by (O, C / groups, kh, kw) with four-sided padding; the number of its output."""
    shape = into.graph.values[value]
    outputs = len(weight)
    if groups == shape.channels and outputs != groups and outputs % groups == 0:
        # Several filters a channel: as many copies of it.
        channels = np.repeat(np.arange(groups), outputs // groups)
        wide = shape._replace(channels=outputs)
        pixels = shape.height * shape.width
        rows = [(channels, pixels), (np.arange(shape.height), shape.width), (np.arange(shape.width), 1)]
        value, groups = strided.gathered(into.graph, value, wide, rows), outputs
    offset = np.zeros(outputs) if bias is None else bias
    apart = (1, 1) if weight.shape[2:] == (1, 1) else tuple(dilation)
    attrs = (*weight.shape[2:], *stride, *sides, groups, 0, *(() if apart == (1, 1) else apart))
    op = "conv" if apart == (1, 1) else "dilated_conv"
    return into.graph.add(op, [value], attrs, [vector(weight), vector(offset)])


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Four sides, of "same" too."""
    if not isinstance(padding, str):
        y, x = ints(padding, 2)
        return [y, x, y, x]
    spans = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    return [spans[0] // 2, spans[1] // 2, spans[0] - spans[0] // 2, spans[1] - spans[1] // 2]


def _conv(rank: int) -> Callable[..., Any_]:
    def handler(
        into: Conversion, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Any_:
        if not isinstance(weight, Tensor):
            raise Uncovered("a convolution whose weight depends on the input")
        y = _image(into, input, rank)
        kernel = numbers(weight)
        steps, apart = ints(stride, rank), ints(dilation, rank)
        pads: Any = padding if isinstance(padding, str) else ints(padding, rank)
        if rank == 1:
            kernel, steps, apart = kernel[:, :, None, :], [1, *steps], [1, *apart]
            pads = pads if isinstance(pads, str) else [0, *pads]
        sides = _padding(pads, kernel.shape[2:], apart)
        offset = None if bias is None else numbers(bias)
        return _as_image(into, convolution(into, y.value, kernel, offset, steps, sides, apart, groups), rank)

    return handler


generally("aten.conv2d")(_conv(2))
generally("aten.conv1d")(_conv(1))


@generally("aten.convolution")
def _convolution(
    into: Conversion, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Any_:  # fmt: skip
    rank = len(weight.shape) - 2
    if rank not in (1, 2):
        raise Uncovered("a convolution of more than two dimensions")
    if transposed:
        return _transposed(rank)(into, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(rank)(into, input, weight, bias, stride, padding, dilation, groups)


def _transposed(rank: int) -> Callable[..., Any_]:
    def handler(
        into: Conversion, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Any_:  # fmt: skip
        if not isinstance(weight, Tensor):
            raise Uncovered("a convolution whose weight depends on the input")
        y = _image(into, input, rank)
        kernel = numbers(weight)
        steps, pads, more, apart = (ints(v, rank) for v in (stride, padding, output_padding, dilation))
        if rank == 1:
            kernel = kernel[:, :, None, :]
            steps, pads, more, apart = [1, *steps], [0, *pads], [0, *more], [1, *apart]
        kernel = _spread(kernel, apart)
        offset = None if bias is None else numbers(bias)
        return _as_image(into, upsampled(into, y.value, kernel, offset, steps, pads, more, groups), rank)

    return handler


generally("aten.conv_transpose2d")(_transposed(2))
generally("aten.conv_transpose1d")(_transposed(1))


class _Axis:
    """Of a transposed convolution along an axis: output i is phase (i + cut) % stride of row (i + cut) // stride of a
    convolution with ``taps`` of every stride-th tap."""

    def __init__(self, size: int, kernel: int, stride: int, pad: int, more: int) -> None:
        self.stride, self.taps = stride, -(-kernel // stride)
        self.size = (size - 1) * stride + kernel - 2 * pad + more
        skipped = min(pad // stride, self.taps - 1)
        self.before, self.cut = self.taps - 1 - skipped, pad - skipped * stride
        self.rows = -(-(self.cut + self.size) // stride)
        self.after = max(self.rows - 1 - (size + self.before - self.taps), 0)
        if self.size < 1:
            raise Uncovered("a transposed convolution without an output")

    def places(self) -> tuple[Array, Array]:
        """Phases and rows of the outputs."""
        at = np.arange(self.size) + self.cut
        return at % self.stride, at // self.stride


def upsampled(
    into: Conversion, value: int, weight: Array, bias: Array | None, stride: Sequence[int], pad: Sequence[int],
    more: Sequence[int], groups: int,
) -> int:  # fmt: skip
    """A transposed convolution by (C, O / groups, kh, kw): one convolution for all phases of the output, a gather."""
    shape = into.graph.values[value]
    inputs, each, kh, kw = weight.shape
    sizes = (shape.height, shape.width)
    y, x = (_Axis(sizes[i], weight.shape[2 + i], stride[i], pad[i], more[i]) for i in (0, 1))
    full = np.zeros((inputs, each, y.taps * y.stride, x.taps * x.stride))
    full[:, :, :kh, :kw] = weight
    # (group, input, output, tap, phase, tap, phase) -> (group, phases, output, input, taps turned around)
    parts = full.reshape(groups, inputs // groups, each, y.taps, y.stride, x.taps, x.stride)
    kernel = parts.transpose(0, 4, 6, 2, 1, 3, 5)[..., ::-1, ::-1]
    kernel = kernel.reshape(-1, inputs // groups, y.taps, x.taps)
    offset = np.zeros(groups * each) if bias is None else bias
    wide = np.broadcast_to(offset.reshape(groups, 1, each), (groups, y.stride * x.stride, each)).reshape(-1)
    sides = (y.before, x.before, y.after, x.after)
    z = convolution(into, value, kernel, wide, (1, 1), sides, (1, 1), groups)
    form = into.graph.values[z]
    pixels = form.height * form.width
    (phase_y, row), (phase_x, column) = y.places(), x.places()
    channel = np.arange(groups * each)
    channels = channel // each * (y.stride * x.stride * each) + channel % each
    rows = [
        (channels, pixels),
        (phase_y * x.stride * each * form.height + row, form.width),
        (phase_x * each * pixels + column, 1),
    ]
    return strided.gathered(into.graph, z, shape._replace(channels=groups * each, height=y.size, width=x.size), rows)


def linear(into: Conversion, x: Any, matrix: Array, bias: Array | None) -> Any_:
    """matrix (O, K) times the last dimension, plus bias."""
    last = len(x.sizes) - 1
    y = tensors.with_channels(into.graph, x, last)
    if y.of_batch(last):
        raise Uncovered("a linear layer over the images of a batch")
    offset = np.zeros(len(matrix)) if bias is None else bias
    kernel = matrix.reshape(*matrix.shape, 1, 1)
    value = into.graph.add("conv", [y.value], (1, 1, 1, 1, 0, 0, 0, 0, 1, 0), [kernel, offset])
    return tensors.channels_changed(into.graph, y, last, value)


@generally("aten.linear")
def _linear(into: Conversion, input: Any, weight: Any, bias: Any = None) -> Any_:
    if not isinstance(weight, Tensor):
        raise Uncovered("a linear layer whose weight depends on the input")
    return linear(into, input, numbers(weight), None if bias is None else numbers(bias))


@generally("aten.batch_norm")
def _batch_norm(
    into: Conversion, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool = False,
) -> Any_:  # fmt: skip
    if training or running_mean is None:
        raise Uncovered("a norm with the statistics of the batch")
    y = tensors.with_channels(into.graph, input, 1)
    scale, shift = norm_affine(weight, bias, running_mean, running_var, eps)
    ones = np.ones(y.shape.channels)
    value = into.graph.add("affine", [y.value], [0], [ones * scale, ones * shift])
    return tensors.channels_changed(into.graph, y, 1, value)


def _normalised(into: Conversion, value: int, groups: int, by_pixel: bool, scale: Any, shift: Any, eps: float) -> int:
    ones = np.ones(into.graph.values[value].channels)
    weights = [
        ones if scale is None else numbers(scale).reshape(-1),
        0 * ones if shift is None else numbers(shift).reshape(-1),
    ]
    return into.graph.add("normalise", [value], [groups, by_pixel], [*weights, vector([eps])])


@generally("aten.group_norm")
def _group_norm(
    into: Conversion, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Any_:  # fmt: skip
    y = tensors.with_channels(into.graph, input, 1)
    value = _normalised(into, y.value, num_groups, False, weight, bias, eps)
    return tensors.channels_changed(into.graph, y, 1, value)


@generally("aten.instance_norm")
def _instance_norm(
    into: Conversion, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: bool,
    momentum: float, eps: float, cudnn_enabled: bool = False,
) -> Any_:  # fmt: skip
    if not use_input_stats:
        return _batch_norm(into, input, weight, bias, running_mean, running_var, False, momentum, eps)  # type: ignore[no-any-return]
    return _group_norm(into, input, input.sizes[1], weight, bias, eps)  # type: ignore[no-any-return]


@generally("aten.layer_norm")
def _layer_norm(
    into: Conversion, input: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn_enable: bool = False,
) -> Any_:  # fmt: skip
    rank, own = len(input.sizes), len(normalized_shape)
    if own == rank - 1 == 3:
        y = _image(into, input, 2)
        result = _as_image(into, _normalised(into, y.value, 1, False, None, None, eps), 2)
        for name, t in (("mul", weight), ("add", bias)):
            result = result if t is None else binary(into, name, result, t)
        return result
    sizes = input.sizes
    flat = reshaped(into, input, (*sizes[: rank - own], prod(normalized_shape))) if own > 1 else input
    y = tensors.with_channels(into.graph, flat, rank - own)
    value = _normalised(into, y.value, 1, True, weight, bias, eps)
    z = tensors.channels_changed(into.graph, y, rank - own, value)
    return strided.seen(reshaped(into, z, sizes)) if own > 1 else z


@generally("aten.rms_norm")
def _rms_norm(
    into: Conversion, input: Any, normalized_shape: Sequence[int], weight: Any = None, eps: Any = None
) -> Any_:
    dims = [-1 - i for i in range(len(normalized_shape))]
    mean = tensors.reduce(into.graph, unary(into, input, "square"), "mean", dims, keepdim=True)
    scale = unary(into, into.scaled(mean, 1.0, 1.1920928955078125e-07 if eps is None else float(eps)), "rsqrt")
    y = binary(into, "mul", input, scale)
    return y if weight is None else binary(into, "mul", y, weight)


@generally("aten.glu")
def _glu(into: Conversion, self: Any, dim: int = -1) -> Any_:
    form, at = strided.strided(self), self.dim(dim)
    half = form.sizes[at] // 2
    if form.of_batch(at) or len(form.dims[at]) != 1:
        raise Uncovered(f"glu over dimension {at} of {form.axes}")
    a, b = (strided.seen(strided.sliced(form, at, i * half, (i + 1) * half)) for i in (0, 1))
    return binary(into, "mul", a, into.activated(b, "sigmoid"))


@generally("aten.im2col")
def _im2col(into: Conversion, self: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Any_:
    """Windows as columns: steps through the padded image."""
    k, d, p, s = (ints(v, 2) for v in (kernel_size, dilation, padding, stride))
    x: Any = self
    if any(p):
        tables = {2 + i: tensors.padding(x.sizes[2 + i], p[i], p[i]) for i in (0, 1)}
        x = tensors.taken(into.graph, x, tables)
    y = _image(into, x, 2)
    c, h, w = y.shape
    rows, columns = ((n - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i, n in enumerate((h, w)))
    factors = [
        (Factor(c, h * w), Factor(k[0], d[0] * w), Factor(k[1], d[1])),
        (Factor(rows, s[0] * w), Factor(columns, s[1])),
    ]
    dims = [tuple(f for f in dim if f.size > 1) for dim in factors]
    return Strided(y.value, y.shape, 0, ((strided.IMAGES,), *dims))
