# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and separable convolution on CUDA tensors; the functions of `backends.reference.separable_conv`.

3×3 and 5×5 kernels of stride 1 and 2 run from tiles in shared memory, backward with both gradients from one tile; other
windows a thread an element. Both convolutions normalise and activate what they read, and the pointwise product gathers
the statistics of what it writes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastfer.backends import composed
from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, nhwc, product_types, type_name
from fastfer.backends.cuda.product import (
    PLAIN,
    THREADS,
    TILE,
    Operand,
    product,
    product_backward,
    product_norm,
    tiles,
    weights,
)
from fastfer.signatures.fields import RunningNorm
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

_LANES, _PIXELS = 32, 8  # csrc/cuda/columns.cuh, csrc/separable_conv/cuda.cuh
_BLOCKS = 1024
"""Blocks that fill a large device: the images are shared out until there are as many."""


def _tiled(x: Tensor, kernel: list[int], stride: list[int], backward: bool) -> bool:
    square = kernel[0] == kernel[1] and stride[0] == stride[1] and kernel[0] in (3, 5) and stride[0] in (1, 2)
    # Of float64 the other tiles exceed 48 KiB of shared memory.
    return square and (x.dtype != torch.float64 or (kernel[0] == 3 if backward else stride[0] == 1))


def _image_parts(height: int, width: int, images: int, channels: int) -> tuple[int, int]:
    """Blocks of one group of channels that a kernel of tiles takes for each part of the images, and parts."""
    tiled = -(-width // _PIXELS) * -(-height // _PIXELS)
    return tiled, min(images, -(-_BLOCKS // max(tiled * -(-channels // _LANES), 1)))


def depthwise(
    launch: Launch,
    x: Tensor,
    operand: Operand,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    after: Operand = PLAIN,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution of act(norm(x)), whose padding is zero, and what is ``after`` it applied.

    For an eps, statistics (3, C) of the convolution, too. ``x`` NHWC, dense.
    """
    dtype, kernel = type_name("depthwise_conv2d", x), list(weight.shape[2:])
    images, channels, height, width = x.shape
    out = output_size(x, weight, stride, padding)
    y, stats = empty_nhwc(x, channels, *out), x.new_empty(0)
    inputs = (x, *operand.words(), weights(weight, x), 0 if bias is None else bias)
    shape = (height, width, channels, *out)
    if _tiled(x, kernel, stride, False) and y.numel():
        tiled, parts = _image_parts(*out, images, channels)
        groups, target = -(-channels // _LANES), norm.NOTHING
        if eps is not None:
            target = norm.gathered(launch, x, channels, tiled * parts, groups, eps)
        name = f"depthwise_tile<{dtype}, {kernel[0]}, {stride[0]}>"
        arguments = (*inputs, *after.words(), y, *target, operand.act, after.act, images, parts, *shape, *padding[:2])
        launch(name, x, (tiled * groups * parts, 1, 1), THREADS, *arguments)
        return y, target.stats if isinstance(target.stats, Tensor) else stats
    name, window = f"depthwise_any<{dtype}, {THREADS}>", (*kernel, *stride, *padding[:2])
    launch.strided(name, x, y.numel(), THREADS, *inputs, y, operand.act, y.numel(), *shape, *window)
    if eps is not None:
        stats = norm.batch_statistics(launch, y, eps)
    return y if after == PLAIN else norm.norm_act(launch, y, after.norm, after.stats, after.act), stats


def depthwise_conv2d(launch: Launch, a: Depthwise) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return depthwise(launch, nhwc(a.x), PLAIN, a.weight, a.bias, a.stride, a.padding)[0]


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
    if not len(parts):
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    return norm.total(launch, parts, *parts.shape[1:]).to(weight.dtype).view(weight.shape)


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
    k, (tiled, shares) = weight.shape[2], _image_parts(height, width, images, channels)
    dx = torch.empty_like(x) if needs.x else x.new_empty(0)
    parts = torch.empty((tiled * shares, k * k, channels), dtype=compute_dtype(x), device=x.device)
    targets = (dx if needs.x else 0, parts if needs.weight else 0)
    shape = (images, shares, height, width, channels, *dy.shape[2:], *padding[:2])
    name = f"depthwise_bwd_tile<{type_name('depthwise_conv2d', x)}, {k}, {stride[0]}>"
    if needs.x or needs.weight:
        grid = (tiled * -(-channels // _LANES) * shares, 1, 1)
        arguments = (dy, x, *operand.words(), weights(weight, x), *targets, operand.act, *shape)
        launch(name, x, grid, THREADS, *arguments)
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
        launch.strided(name, x, dx.numel(), THREADS, dy, weights(weight, x), dx, *shape)
    if not needs.weight:
        return dx, x.new_empty(0)
    rows, taps = dy.numel() // max(channels, 1), kernel[0] * kernel[1]
    part = norm.rows_per_block(rows)
    parts = torch.empty((-(-rows // part), taps, channels), dtype=compute_dtype(x), device=x.device)
    grid = (len(parts), -(-channels // _LANES), taps)
    window = (rows, channels, part, height, width, *dy.shape[2:], kernel[1], *stride, *padding[:2], taps)
    name = f"depthwise_bwd_weight_any<{dtype}>"
    launch(name, x, grid, THREADS, dy, x, *operand.words(), parts, operand.act, *window)
    return dx, _weight_gradient(launch, parts, weight)


def _depthwise_norm(
    launch: Launch, x: Tensor, operand: Operand, weight: Tensor, bias: Tensor | None, stride: list[int],
    padding: list[int], after: RunningNorm | None, batch_stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The depthwise convolution, and statistics (3, C) for the norm ``after`` it, empty without one."""
    if after is not None and batch_stats:
        return depthwise(launch, x, operand, weight, bias, stride, padding, eps=after.eps)
    y, _ = depthwise(launch, x, operand, weight, bias, stride, padding)
    return y, norm.norm_statistics(launch, y, after, False)


def depthwise_train(launch: Launch, x: Tensor, operand: Operand, a: DepthwiseNormTrain) -> DepthwiseNormTrained:
    """`depthwise_norm_train` of what `Operand` ``x``, NHWC and dense, passes, in place of the block's own."""
    b = a.block
    y, stats = _depthwise_norm(launch, x, operand, b.weight, b.bias, b.stride, b.padding, b.norm, a.batch_stats)
    return DepthwiseNormTrained(norm.norm_act(launch, y, b.norm, stats, b.act), y, stats)


def depthwise_norm_train(launch: Launch, a: DepthwiseNormTrain) -> DepthwiseNormTrained:
    """act(norm(y)), the depthwise output y, and statistics."""
    return depthwise_train(launch, nhwc(a.block.x), PLAIN, a)


def depthwise_norm(launch: Launch, a: DepthwiseNorm) -> Tensor:
    """act(norm(y)) with running statistics, in one pass."""
    after = Operand(a.norm, None, a.act)
    return depthwise(launch, nhwc(a.x), PLAIN, a.weight, a.bias, a.stride, a.padding, after)[0]


def depthwise_train_backward(
    launch: Launch, x: Tensor, operand: Operand, a: DepthwiseNormBackward
) -> DepthwiseNormGradients:
    """`depthwise_norm_backward` for what `Operand` ``x``, NHWC and dense, passes, in place of its own."""
    params = a.needs.params
    dy, d_weight, d_bias = norm.norm_act_backward(launch, nhwc(a.d_out), a.y, a.norm, a.stats, a.act, a.batch_stats)
    needs = ConvNeeds(a.needs.x, params, a.needs.bias)
    grads = depthwise_backward(launch, dy, x, operand, a.weight, a.stride, a.padding, needs)
    nothing = x.new_empty(0), x.new_empty(0)
    return DepthwiseNormGradients(*grads, *((d_weight, d_bias) if params else nothing))


def depthwise_norm_backward(launch: Launch, a: DepthwiseNormBackward) -> DepthwiseNormGradients:
    """Gradients of x; weight, bias and norm's two."""
    return depthwise_train_backward(launch, nhwc(a.x), PLAIN, a)


def pointwise_conv2d(launch: Launch, a: Pointwise) -> Tensor:
    """1×1 convolution."""
    return product(launch, nhwc(a.x), PLAIN, a.weight, a.bias)[0]


def pointwise_conv2d_backward(launch: Launch, a: PointwiseBackward) -> ConvGradients:
    """Gradients of x, weight and bias."""
    return product_backward(launch, nhwc(a.d_out), nhwc(a.x), PLAIN, a.weight, a.needs)


def separable_train(launch: Launch, x: Tensor, operand: Operand, a: SeparableTrain) -> SeparableTrained:
    """`separable_conv2d_train` of what `Operand` ``x``, NHWC and dense, passes, in place of the block's own."""
    b = a.block
    layer = (b.dw_weight, b.dw_bias, b.stride, b.padding)
    y1, stats1 = _depthwise_norm(launch, x, operand, *layer, b.norm1, a.batch_stats)
    between = Operand(b.norm1, stats1, b.act1)
    y2, stats2 = product_norm(launch, y1, between, b.pw_weight, b.pw_bias, b.norm2, a.batch_stats)
    if not keeps_y1(b, y1.shape[2], y1.shape[3]):
        y1 = x.new_empty(0)
    if b.norm2 is None and b.act2 == 0:
        return SeparableTrained(y2, y1, y2.new_empty(0), stats1, stats2)
    return SeparableTrained(norm.norm_act(launch, y2, b.norm2, stats2, b.act2), y1, y2, stats1, stats2)


def separable_conv2d_train(launch: Launch, a: SeparableTrain) -> SeparableTrained:
    """Output, y1, y2 and statistics."""
    return separable_train(launch, nhwc(a.block.x), PLAIN, a)


def _fused(x: Tensor, dw: Tensor, pw: Tensor, stride: list[int]) -> bool:
    """Whether one kernel runs the block: each tile of `TILE` outputs computes the depthwise convolution again."""
    kernel = list(dw.shape[2:])
    square = kernel[0] == kernel[1] and stride[0] == stride[1]
    built = (3, 1), (5, 1), *(() if x.dtype == torch.float64 else ((3, 2),))  # in 48 KiB of shared memory
    return square and (kernel[0], stride[0]) in built and pw.shape[0] <= 2 * TILE


def separable_inference(launch: Launch, x: Tensor, operand: Operand, a: Separable) -> Tensor:
    """`separable_conv2d` of what `Operand` ``x``, NHWC and dense, passes: in two passes."""
    between, after = Operand(a.norm1, None, a.act1), Operand(a.norm2, None, a.act2)
    y1, _ = depthwise(launch, x, operand, a.dw_weight, a.dw_bias, a.stride, a.padding, between)
    return product(launch, y1, PLAIN, a.pw_weight, a.pw_bias, after)[0]


def separable_conv2d(launch: Launch, a: Separable) -> Tensor:
    """Output with running statistics: in one pass where a tile of outputs allows it."""
    x, k = nhwc(a.x), a.dw_weight.shape[2]
    if not _fused(a.x, a.dw_weight, a.pw_weight, a.stride):
        return separable_inference(launch, x, PLAIN, a)
    images, channels, height, width = x.shape
    outputs = a.pw_weight.shape[0]
    out = empty_nhwc(x, outputs, *output_size(x, a.dw_weight, a.stride, a.padding))
    depthwise_layer = (weights(a.dw_weight, x), 0 if a.dw_bias is None else a.dw_bias, *norm.words(a.norm1, None))
    pointwise_layer = (weights(a.pw_weight, x), 0 if a.pw_bias is None else a.pw_bias, *norm.words(a.norm2, None))
    tiled = images * -(-out.shape[2] // _PIXELS) * -(-out.shape[3] // _PIXELS)
    name = f"separable_tile<{product_types('separable_conv2d', x)}, {k}, {a.stride[0]}>"
    operands = (x, *depthwise_layer, *pointwise_layer, out, a.act1, a.act2)
    shape = (height, width, channels, *out.shape[2:], outputs, *a.padding[:2])
    launch(name, x, (tiled, tiles(outputs), 1), THREADS, *operands, *shape)
    return out


def _depthwise_again(launch: Launch, x: Tensor, operand: Operand, a: SeparableBackward) -> Tensor:
    return depthwise(launch, x, operand, a.dw_weight, None, a.stride, a.padding)[0]


def separable_backward(launch: Launch, x: Tensor, operand: Operand, a: SeparableBackward) -> SeparableGradients:
    """`separable_conv2d_backward` for what `Operand` ``x``, NHWC and dense, passes, in place of its own."""
    needs = a.needs
    before = needs.x or needs.dw
    y1 = a.y1 if a.y1.dim() == 4 else _depthwise_again(launch, x, operand, a)
    dy2, d_weight2, d_bias2 = nhwc(a.d_out), x.new_empty(0), x.new_empty(0)
    if a.norm2 is not None or a.act2:
        dy2, d_weight2, d_bias2 = norm.norm_act_backward(launch, dy2, a.y2, a.norm2, a.stats2, a.act2, a.batch_stats)
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
        dy1, d_weight1, d_bias1 = norm.norm_act_backward(launch, da1, y1, a.norm1, a.stats1, a.act1, a.batch_stats)
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
