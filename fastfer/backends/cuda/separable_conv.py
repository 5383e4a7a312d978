# SPDX-License-Identifier: Apache-2.0
"""Depthwise, pointwise and separable convolution on CUDA tensors; the functions of `backends.reference.separable_conv`.

3×3 and 5×5 kernels of stride 1 and 2 run from tiles in shared memory, backward with both gradients from one tile; other
windows a thread an element. Both convolutions normalise and activate what they read, and the pointwise product gathers
the statistics of what it writes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastfer.backends.cuda import norm
from fastfer.backends.cuda.conv2d import TILE, tiles
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, nhwc, product_types, type_name
from fastfer.backends.reference import _linked
from fastfer.backends.reference.separable_conv import recomputes

THREADS = 256
Before: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None, int]
"""What an operand passes as it is read: a norm's weight, bias and statistics, or None for each, and an activation."""
NO_NORM: Before = (None, None, None, 0)
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


def _words(before: Before) -> tuple[Tensor | int, ...]:
    """The norm as kernels take it: three tensors, or zeros."""
    weight, bias, stats, _ = before
    return (0, 0, 0) if weight is None or bias is None or stats is None else (weight, bias, stats)


def _packed(weight: Tensor, like: Tensor) -> Tensor:
    """(C, 1, KH, KW) -> (KH, KW, C) in the compute dtype."""
    return weight[:, 0].permute(1, 2, 0).to(compute_dtype(like)).contiguous()


