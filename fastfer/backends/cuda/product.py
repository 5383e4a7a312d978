# SPDX-License-Identifier: Apache-2.0
"""Products of activations and weights on CUDA tensors: the 1×1 convolution, what it reads and writes normalised."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, compute_dtype, empty_nhwc, product_types
from fastfer.signatures.fields import Affine, RunningNorm
from fastfer.signatures.separable_conv import ConvGradients, ConvNeeds

TILE, THREADS = 64, 256  # csrc/cuda/gemm.cuh
_ROWS = 512
"""Least rows that a block of a weight gradient adds up."""
_BLOCKS = 512
"""Blocks that fill a large device: a sum over rows is cut into parts until there are as many."""


class Operand(NamedTuple):
    """What a norm and an activation make of a tensor as it is read or written; statistics as `norm.words`."""

    norm: Affine | RunningNorm | None = None
    stats: Tensor | None = None
    act: int = 0

    def words(self) -> tuple[Tensor | int | float, ...]:
        """The norm as kernels take it."""
        return norm.words(self.norm, self.stats)


PLAIN = Operand()


def tiles(size: int) -> int:
    """Tiles that cover ``size`` rows or columns of a product."""
    return -(-size // TILE)


def row_blocks(rows: int) -> int:
    """Blocks that make a product's tiles of rows in turn: of the shape alone, so that statistics repeat."""
    return min(tiles(rows), _BLOCKS)


def row_parts(rows: int, blocks: int) -> tuple[int, int]:
    """Parts that a sum over rows is cut into where ``blocks`` make its results, and rows of one."""
    parts = max(min(-(-rows // _ROWS), -(-_BLOCKS // blocks)), 1)
    part = -(-rows // parts)
    return -(-rows // part), part


def gathered(launch: Launch, like: Tensor, rows: int, outputs: int, eps: float | None) -> norm.Gathered:
    """Memory for the statistics that a product's blocks gather; for None none are asked for."""
    if eps is None:
        return norm.NOTHING
    return norm.gathered(launch, like, outputs, row_blocks(rows), tiles(outputs), eps)


def product(
    launch: Launch,
    y1: Tensor,
    operand: Operand,
    weight: Tensor,
    bias: Tensor | None,
    after: Operand = PLAIN,
    eps: float | None = None,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The pointwise product of act(norm(y1)), and what is ``after`` it applied; statistics (3, O) of it, for an eps.

    ``into`` is memory of its size, if there is any.
    """
    outputs, channels = weight.shape[:2]
    rows = y1.numel() // max(channels, 1)
    y2 = empty_nhwc(y1, outputs, *y1.shape[2:]) if into is None else into
    nothing = y1.new_empty(0)
    if not rows:
        return y2, nothing if eps is None else y1.new_zeros((3, outputs), dtype=compute_dtype(y1))
    out = gathered(launch, y1, rows, outputs, eps)
    inputs = (y1, *operand.words(), weights(weight, y1), 0 if bias is None else bias, *after.words())
    arguments = (*inputs, y2, *out, operand.act, after.act, rows, channels, outputs)
    grid = (row_blocks(rows), tiles(outputs), 1)
    launch(f"pointwise_fwd<{product_types('pointwise_conv2d', y1)}>", y1, grid, THREADS, *arguments)
    return y2, out.stats if isinstance(out.stats, Tensor) else nothing


def weights(weight: Tensor, like: Tensor) -> Tensor:
    """A weight (O, C, ...) dense in the compute dtype: itself, as a rule."""
    return weight.to(compute_dtype(like)).contiguous()


def product_backward(
    launch: Launch,
    dy2: Tensor,
    y1: Tensor,
    operand: Operand,
    weight: Tensor,
    needs: ConvNeeds,
    into: Tensor | None = None,
) -> ConvGradients:
    """Gradients of act(norm(y1)), weight and bias; ``into`` is memory for the first, if there is any."""
    types = product_types("pointwise_conv2d", y1)
    outputs, channels = weight.shape[:2]
    rows = y1.numel() // max(channels, 1)
    da1, dw = y1.new_empty(0), y1.new_empty(0)
    if needs.x:
        da1, grid = torch.empty_like(y1) if into is None else into, (tiles(rows), tiles(channels), 1)
        inputs = (dy2, weights(weight, y1), da1, rows, channels, outputs)
        launch(f"pointwise_bwd_input<{types}>", y1, grid, THREADS, *inputs)
    if needs.weight and rows:
        grid = (tiles(outputs), tiles(channels), 1)
        parts, part = row_parts(rows, grid[0] * grid[1])
        partial = torch.empty((parts, outputs, channels), dtype=compute_dtype(y1), device=y1.device)
        arguments = (y1, *operand.words(), dy2, partial, rows, part, channels, outputs, operand.act)
        launch(f"pointwise_bwd_weight<{types}>", y1, (*grid[:2], parts), THREADS, *arguments)
        dw = norm.total(launch, partial).to(weight.dtype).view(weight.shape)
    elif needs.weight:
        dw = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    return ConvGradients(da1, dw, norm.column_sums(launch, dy2) if needs.bias else y1.new_empty(0))


def product_norm(
    launch: Launch, y1: Tensor, operand: Operand, weight: Tensor, bias: Tensor | None, after: RunningNorm | None,
    batch_stats: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The pointwise product of act(norm(y1)), and statistics (3, O) for the norm ``after`` it, empty without one."""
    if after is not None and batch_stats:
        return product(launch, y1, operand, weight, bias, eps=after.eps)
    y2, _ = product(launch, y1, operand, weight, bias)
    return y2, norm.norm_statistics(launch, y2, after, False)
