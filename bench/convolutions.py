# SPDX-License-Identifier: Apache-2.0
"""Depthwise and pointwise convolutions alone, forward and backward, as fastfer and stock PyTorch do them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import fastfer
from bench.contenders import (
    FASTFER,
    Copies,
    Problem,
    compiled,
    elements,
    images,
    layout_of,
    seeded,
    slots_for,
)
from bench.layers import Layer
from bench.measure import Runner
from fastfer import ops
from fastfer.ops.separable_conv import _depthwise_backward as depthwise_backward
from fastfer.ops.separable_conv import _pointwise_backward as pointwise_backward
from fastfer.signatures.separable_conv import ConvNeeds, DepthwiseBackward, PointwiseBackward


def _conv(layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a depthwise or a pointwise layer."""
    generator = seeded()
    if layer.kernel:
        return torch.randn(layer.inputs, 1, layer.kernel, layer.kernel, generator=generator) / layer.kernel, None
    weight = torch.randn(layer.outputs, layer.inputs, 1, 1, generator=generator) / layer.inputs**0.5
    return weight, torch.randn(layer.outputs, generator=generator) if layer.bias else None


def _fastfer_conv(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if layer.kernel:
        return ops.depthwise_conv2d(x, weight, bias, layer.stride, layer.padding)
    return ops.pointwise_conv2d(x, weight, bias)


def _uneven(layer: Layer) -> bool:
    return layer.top != layer.bottom or layer.left != layer.right


def _pad(layer: Layer, x: Tensor) -> Tensor:
    return F.pad(x, (layer.left, layer.right, layer.top, layer.bottom)) if _uneven(layer) else x


def _torch_geometry(layer: Layer) -> tuple[list[int], list[int], int]:
    """Stride, padding and groups."""
    padding = [0, 0] if _uneven(layer) else [layer.top, layer.left]
    return [layer.stride] * 2, padding, layer.inputs if layer.kernel else 1


def conv_forward(layer: Layer, batch: int) -> Problem:
    """A depthwise or pointwise convolution without gradients."""
    (weight, bias), image = _conv(layer), images(layer, batch)
    inputs, outputs = elements(layer, batch)
    slots = slots_for(batch, 4 * inputs)
    stride, padding, groups = _torch_geometry(layer)

    def oracle() -> list[Tensor]:
        wide = bias.double() if bias is not None else None
        with fastfer.use("reference"), torch.no_grad():
            return [_fastfer_conv(layer, image.double(), weight.double(), wide)]

    def build(name: str) -> Runner:
        xs, w = Copies(image, batch, slots, layout_of(name)), weight.contiguous(memory_format=layout_of(name))
        if name in FASTFER:
            return lambda slot: (_fastfer_conv(layer, xs[slot], weight, bias),)

        def forward(x: Tensor) -> Tensor:
            return F.conv2d(_pad(layer, x), w, bias, stride, padding, groups=groups)

        call = compiled(forward) if name == "torch_compile" else forward
        return lambda slot: (call(xs[slot]),)

    return Problem(
        macs=batch * layer.macs,
        traffic=4 * (inputs + outputs + weight.numel()),
        terms=layer.kernel**2 or layer.inputs,
        slots=slots,
        mode=torch.no_grad,
        oracle=oracle,
        build=build,
    )


def conv_backward(layer: Layer, batch: int) -> Problem:
    """The backward op alone: gradients of input, weight and, where there is one, bias.

    PyTorch gets the input already padded where the sides differ, and its gradient of the padded input is left uncut.
    """
    (weight, bias), image, dimage = _conv(layer), images(layer, batch), images(layer, batch, out=True)
    inputs, outputs = elements(layer, batch)
    slots, needs = slots_for(batch, 4 * inputs), ConvNeeds(x=True, weight=True, bias=bias is not None)
    stride, padding, groups = _torch_geometry(layer)

    def fastfer_backward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        if layer.kernel:
            grads = depthwise_backward(DepthwiseBackward(dy, x, w, stride, list(layer.padding), needs))
        else:
            grads = pointwise_backward(PointwiseBackward(dy, x, w, needs))
        return tuple(grad for grad, needed in zip(grads, needs, strict=True) if needed)

    def torch_backward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        sizes = [w.shape[0]] if needs.bias else None
        grads = torch.ops.aten.convolution_backward.default(
            dy, x, w, sizes, stride, padding, [1, 1], False, [0, 0], groups, list(needs)
        )
        return tuple(grad for grad, needed in zip(grads, needs, strict=True) if needed)

    def oracle() -> list[Tensor]:
        with fastfer.use("reference"):
            dx, *grads = fastfer_backward(dimage.double(), image.double(), weight.double())
        scale = batch // image.shape[0]
        return [dx, *(scale * grad for grad in grads)]

    def build(name: str) -> Runner:
        layout = layout_of(name)
        x = image if name in FASTFER else _pad(layer, image)
        xs, dys = Copies(x, batch, slots, layout), Copies(dimage, batch, slots, layout)
        if name in FASTFER:
            return lambda slot: fastfer_backward(dys[slot], xs[slot], weight)
        w = weight.contiguous(memory_format=layout)
        call = compiled(torch_backward) if name == "torch_compile" else torch_backward
        if not _uneven(layer):
            return lambda slot: call(dys[slot], xs[slot], w)
        rows, columns = slice(layer.top, layer.top + layer.height), slice(layer.left, layer.left + layer.width)

        def run(slot: int) -> tuple[Tensor, ...]:
            dx, *grads = call(dys[slot], xs[slot], w)
            return dx[:, :, rows, columns], *grads

        return run

    return Problem(
        macs=2 * batch * layer.macs,
        traffic=4 * (2 * inputs + outputs + 2 * weight.numel()),
        terms=batch * layer.out_size[0] * layer.out_size[1],
        slots=slots,
        mode=torch.no_grad,
        oracle=oracle,
        build=build,
    )