def depthwise(
    launch: Launch, x: Tensor, before: Before, weight: Tensor, bias: Tensor | None, stride: list[int],
    padding: list[int],
) -> Tensor:  # fmt: skip
    """Depthwise convolution of act(norm(x)), whose padding is zero; ``x`` NHWC, dense."""
    dtype, kernel = type_name("depthwise_conv2d", x), list(weight.shape[2:])
    images, channels, height, width = x.shape
    out = [(size + padding[i] + padding[i + 2] - kernel[i]) // stride[i] + 1 for i, size in enumerate((height, width))]
    y = empty_nhwc(x, channels, *out)
    operands = (x, *_words(before), _packed(weight, x), 0 if bias is None else bias, y, before[3])
    shape = (height, width, channels, *out)
    if _tiled(x, kernel, stride, False):
        name, grid = f"depthwise_tile<{dtype}, {kernel[0]}, {stride[0]}>", _tile_grid(out[0], out[1], images, channels)
        launch(name, x, grid, THREADS, *operands, *shape, *padding[:2])
    else:
        name, window = f"depthwise_any<{dtype}, {THREADS}>", (*kernel, *stride, *padding[:2])
        launch.strided(name, x, y.numel(), THREADS, *operands, y.numel(), *shape, *window)
    return y


def depthwise_conv2d(
    launch: Launch, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    """Depthwise convolution with four-sided padding."""
    return depthwise(launch, nhwc(x), NO_NORM, weight, bias, stride, padding)


def depthwise_backward(
    launch: Launch, dy: Tensor, x: Tensor, before: Before, weight: Tensor, stride: list[int], padding: list[int],
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of act(norm(x)), weight and bias; ``dy`` and ``x`` NHWC, dense."""
    run = _backward_tiled if _tiled(x, list(weight.shape[2:]), stride, True) else _backward_any
    dx, dw = run(launch, dy, x, before, weight, stride, padding, mask)
    return dx, dw, norm.column_sums(launch, dy) if mask[2] else x.new_empty(0)


def depthwise_conv2d_backward(
    launch: Launch, dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    return depthwise_backward(launch, nhwc(dy), nhwc(x), NO_NORM, weight, stride, padding, mask)


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
    launch: Launch, dy: Tensor, x: Tensor, before: Before, weight: Tensor, stride: list[int], padding: list[int],
    mask: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    images, channels, height, width = x.shape
    grid, k = _tile_grid(height, width, images, channels), weight.shape[2]
    dx = torch.empty_like(x) if mask[0] else x.new_empty(0)
    parts = torch.empty((images * grid[0] * grid[1], k * k, channels), dtype=compute_dtype(x), device=x.device)
    targets = (dx if mask[0] else 0, parts if mask[1] else 0)
    shape = (height, width, channels, *dy.shape[2:], *padding[:2])
    name = f"depthwise_bwd_tile<{type_name('depthwise_conv2d', x)}, {k}, {stride[0]}>"
    if mask[0] or mask[1]:
        launch(name, x, grid, THREADS, dy, x, *_words(before), _packed(weight, x), *targets, before[3], *shape)
    return dx, _weight_gradient(launch, parts, weight) if mask[1] else x.new_empty(0)


def _backward_any(
    launch: Launch, dy: Tensor, x: Tensor, before: Before, weight: Tensor, stride: list[int], padding: list[int],
    mask: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dtype, kernel = type_name("depthwise_conv2d", x), list(weight.shape[2:])
    channels, height, width = x.shape[1:]
    dx = torch.empty_like(x) if mask[0] else x.new_empty(0)
    if mask[0]:
        shape = (dx.numel(), height, width, channels, *dy.shape[2:], *kernel, *stride, *padding[:2])
        name = f"depthwise_bwd_input_any<{dtype}, {THREADS}>"
        launch.strided(name, x, dx.numel(), THREADS, dy, _packed(weight, x), dx, *shape)
    if not mask[1]:
        return dx, x.new_empty(0)
    rows, taps = dy.numel() // max(channels, 1), kernel[0] * kernel[1]
    part = norm.rows_per_block(rows)
    parts = torch.empty((-(-rows // part), taps, channels), dtype=compute_dtype(x), device=x.device)
    grid = (len(parts), -(-channels // _LANES), taps)
    window = (rows, channels, part, height, width, *dy.shape[2:], kernel[1], *stride, *padding[:2], taps)
    name = f"depthwise_bwd_weight_any<{dtype}>"
    launch(name, x, grid, THREADS, dy, x, *_words(before), parts, before[3], *window)
    return dx, _weight_gradient(launch, parts, weight)


def depthwise_after(
    launch: Launch, x: Tensor, before: Before, weight: Tensor, bias: Tensor | None, n_weight: Tensor, n_bias: Tensor,
    n_mean: Tensor, n_var: Tensor, eps: float, act: int, stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """act(norm(y)), the depthwise output y of what `Before` x passes, and statistics (3, C); ``x`` NHWC, dense."""
    y = depthwise(launch, x, before, weight, bias, stride, padding)
    stats = norm.statistics(launch, y, n_mean, n_var, eps, batch_stats)
    return norm.norm_act(launch, y, n_weight, n_bias, stats, act), y, stats


def depthwise_norm_train(launch: Launch, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """act(norm(y)), the depthwise output y, and statistics (3, C)."""
    return depthwise_after(launch, nhwc(x), NO_NORM, *args)


def depthwise_norm(launch: Launch, *args: Any) -> Tensor:
    """act(norm(y)) with running statistics."""
    return depthwise_norm_train(launch, *args, False)[0]


def depthwise_after_backward(
    launch: Launch, dout: Tensor, x: Tensor, before: Before, y: Tensor, weight: Tensor, n_weight: Tensor,
    n_bias: Tensor, stats: Tensor, act: int, stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of act(norm(x)); weight, bias and the second norm's two; those not asked for are empty."""
    dy, d_weight, d_bias = norm.norm_act_backward(launch, nhwc(dout), y, n_weight, n_bias, stats, act, batch_stats)
    wanted = [mask[0], mask[1], mask[1]]
    dx, dw, db = depthwise_backward(launch, dy, x, before, weight, stride, padding, wanted)
    nothing = x.new_empty(0), x.new_empty(0)
    return dx, dw, db, *((d_weight, d_bias) if mask[1] else nothing)


def depthwise_norm_backward(launch: Launch, dout: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Gradients of x; weight, bias and norm's two; those not asked for are empty."""
    return depthwise_after_backward(launch, dout, nhwc(x), NO_NORM, *args)


def product(
    launch: Launch, y1: Tensor, before: Before, weight: Tensor, bias: Tensor | None, moments: bool
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
    arguments = (y1, *_words(before), packed, biases, y2, partial, rows, channels, outputs, before[3])
    grid = (tiles(rows), tiles(outputs), 1)
    launch(f"pointwise_fwd<{product_types('pointwise_conv2d', y1)}>", y1, grid, THREADS, *arguments)
    return y2, parts


def product_backward(
    launch: Launch, dy2: Tensor, y1: Tensor, before: Before, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of act(norm(y1)), weight and bias."""
    types = product_types("pointwise_conv2d", y1)
    outputs, channels = weight.shape[:2]
    rows = y1.numel() // max(channels, 1)
    da1, dw = y1.new_empty(0), y1.new_empty(0)
    if mask[0]:
        da1, grid = torch.empty_like(y1), (tiles(rows), tiles(channels), 1)
        packed = weight.flatten(1).to(y1.dtype).contiguous()
        launch(f"pointwise_bwd_input<{types}>", y1, grid, THREADS, dy2, packed, da1, rows, channels, outputs)
    if mask[1]:
        part = max(_PART, -(-rows // _PARTS))
        parts = torch.empty((-(-rows // part), channels, outputs), dtype=compute_dtype(y1), device=y1.device)
        grid = (tiles(channels), tiles(outputs), len(parts))
        arguments = (y1, *_words(before), dy2, parts, rows, part, channels, outputs, before[3])
        launch(f"pointwise_bwd_weight<{types}>", y1, grid, THREADS, *arguments)
        sums = norm.total(launch, parts) if len(parts) else parts.new_zeros(channels, outputs)
        dw = sums.t().to(weight.dtype).contiguous().view(weight.shape)
    return da1, dw, norm.column_sums(launch, dy2) if mask[2] else y1.new_empty(0)


def product_norm(
    launch: Launch, y1: Tensor, before: Before, weight: Tensor, bias: Tensor | None,
    mean: Tensor | None, var: Tensor | None, eps: float, batch_stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The pointwise product of act(norm(y1)), and its statistics (3, O), empty without running ones."""
    y2, parts = product(launch, y1, before, weight, bias, batch_stats and mean is not None)
    if parts is not None:
        return y2, norm.finish_moments(launch, y2, parts, TILE, eps)
    return y2, norm.statistics(launch, y2, mean, var, eps, False)


def pointwise_conv2d(launch: Launch, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1×1 convolution."""
    return product(launch, nhwc(x), NO_NORM, weight, bias, False)[0]


def pointwise_conv2d_backward(
    launch: Launch, dy: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias."""
    return product_backward(launch, nhwc(dy), nhwc(x), NO_NORM, weight, mask)


def separable(
    launch: Launch, x: Tensor, before: Before, dw: Tensor, dw_bias: Tensor | None,
    n1_weight: Tensor | None, n1_bias: Tensor | None, n1_mean: Tensor | None, n1_var: Tensor | None,
    eps1: float, act1: int,
    pw: Tensor, pw_bias: Tensor | None,
    n2_weight: Tensor | None, n2_bias: Tensor | None, n2_mean: Tensor | None, n2_var: Tensor | None,
    eps2: float, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, y1, y2, statistics (3, C) and (3, O) of the block on act(norm(x)); ``x`` NHWC, dense."""
    y1 = depthwise(launch, x, before, dw, dw_bias, stride, padding)
    stats1 = norm.statistics(launch, y1, n1_mean, n1_var, eps1, batch_stats)
    between = (n1_weight, n1_bias, stats1, act1)
    y2, stats2 = product_norm(launch, y1, between, pw, pw_bias, n2_mean, n2_var, eps2, batch_stats)
    if recomputes(dw_bias, n1_weight, act1, *y1.shape[1:]):
        y1 = x.new_empty(0)
    if n2_weight is None and act2 == 0:
        return y2, y1, y2.new_empty(0), stats1, stats2
    return norm.norm_act(launch, y2, n2_weight, n2_bias, stats2, act2), y1, y2, stats1, stats2


def separable_conv2d_train(launch: Launch, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Output, y1, y2, statistics (3, C) and (3, O)."""
    return separable(launch, nhwc(x), NO_NORM, *args)


def _fused(x: Tensor, dw: Tensor, pw: Tensor, stride: list[int]) -> bool:
    """Whether one kernel runs the block: each tile of `TILE` outputs computes the depthwise convolution again."""
    kernel = list(dw.shape[2:])
    square = kernel[0] == kernel[1] and stride[0] == stride[1]
    built = (3, 1), (5, 1), *(() if x.dtype == torch.float64 else ((3, 2),))  # in 48 KiB of shared memory
    return square and (kernel[0], stride[0]) in built and pw.shape[0] <= 2 * TILE


def separable_conv2d(
    launch: Launch, x: Tensor, dw: Tensor, dw_bias: Tensor | None,
    n1_weight: Tensor | None, n1_bias: Tensor | None, n1_mean: Tensor | None, n1_var: Tensor | None,
    eps1: float, act1: int,
    pw: Tensor, pw_bias: Tensor | None,
    n2_weight: Tensor | None, n2_bias: Tensor | None, n2_mean: Tensor | None, n2_var: Tensor | None,
    eps2: float, act2: int,
    stride: list[int], padding: list[int],
) -> Tensor:  # fmt: skip
    """Output with running statistics: in one pass where a tile of outputs allows it."""
    if not _fused(x, dw, pw, stride):
        norm1, norm2 = (n1_weight, n1_bias, n1_mean, n1_var, eps1), (n2_weight, n2_bias, n2_mean, n2_var, eps2)
        layers = (dw, dw_bias, *norm1, act1, pw, pw_bias, *norm2, act2)
        return separable_conv2d_train(launch, x, *layers, stride, padding, False)[0]
    x, k = nhwc(x), dw.shape[2]
    images, channels, height, width = x.shape
    outputs = pw.shape[0]
    out = empty_nhwc(x, outputs, *(
        (size + padding[i] + padding[i + 2] - k) // stride[0] + 1 for i, size in enumerate((height, width))
    ))  # fmt: skip
    between = _words((n1_weight, n1_bias, norm.statistics(launch, x, n1_mean, n1_var, eps1, False), act1))
    after = _words((n2_weight, n2_bias, norm.statistics(launch, x, n2_mean, n2_var, eps2, False), act2))
    biases, packed = [0 if t is None else t for t in (dw_bias, pw_bias)], pw.flatten(1).t().to(x.dtype).contiguous()
    tiled = images * -(-out.shape[2] // _PIXELS) * -(-out.shape[3] // _PIXELS)
    name = f"separable_tile<{product_types('separable_conv2d', x)}, {k}, {stride[0]}>"
    operands = (x, _packed(dw, x), biases[0], *between, packed, biases[1], *after, out, act1, act2)
    shape = (height, width, channels, *out.shape[2:], outputs, *padding[:2])
    launch(name, x, (tiled, tiles(outputs), 1), THREADS, *operands, *shape)
    return out


def separable_backward(
    launch: Launch, dout: Tensor, x: Tensor, before: Before, y1: Tensor, y2: Tensor,
    dw: Tensor, n1_weight: Tensor | None, n1_bias: Tensor | None, stats1: Tensor, act1: int,
    pw: Tensor, n2_weight: Tensor | None, n2_bias: Tensor | None, stats2: Tensor, act2: int,
    stride: list[int], padding: list[int], batch_stats: bool, mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of act(norm(x)); dw, its bias, norm1's two; pw, its bias, norm2's two; ``x`` NHWC, dense.

    Those not asked for are empty.
    """
    need_dx, need_dw, need_pw = mask
    y1 = y1 if y1.dim() == 4 else depthwise(launch, x, before, dw, None, stride, padding)
    dy2, d_w2, d_b2 = nhwc(dout), x.new_empty(0), x.new_empty(0)
    if n2_weight is not None or act2:
        dy2, d_w2, d_b2 = norm.norm_act_backward(launch, dy2, y2, n2_weight, n2_bias, stats2, act2, batch_stats)
    between, wanted = (n1_weight, n1_bias, stats1, act1), [need_dx or need_dw, need_pw, need_pw]
    da1, d_pw, d_pb = product_backward(launch, dy2, y1, between, pw, wanted)
    pw_side = (d_pw, d_pb, d_w2 if need_pw else x.new_empty(0), d_b2 if need_pw else x.new_empty(0))
    if not (need_dx or need_dw):
        return *(x.new_empty(0) for _ in range(5)), *pw_side
    dy1, d_w1, d_b1 = da1, x.new_empty(0), x.new_empty(0)
    if n1_weight is not None or act1:
        dy1, d_w1, d_b1 = norm.norm_act_backward(launch, da1, y1, n1_weight, n1_bias, stats1, act1, batch_stats)
    wanted = [need_dx, need_dw, need_dw]
    dx, d_dw, d_db = depthwise_backward(launch, dy1, x, before, dw, stride, padding, wanted)
    norm1 = (d_w1, d_b1) if need_dw else (x.new_empty(0), x.new_empty(0))
    return dx, d_dw, d_db, *norm1, *pw_side


def separable_conv2d_backward(launch: Launch, dout: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Gradients of x; dw, its bias, norm1's two; pw, its bias, norm2's two. Those not asked for are empty."""
    return separable_backward(launch, dout, nhwc(x), NO_NORM, *args)


def separable_conv2d_linked(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """As `fastfer.backends.reference._linked` composes it of these kernels."""
    return _linked.separable_conv2d_linked(partial(separable_conv2d_train, launch), *args)


def separable_conv2d_linked_backward(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """As `fastfer.backends.reference._linked` composes it of these kernels."""
    return _linked.separable_conv2d_linked_backward(partial(separable_conv2d_backward, launch), *args)


def depthwise_norm_linked(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """As `fastfer.backends.reference._linked` composes it of these kernels."""
    return _linked.depthwise_norm_linked(partial(depthwise_norm_train, launch), *args)


def depthwise_norm_linked_backward(launch: Launch, *args: Any) -> tuple[Tensor, ...]:
    """As `fastfer.backends.reference._linked` composes it of these kernels."""
    return _linked.depthwise_norm_linked_backward(partial(depthwise_norm_backward, launch), *args)
