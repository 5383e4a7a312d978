# SPDX-License-Identifier: Apache-2.0
"""ONNX operators with windows or weights: convolutions, poolings, norms, matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfer.engine.onnx_pointwise import axis_of, fixed
from fastfer.engine.onnx_read import MOST_SIZE, OnnxError, OnnxNode
from fastfer.engine.onnx_shape import padded
from fastfer.engine.onnx_trace import Traced, Tracer, Value, aten, onnx_op
from fastfer.engine.views import Uncovered

Sides = list[tuple[int, int]]


def _window(node: OnnxNode, x: Value, kernel: Sequence[int]) -> tuple[list[int], list[int], Sides]:
    """Strides, dilations and the padding (before, after) of each spatial axis."""
    count = len(kernel)
    if x.dim() != count + 2:
        raise OnnxError(f"expected an input of {count + 2} dimensions for a kernel {tuple(kernel)}, got {x.dim()}")
    strides, dilations = (list(node.attrs.get(name) or [1] * count) for name in ("strides", "dilations"))
    pads, auto = node.attrs.get("pads") or [0] * 2 * count, node.attrs.get("auto_pad", "NOTSET")
    if any(len(part) != n for part, n in ((strides, count), (dilations, count), (pads, 2 * count))):
        raise OnnxError(f"strides, dilations, pads: expected {count}, {count} and {2 * count} numbers, got others")
    if any(abs(number) > MOST_SIZE for number in (*kernel, *strides, *dilations, *pads)):
        raise OnnxError(f"kernel, strides, dilations, pads: expected numbers of at most {MOST_SIZE}, got others")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        sides = []
        for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            whole = max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
            half = whole // 2
            sides.append((half, whole - half) if auto == "SAME_UPPER" else (whole - half, half))
        return strides, dilations, sides
    if auto not in ("NOTSET", "VALID"):
        raise OnnxError(f"auto_pad: expected NOTSET, VALID, SAME_UPPER or SAME_LOWER, got {auto!r}")
    sides = list(zip(pads[:count], pads[count:], strict=True)) if auto == "NOTSET" else [(0, 0)] * count
    return strides, dilations, sides


def _even(sides: Sides) -> bool:
    return all(before == after >= 0 for before, after in sides)


@onnx_op("Conv")
def _conv(g: Tracer, node: OnnxNode, x: Value, weight: Value, bias: Any = None) -> Any:
    weight, bias = fixed(weight, "a weight"), fixed(bias, "a bias")
    if weight.dim() not in (3, 4):
        raise Uncovered(f"a convolution over {weight.dim() - 2} axes")
    strides, dilations, sides = _window(node, x, weight.shape[2:])
    if not _even(sides):
        x, sides = padded(g, x, [(0, 0), (0, 0), *sides]), [(0, 0)] * len(sides)
    target = aten.conv1d.default if weight.dim() == 3 else aten.conv2d.default
    pads = [before for before, _ in sides]
    return g.call(target, x, weight, bias, strides, pads, dilations, node.attrs.get("group", 1))


@onnx_op("ConvTranspose")
def _conv_transpose(g: Tracer, node: OnnxNode, x: Value, weight: Value, bias: Any = None) -> Any:
    weight, bias = fixed(weight, "a weight"), fixed(bias, "a bias")
    if weight.dim() != 4:
        raise Uncovered(f"a transposed convolution over {weight.dim() - 2} axes")
    kernel, groups = list(weight.shape[2:]), node.attrs.get("group", 1)
    auto = node.attrs.get("auto_pad", "NOTSET")
    plain = OnnxNode(node.op, node.name, node.inputs, node.outputs, {**node.attrs, "auto_pad": "NOTSET"})
    strides, dilations, sides = _window(plain, x, kernel)
    extra = list(node.attrs.get("output_padding") or [0, 0])
    full = [
        (size - 1) * s + d * (k - 1) + 1 for size, s, d, k in zip(x.shape[2:], strides, dilations, kernel, strict=True)
    ]
    wanted = node.attrs.get("output_shape")
    if wanted is None and auto.startswith("SAME"):
        wanted = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        sides = []
        for size, more, want in zip(full, extra, wanted[-2:], strict=True):
            whole = size + more - want
            first = whole // 2 if auto == "SAME_UPPER" else whole - whole // 2
            first = max(first, 0) if whole >= 0 else 0  # what is missing is zeros behind
            sides.append((first, whole - first))
    if auto == "VALID":
        sides = [(0, 0), (0, 0)]
    # What is cut less behind than before is torch's output padding, the rest is cut afterwards.
    ends = [before + more - after for (before, after), more in zip(sides, extra, strict=True)]
    if all(
        before >= 0 and 0 <= end < max(s, d)
        for (before, _), end, s, d in zip(sides, ends, strides, dilations, strict=True)
    ):
        pads = [before for before, _ in sides]
        return g.call(aten.conv_transpose2d.input, x, weight, bias, strides, pads, ends, groups, dilations)
    y = g.call(aten.conv_transpose2d.input, x, weight, bias, strides, [0, 0], [0, 0], groups, dilations)
    return padded(g, y, [(0, 0), (0, 0), *((-b, more - a) for (b, a), more in zip(sides, extra, strict=True))])


def _pool_sides(node: OnnxNode, x: Value, kernel: Sequence[int]) -> tuple[list[int], list[int], Sides, bool]:
    """Strides, dilations, padding and whether the number of windows is rounded up; one axis as two."""
    strides, dilations, sides = _window(node, x, kernel)
    return strides, dilations, sides, bool(node.attrs.get("ceil_mode", 0))


def _ceiled(size: int, span: int, stride: int, side: tuple[int, int]) -> int:
    """Padding behind that gives the rounded-up number of windows, the last of which starts within the image."""
    before, after = side
    count = -(-(size + before + after - span) // stride) + 1
    count -= (count - 1) * stride >= size + before
    return max((count - 1) * stride + span - size - before, after)


@onnx_op("MaxPool")
def _max_pool(g: Tracer, node: OnnxNode, x: Value) -> Any:
    kernel = list(node.attrs["kernel_shape"])
    strides, dilations, sides, up = _pool_sides(node, x, kernel)
    if len(kernel) == 1:
        return _line(
            g,
            x,
            lambda image: _max_pool2d(g, image, [1, *kernel], [1, *strides], [1, *dilations], [(0, 0), *sides], up),
        )
    if len(kernel) != 2:
        raise Uncovered(f"a pooling over {len(kernel)} axes")
    return _max_pool2d(g, x, kernel, strides, dilations, sides, up)


def _line(g: Tracer, x: Value, pool: Any) -> Any:
    """What a pooling of images makes of (N, C, W)."""
    return g.call(aten.squeeze.dims, pool(g.call(aten.unsqueeze.default, x, 2)), [2])


def _max_pool2d(
    g: Tracer, x: Value, kernel: list[int], strides: list[int], dilations: list[int], sides: Sides, up: bool
) -> Any:
    if _even(sides) and all(2 * before <= k for (before, _), k in zip(sides, kernel, strict=True)):
        return g.call(aten.max_pool2d.default, x, kernel, strides, [before for before, _ in sides], dilations, up)
    if dilations != [1, 1] or not isinstance(x, Traced):
        raise Uncovered(f"dilation {tuple(dilations)} with padding {sides}")
    if up:
        sizes = zip(x.shape[2:], kernel, strides, sides, strict=True)
        sides = [(side[0], _ceiled(size, k, s, side)) for size, k, s, side in sizes]
    four = [sides[0][0], sides[1][0], sides[0][1], sides[1][1]]
    return g.call(torch.ops.fastfer.max_pool2d.default, x, kernel, strides, four)


@onnx_op("AveragePool")
def _average_pool(g: Tracer, node: OnnxNode, x: Value) -> Any:
    kernel = list(node.attrs["kernel_shape"])
    strides, dilations, sides, up = _pool_sides(node, x, kernel)
    counted = bool(node.attrs.get("count_include_pad", 0))
    if any(d != 1 for d in dilations) or len(kernel) > 2:
        raise Uncovered(f"an average over a kernel {tuple(kernel)} with dilation {tuple(dilations)}")
    if len(kernel) == 1:
        return _line(
            g, x, lambda image: _average2d(g, image, [1, *kernel], [1, *strides], [(0, 0), *sides], up, counted)
        )
    return _average2d(g, x, kernel, strides, sides, up, counted)


def _average2d(
    g: Tracer, x: Value, kernel: list[int], strides: list[int], sides: Sides, up: bool, counted: bool
) -> Any:
    starts = [before for before, _ in sides]
    if _even(sides) and all(2 * before <= k for before, k in zip(starts, kernel, strict=True)):
        return g.call(aten.avg_pool2d.default, x, kernel, strides, starts, up, counted)
    if counted and not up:
        return g.call(aten.avg_pool2d.default, padded(g, x, [(0, 0), (0, 0), *sides]), kernel, strides, [0, 0])
    if any(2 * before > k for before, k in zip(starts, kernel, strict=True)):
        raise Uncovered(f"an average over a kernel {tuple(kernel)} with padding {sides}")
    # Padding that is not counted and larger behind than before is a number of windows that is rounded up.
    sizes = list(zip(x.shape[2:], kernel, strides, sides, strict=True))
    want = [(size + sum(side) - k + (s - 1 if up else 0)) // s + 1 for size, k, s, side in sizes]
    ends = [_ceiled(size, k, s, (side[0], side[0])) for size, k, s, side in sizes]
    have = [(size + side[0] + end - k) // s + 1 for (size, k, s, side), end in zip(sizes, ends, strict=True)]
    if counted or want != have:
        raise Uncovered(f"an average with padding {sides}")
    return g.call(aten.avg_pool2d.default, x, kernel, strides, starts, True, False)


@onnx_op("GlobalAveragePool")
def _global_average(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.mean.dim, x, list(range(2, x.dim())), True)


@onnx_op("GlobalMaxPool")
def _global_max(g: Tracer, node: OnnxNode, x: Value) -> Any:
    return g.call(aten.amax.default, x, list(range(2, x.dim())), True)


@onnx_op("BatchNormalization")
def _batch_norm(g: Tracer, node: OnnxNode, x: Value, *parts: Value) -> Any:
    if node.attrs.get("training_mode"):
        raise Uncovered("a norm with the statistics of the batch")
    if node.attrs.get("spatial", 1) != 1:
        raise Uncovered("a norm with statistics of each pixel")
    scale, shift, mean, var = (fixed(part, "a norm's weight") for part in parts)
    return g.call(
        aten.batch_norm.default, x, scale, shift, mean, var, False, 0.1, node.attrs.get("epsilon", 1e-5), False
    )


@onnx_op("InstanceNormalization")
def _instance_norm(g: Tracer, node: OnnxNode, x: Value, scale: Value, shift: Value) -> Any:
    scale, shift = fixed(scale, "a norm's weight"), fixed(shift, "a norm's bias")
    eps = node.attrs.get("epsilon", 1e-5)
    return g.call(aten.instance_norm.default, x, scale, shift, None, None, True, 0.0, eps, False)


@onnx_op("LayerNormalization")
def _layer_norm(g: Tracer, node: OnnxNode, x: Value, scale: Any, shift: Any = None) -> Any:
    scale, shift = fixed(scale, "a norm's weight"), fixed(shift, "a norm's bias")
    sizes = list(x.shape[axis_of(x, node.attrs.get("axis", -1)) :])
    scale = scale.expand(sizes).contiguous()
    shift = None if shift is None else shift.expand(sizes).contiguous()
    return g.call(aten.layer_norm.default, x, sizes, scale, shift, node.attrs.get("epsilon", 1e-5), False)


@onnx_op("GroupNormalization")
def _group_norm(g: Tracer, node: OnnxNode, x: Value, scale: Value, shift: Value) -> Any:
    groups, channels = node.attrs["num_groups"], x.shape[1]
    parts = [fixed(part, "a norm's weight") for part in (scale, shift)]
    if g.opset < 21:  # one a group
        parts = [part.repeat_interleave(channels // groups) for part in parts]
    return g.call(aten.group_norm.default, x, groups, *parts, node.attrs.get("epsilon", 1e-5), False)


@onnx_op("LRN")
def _lrn(g: Tracer, node: OnnxNode, x: Value) -> Any:
    size, attrs = node.attrs["size"], node.attrs
    alpha, beta, bias = attrs.get("alpha", 1e-4), attrs.get("beta", 0.75), attrs.get("bias", 1.0)
    squares = g.call(aten.mul.Tensor, x, x)
    # The sum over neighbouring channels is a product with a band matrix: a 1×1 convolution.
    channels = x.shape[1]
    offsets = torch.arange(channels)[None, :] - torch.arange(channels)[:, None]
    band = ((offsets >= -((size - 1) // 2)) & (offsets <= size // 2)).float() * (alpha / size)
    ones = [1] * (x.dim() - 2)
    target = aten.conv2d.default if x.dim() == 4 else aten.conv1d.default
    zeros = [0] * len(ones)
    base = g.call(
        target, squares, band.reshape(channels, channels, *ones), torch.full((channels,), bias), ones, zeros, ones, 1
    )
    return g.call(aten.mul.Tensor, x, g.call(aten.pow.Tensor_Scalar, base, -beta))


@onnx_op("RMSNormalization")
def _rms_norm(g: Tracer, node: OnnxNode, x: Value, scale: Any) -> Any:
    axes = list(range(axis_of(x, node.attrs.get("axis", -1)), x.dim()))
    mean = g.call(aten.mean.dim, g.call(aten.pow.Tensor_Scalar, x, 2), axes, True)
    root = g.call(aten.sqrt.default, g.call(aten.add.Tensor, mean, torch.tensor(node.attrs.get("epsilon", 1e-5))))
    return g.call(aten.mul.Tensor, g.call(aten.div.Tensor, x, root), fixed(scale, "a norm's weight"))


@onnx_op("MeanVarianceNormalization")
def _mean_variance_norm(g: Tracer, node: OnnxNode, x: Value) -> Any:
    axes = list(node.attrs.get("axes", [0, 2, 3]))
    if [axis_of(x, axis) for axis in axes] != list(range(2, x.dim())):
        raise Uncovered(f"a norm over the axes {tuple(axes)}, expected those of the pixels")
    return g.call(aten.instance_norm.default, x, None, None, None, None, True, 0.0, 1e-9, False)


@onnx_op("LpNormalization")
def _lp_norm(g: Tracer, node: OnnxNode, x: Value) -> Any:
    power, axis = node.attrs.get("p", 2), axis_of(x, node.attrs.get("axis", -1))
    if power == 2:
        total = g.call(aten.sum.dim_IntList, g.call(aten.pow.Tensor_Scalar, x, 2), [axis], True)
        return g.call(aten.div.Tensor, x, g.call(aten.sqrt.default, total))
    total = g.call(aten.sum.dim_IntList, g.call(aten.abs.default, x), [axis], True)
    return g.call(aten.div.Tensor, x, total)


@onnx_op("MatMul")
def _matmul(g: Tracer, node: OnnxNode, a: Value, b: Value) -> Any:
    if isinstance(a, Traced) and isinstance(b, Tensor) and b.dim() == 2 and a.dim() >= 2:
        return g.call(aten.linear.default, a, b.t().contiguous(), None)
    return g.call(aten.matmul.default, a, b)


@onnx_op("Gemm")
def _gemm(g: Tracer, node: OnnxNode, a: Value, b: Value, c: Any = None) -> Any:
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if node.attrs.get("transA"):
        a = g.call(aten.t.default, a)
    if isinstance(a, Traced) and isinstance(b, Tensor):
        weight = (b if node.attrs.get("transB") else b.t()).contiguous()
        weight = weight if alpha == 1 else weight * alpha
        if c is None or (isinstance(c, Tensor) and c.numel() == len(weight) and c.shape[-1] == len(weight)):
            bias = None if c is None else c.reshape(-1) if beta == 1 else c.reshape(-1) * beta
            return g.call(aten.linear.default, a, weight, bias)
        y = g.call(aten.linear.default, a, weight, None)
    else:
        y = g.call(aten.matmul.default, a, g.call(aten.t.default, b) if node.attrs.get("transB") else b)
        y = y if alpha == 1 else g.call(aten.mul.Tensor, y, torch.tensor(alpha))
    if c is None:
        return y
    return g.call(aten.add.Tensor, y, c if beta == 1 else g.call(aten.mul.Tensor, c, torch.tensor(beta)))


@onnx_op("Einsum")
def _einsum(g: Tracer, node: OnnxNode, *values: Value) -> Any:
    return g.call(aten.einsum.default, node.attrs["equation"].replace(" ", ""), list(values))
