# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and separable convolution on CUDA tensors; the functions of `backends.reference.separable_conv`.

3×3 and 5×5 kernels of stride 1 and 2 run from tiles in shared memory, backward with both gradients from one tile; other
windows a thread an element. Both convolutions normalise and activate what they read, and the pointwise product gathers
the statistics of what it writes.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastfer.backends import composed
from fastfer.backends.cuda import norm
from fastfer.backends.cuda.conv2d import TILE, tiles
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, nhwc, product_types, type_name
from fastfer.signatures.fields import Affine, RunningNorm
from fastfer.signatures.separable_conv import (
    ConvGradients,
    ConvNeeds,
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

THREADS = 256


class Operand(NamedTuple):
    """What an operand passes as it is read: a norm with its statistics, or None, and an activation."""

    norm: Affine | RunningNorm | None = None
    stats: Tensor | None = None
    act: int = 0


PLAIN = Operand()
_LANES, _PIXELS = 32, 8  # csrc/cuda/columns.cuh, csrc/separable_conv/cuda.cuh
_PART, _PARTS = 4096, 64
"""Least rows of one part of a pointwise weight gradient, and most parts."""
_PARTS_OF_TILES = 1024
"""Most tiles whose parts of a depthwise weight gradient are summed in one pass."""


def _tiled(x: Tensor, kernel: list[int], stride: list[int], backward: bool) -> bool:
    square = kernel[0] == kernel[1] and stride[0] == stride[1] and kernel[0] in (3, 5) and stride[0] in (1, 2)
    # Of float64 the other tiles exceed 48 KiB of shared memory.
    return square and (x.dtype != torch.float64 or (kernel[0] == 3 if backward else stride[0] == 1))


def _tile_grid(height: int, width: int, images: int, channels: int) -> tuple[int, int, int]:
    return -(-width // _PIXELS), -(-height // _PIXELS), images * -(-channels // _LANES)


def _words(operand: Operand) -> tuple[Tensor | int, ...]:
    """The norm as kernels take it: three tensors, or zeros."""
    norm, stats = operand.norm, operand.stats
    return (0, 0, 0) if norm is None or stats is None else (norm.weight, norm.bias, stats)


def _packed(weight: Tensor, like: Tensor) -> Tensor:
    """(C, 1, KH, KW) -> (KH, KW, C) in the compute dtype."""
    return weight[:, 0].permute(1, 2, 0).to(compute_dtype(like)).contiguous()


def depthwise(
    launch: Launch,
    x: Tensor,
    operand: Operand,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Depthwise convolution of act(norm(x)), whose padding is zero; ``x`` NHWC, dense."""
    dtype, kernel = type_name("depthwise_conv2d", x), list(weight.shape[2:])
    images, channels, height, width = x.shape
    out = output_size(x, weight, stride, padding)
    y = empty_nhwc(x, channels, *out)
    operands = (x, *_words(operand), _packed(weight, x), 0 if bias is None else bias, y, operand.act)
    shape = (height, width, channels, *out)
    if _tiled(x, kernel, stride, False):
        name, grid = f"depthwise_tile<{dtype}, {kernel[0]}, {stride[0]}>", _tile_grid(out[0], out[1], images, channels)
        launch(name, x, grid, THREADS, *operands, *shape, *padding[:2])
    else:
        name, window = f"depthwise_any<{dtype}, {THREADS}>", (*kernel, *stride, *padding[:2])
        launch.strided(name, x, y.numel(), THREADS, *operands, y.numel(), *shape, *window)
    return y


def depthwise_conv2d(launch: Launch, a: Depthwise) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return depthwise(launch, nhwc(a.x), PLAIN, a.weight, a.bias, a.stride, a.padding)


def depthwise_backward(
    launch: Launch,
    dy: Tensor,
    x: Tensor,
    operand: Operand,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    needs: ConvNeeds,
) -> ConvGradients:
    """Gradients of act(norm(x)), weight and bias; ``dy`` and ``x`` NHWC, dense."""
    run = _backward_tiled if _tiled(x, list(weight.shape[2:]), stride, True) else _backward_any
    dx, dw = run(launch, dy, x, operand, weight, stride, padding, needs)
    return ConvGradients(dx, dw, norm.column_sums(launch, dy) if needs.bias else x.new_empty(0))


def depthwise_conv2d_backward(launch: Launch, a: DepthwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    return depthwise_backward(launch, nhwc(a.d_out), nhwc(a.x), PLAIN, a.weight, a.stride, a.padding, a.needs)


def _weight_gradient(launch: Launch, parts: Tensor, weight: Tensor) -> Tensor:
    """(C, 1, KH, KW) from parts (parts, KH·KW, C)."""
    while len(parts) > _PARTS_OF_TILES:  # in two steps, so that more than one thread a channel has work
        count = -(-len(parts) // _PARTS_OF_TILES)
        whole = len(parts) // count * count
        folded = torch.stack([norm.total(launch, parts[i : i + count]) for i in range(0, whole, count)])
        parts = torch.cat([folded, parts[whole:]])
    sums = norm.total(launch, parts) if len(parts) else parts.new_zeros(parts.shape[1:])
    return sums.view(*weight.shape[2:], -1).permute(2, 0, 1).unsqueeze(1).to(weight.dtype).contiguous()


def _backward_tiled(
    launch: Launch,
    dy: Tensor,
    x: Tensor,
    operand: Operand,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    needs: ConvNeeds,
) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    grid, k = _tile_grid(height, width, images, channels), weight.shape[2]
    dx = torch.empty_like(x) if needs.x else x.new_empty(0)
    parts = torch.empty((images * grid[0] * grid[1], k * k, channels), dtype=compute_dtype(x), device=x.device)
    targets = (dx if needs.x else 0, parts if needs.weight else 0)
    shape = (height, width, channels, *dy.shape[2:], *padding[:2])
    name = f"depthwise_bwd_tile<{type_name('depthwise_conv2d', x)}, {k}, {stride[0]}>"
    if needs.x or needs.weight:
        launch(name, x, grid, THREADS, dy, x, *_words(operand), _packed(weight, x), *targets, operand.act, *shape)
    return dx, _weight_gradient(launch, parts, weight) if needs.weight else x.new_empty(0)


def _backward_any(
    launch: Launch,
    dy: Tensor,
    x: Tensor,
    operand: Operand,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    needs: ConvNeeds,
) -> tuple[Tensor, Tensor]:
    dtype, kernel = type_name("depthwise_conv2d", x), list(weight.shape[2:])
    channels, height, width = x.shape[1:]
    dx = torch.empty_like(x) if needs.x else x.new_empty(0)
    if needs.x:
        shape = (dx.numel(), height, width, channels, *dy.shape[2:], *kernel, *stride, *padding[:2])
        name = f"depthwise_bwd_input_any<{dtype}, {THREADS}>"
        launch.strided(name, x, dx.numel(), THREADS, dy, _packed(weight, x), dx, *shape)
    if not needs.weight:
        return dx, x.new_empty(0)
    rows, taps = dy.numel() // max(channels, 1), kernel[0] * kernel[1]
    part = norm.rows_per_block(rows)
    parts = torch.empty((-(-rows // part), taps, channels), dtype=compute_dtype(x), device=x.device)
    grid = (len(parts), -(-channels // _LANES), taps)
    window = (rows, channels, part, height, width, *dy.shape[2:], kernel[1], *stride, *padding[:2], taps)
    name = f"depthwise_bwd_weight_any<{dtype}>"
    launch(name, x, grid, THREADS, dy, x, *_words(operand), parts, operand.act, *window)
    return dx, _weight_gradient(launch, parts, weight)


def depthwise_train(launch: Launch, x: Tensor, operand: Operand, a: DepthwiseNormTrain) -> DepthwiseNormTrained:
    """`depthwise_norm_train` of what `Operand` ``x``, NHWC and dense, passes, in place of the block's own."""
    block = a.block
    y = depthwise(launch, x, operand, block.weight, block.bias, block.stride, block.padding)
    stats = norm.norm_statistics(launch, y, block.norm, a.batch_stats)
    return DepthwiseNormTrained(norm.normalise(launch, y, block.norm, stats, block.act), y, stats)


def depthwise_norm_train(launch: Launch, a: DepthwiseNormTrain) -> DepthwiseNormTrained:
    """act(norm(y)), the depthwise output y, and statistics."""
    return depthwise_train(launch, nhwc(a.block.x), PLAIN, a)


def depthwise_norm(launch: Launch, a: DepthwiseNorm) -> Tensor:
    """act(norm(y)) with running statistics."""
    return depthwise_norm_train(launch, DepthwiseNormTrain(a, False)).out


def depthwise_train_backward(
    launch: Launch, x: Tensor, operand: Operand, a: DepthwiseNormBackward
) -> DepthwiseNormGradients:
    """`depthwise_norm_backward` for what `Operand` ``x``, NHWC and dense, passes, in place of its own."""
    params = a.needs.params
    dy, d_weight, d_bias = norm.normalise_backward(launch, nhwc(a.d_out), a.y, a.norm, a.stats, a.act, a.batch_stats)
    needs = ConvNeeds(a.needs.x, params, params)
    grads = depthwise_backward(launch, dy, x, operand, a.weight, a.stride, a.padding, needs)
    nothing = x.new_empty(0), x.new_empty(0)
    return DepthwiseNormGradients(*grads, *((d_weight, d_bias) if params else nothing))


def depthwise_norm_backward(launch: Launch, a: DepthwiseNormBackward) -> DepthwiseNormGradients:
    """Gradients of x; weight, bias and norm's two."""
    return depthwise_train_backward(launch, nhwc(a.x), PLAIN, a)


def product(
    launch: Launch, y1: Tensor, operand: Operand, weight: Tensor, bias: Tensor | None, moments: bool
) -> tuple[Tensor, Tensor | None]:
    """The pointwise product of act(norm(y1)), and where asked for the moments (tiles, 2, O) of its rows."""
    outputs, channels = weight.shape[:2]
    rows = y1.numel() // max(channels, 1)
    y2 = empty_nhwc(y1, outputs, *y1.shape[2:])
    parts = None
    if moments:
        parts = torch.empty((tiles(rows), 2, outputs), dtype=compute_dtype(y1), device=y1.device)
    packed, (biases, partial) = (
        weight.flatten(1).t().to(y1.dtype).contiguous(),
        [0 if t is None else t for t in (bias, parts)],
    )
    arguments = (y1, *_words(operand), packed, biases, y2, partial, rows, channels, outputs, operand.act)
    grid = (tiles(rows), tiles(outputs), 1)
    launch(f"pointwise_fwd<{product_types('pointwise_conv2d', y1)}>", y1, grid, THREADS, *arguments)
    return y2, parts


def product_backward(
    launch: Launch, dy2: Tensor, y1: Tensor, operand: Operand, weight: Tensor, needs: ConvNeeds
) -> ConvGradients:
    """Gradients of act(norm(y1)), weight and bias."""
    types = product_types("pointwise_conv2d", y1)
    outputs, channels = weight.shape[:2]
    rows = y1.numel() // max(channels, 1)
    da1, dw = y1.new_empty(0), y1.new_empty(0)
    if needs.x:
        da1, grid = torch.empty_like(y1), (tiles(rows), tiles(channels), 1)
        packed = weight.flatten(1).to(y1.dtype).contiguous()
        launch(f"pointwise_bwd_input<{types}>", y1, grid, THREADS, dy2, packed, da1, rows, channels, outputs)
    if needs.weight:
        part = max(_PART, -(-rows // _PARTS))
        parts = torch.empty((-(-rows // part), channels, outputs), dtype=compute_dtype(y1), device=y1.device)
        grid = (tiles(channels), tiles(outputs), len(parts))
        arguments = (y1, *_words(operand), dy2, parts, rows, part, channels, outputs, operand.act)
        launch(f"pointwise_bwd_weight<{types}>", y1, grid, THREADS, *arguments)
        sums = norm.total(launch, parts) if len(parts) else parts.new_zeros(channels, outputs)
        dw = sums.t().to(weight.dtype).contiguous().view(weight.shape)
    return ConvGradients(da1, dw, norm.column_sums(launch, dy2) if needs.bias else y1.new_empty(0))


def product_norm(
    launch: Launch, y1: Tensor, operand: Operand, weight: Tensor, bias: Tensor | None, after: RunningNorm | None,
    batch_stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The pointwise product of act(norm(y1)), and statistics (3, O) for the norm ``after`` it, empty without one."""
    if after is None or not batch_stats:
        y2, _ = product(launch, y1, operand, weight, bias, False)
        return y2, norm.norm_statistics(launch, y2, after, False)
    y2, parts = product(launch, y1, operand, weight, bias, True)
    assert parts is not None
    return y2, norm.finish_moments(launch, y2, parts, TILE, after.eps)


def pointwise_conv2d(launch: Launch, a: Pointwise) -> Tensor:
    """1×1 convolution."""
    return product(launch, nhwc(a.x), PLAIN, a.weight, a.bias, False)[0]


def pointwise_conv2d_backward(launch: Launch, a: PointwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    return product_backward(launch, nhwc(a.d_out), nhwc(a.x), PLAIN, a.weight, a.needs)


def separable_train(launch: Launch, x: Tensor, operand: Operand, a: SeparableTrain) -> SeparableTrained:
    """`separable_conv2d_train` of what `Operand` ``x``, NHWC and dense, passes, in place of the block's own."""
    b = a.block
    y1 = depthwise(launch, x, operand, b.dw_weight, b.dw_bias, b.stride, b.padding)
    stats1 = norm.norm_statistics(launch, y1, b.norm1, a.batch_stats)
    between = Operand(b.norm1, stats1, b.act1)
    y2, stats2 = product_norm(launch, y1, between, b.pw_weight, b.pw_bias, b.norm2, a.batch_stats)
    if not keeps_y1(b, y1.shape[2], y1.shape[3]):
        y1 = x.new_empty(0)
    if b.norm2 is None and b.act2 == 0:
        return SeparableTrained(y2, y1, y2.new_empty(0), stats1, stats2)
    return SeparableTrained(norm.normalise(launch, y2, b.norm2, stats2, b.act2), y1, y2, stats1, stats2)


def separable_conv2d_train(launch: Launch, a: SeparableTrain) -> SeparableTrained:
    """Output, y1, y2 and statistics."""
    return separable_train(launch, nhwc(a.block.x), PLAIN, a)


def _fused(x: Tensor, dw: Tensor, pw: Tensor, stride: list[int]) -> bool:
    """Whether one kernel runs the block: each tile of `TILE` outputs computes the depthwise convolution again."""
    kernel = list(dw.shape[2:])
    square = kernel[0] == kernel[1] and stride[0] == stride[1]
    built = (3, 1), (5, 1), *(() if x.dtype == torch.float64 else ((3, 2),))  # in 48 KiB of shared memory
    return square and (kernel[0], stride[0]) in built and pw.shape[0] <= 2 * TILE


def separable_conv2d(launch: Launch, a: Separable) -> Tensor:
    """Output with running statistics: in one pass where a tile of outputs allows it."""
    if not _fused(a.x, a.dw_weight, a.pw_weight, a.stride):
        return separable_conv2d_train(launch, SeparableTrain(a, False)).out
    x, k = nhwc(a.x), a.dw_weight.shape[2]
    images, channels, height, width = x.shape
    outputs = a.pw_weight.shape[0]
    out = empty_nhwc(x, outputs, *output_size(x, a.dw_weight, a.stride, a.padding))
    between = _words(Operand(a.norm1, norm.norm_statistics(launch, x, a.norm1, False)))
    after = _words(Operand(a.norm2, norm.norm_statistics(launch, x, a.norm2, False)))
    dw_bias, pw_bias = (0 if bias is None else bias for bias in (a.dw_bias, a.pw_bias))
    packed = a.pw_weight.flatten(1).t().to(x.dtype).contiguous()
    tiled = images * -(-out.shape[2] // _PIXELS) * -(-out.shape[3] // _PIXELS)
    name = f"separable_tile<{product_types('separable_conv2d', x)}, {k}, {a.stride[0]}>"
    operands = (x, _packed(a.dw_weight, x), dw_bias, *between, packed, pw_bias, *after, out, a.act1, a.act2)
    shape = (height, width, channels, *out.shape[2:], outputs, *a.padding[:2])
    launch(name, x, (tiled, tiles(outputs), 1), THREADS, *operands, *shape)
    return out


def separable_backward(launch: Launch, x: Tensor, operand: Operand, a: SeparableBackward) -> SeparableGradients:
    """`separable_conv2d_backward` for what `Operand` ``x``, NHWC and dense, passes, in place of its own."""
    needs = a.needs
    before = needs.x or needs.dw
    y1 = a.y1 if a.y1.dim() == 4 else depthwise(launch, x, operand, a.dw_weight, None, a.stride, a.padding)
    dy2, d_weight2, d_bias2 = nhwc(a.d_out), x.new_empty(0), x.new_empty(0)
    if a.norm2 is not None or a.act2:
        dy2, d_weight2, d_bias2 = norm.normalise_backward(launch, dy2, a.y2, a.norm2, a.stats2, a.act2, a.batch_stats)
    between, pw_needs = Operand(a.norm1, a.stats1, a.act1), ConvNeeds(before, needs.pw, needs.pw and needs.biases)
    da1, d_pw, d_pw_bias = product_backward(launch, dy2, y1, between, a.pw_weight, pw_needs)
    pw_side: tuple[Tensor, ...] = (
        d_pw,
        d_pw_bias,
        *((d_weight2, d_bias2) if needs.pw else (x.new_empty(0), x.new_empty(0))),
    )
    if not before:
        return SeparableGradients(*(x.new_empty(0) for _ in range(5)), *pw_side)
    dy1, d_weight1, d_bias1 = da1, x.new_empty(0), x.new_empty(0)
    if a.norm1 is not None or a.act1:
        dy1, d_weight1, d_bias1 = norm.normalise_backward(launch, da1, y1, a.norm1, a.stats1, a.act1, a.batch_stats)
    dw_needs = ConvNeeds(needs.x, needs.dw, needs.dw and needs.biases)
    grads = depthwise_backward(launch, dy1, x, operand, a.dw_weight, a.stride, a.padding, dw_needs)
    norm1 = (d_weight1, d_bias1) if needs.dw else (x.new_empty(0), x.new_empty(0))
    return SeparableGradients(*grads, *norm1, *pw_side)


def separable_conv2d_backward(launch: Launch, a: SeparableBackward) -> SeparableGradients:
    """Gradients of x; the depthwise weight, its bias, norm1's two; the pointwise weight, its bias, norm2's two."""
    return separable_backward(launch, nhwc(a.x), PLAIN, a)


def separable_conv2d_linked(launch: Launch, a: SeparableLinked) -> SeparableTrained:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.separable_conv2d_linked(partial(separable_conv2d_train, launch), a)


def separable_conv2d_linked_backward(launch: Launch, a: SeparableLinkedBackward) -> SeparableLinkedGradients:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.separable_conv2d_linked_backward(partial(separable_conv2d_backward, launch), a)


def depthwise_norm_linked(launch: Launch, a: DepthwiseNormLinked) -> DepthwiseNormTrained:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.depthwise_norm_linked(partial(depthwise_norm_train, launch), a)


def depthwise_norm_linked_backward(launch: Launch, a: DepthwiseNormLinkedBackward) -> DepthwiseNormLinkedGradients:
    """As `fastfer.backends.composed` composes it of these kernels."""
    return composed.depthwise_norm_linked_backward(partial(depthwise_norm_backward, launch), a)
