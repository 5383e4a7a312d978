# SPDX-License-Identifier: Apache-2.0
"""Coordinate attention on CUDA tensors, NHWC; the functions and kept tensors of `backends.reference.coordinate`.

Forward reads x for the pooling of all rows and columns, and again to multiply; backward reads (dout, x), then dout.
What is kept by position is in the compute dtype. The layers between are the products of `backends.cuda.separable_conv`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfer._types import ACTIVATIONS
from fastfer.backends.cuda import norm
from fastfer.backends.cuda.loader import Launch, compute_dtype, lanes, nhwc, type_name
from fastfer.backends.cuda.product import PLAIN, Operand, product, product_backward, product_norm
from fastfer.signatures.coordinate import (
    Coordinate,
    CoordinateBackward,
    CoordinateGradients,
    CoordinateTrain,
    CoordinateTrained,
    LinePool,
    LinePoolBackward,
    LinePooled,
)
from fastfer.signatures.separable_conv import ConvNeeds

THREADS = 256
_LANES = 32  # csrc/cuda/columns.cuh
_SIGMOID = ACTIVATIONS.index("sigmoid")
_CA, _MAXCA, _CPSCA = range(3)

_Lines = tuple[Tensor | int, Tensor | int]
"""Rows (N·H, C) and columns (N·W, C); 0 for nothing."""


def _blocks(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], -(-x.shape[1] // _LANES), 1


def _pool(launch: Launch, x: Tensor, mean: _Lines, most: _Lines, at: _Lines, mixed: bool) -> None:
    name = f"coordinate_pool<{type_name('coordinate', x)}>"
    lines = (mean[0], most[0], at[0], mean[1], most[1], at[1])
    launch(name, x, _blocks(x), THREADS, x, *lines, x.shape[2], x.shape[3], x.shape[1], int(mixed))


def _split(positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of (N·(H + W), C)."""
    rows = x.shape[0] * x.shape[2]
    return positions[:rows], positions[rows:]


def _lines(x: Tensor) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    return tuple(torch.empty((n, size, c), dtype=compute_dtype(x), device=x.device) for size in (h, w))  # type: ignore[return-value]


def _packs(x: Tensor, *others: Tensor) -> int:
    """Channels that a thread takes at once."""
    vec = lanes(x, *others)
    return 1 if x.shape[1] % vec else vec


def cpsca_pool(launch: Launch, a: LinePool) -> LinePooled:
    """Mean and maximum of each row, mean and maximum of each column."""
    x = nhwc(a.x)
    mean, most = _lines(x), _lines(x)
    _pool(launch, x, mean, most, (0, 0), False)
    return LinePooled(*(t.to(x.dtype).transpose(1, 2) for t in (mean[0], most[0], mean[1], most[1])))


def cpsca_pool_backward(launch: Launch, a: LinePoolBackward) -> Tensor:
    """Gradient of x."""
    x = nhwc(a.x)
    most, at = _lines(x), _lines(x)
    _pool(launch, x, (0, 0), most, at, False)
    dtype = compute_dtype(x)
    means, maxima = (
        (rows.transpose(1, 2).to(dtype).contiguous(), columns.transpose(1, 2).to(dtype).contiguous())
        for rows, columns in ((a.d_row_mean, a.d_col_mean), (a.d_row_max, a.d_col_max))
    )
    return _backward(launch, x, None, (0, 0), means, maxima, at)


def _backward(
    launch: Launch, like: Tensor, dout: Tensor | None, gates: _Lines, mean: _Lines, most: _Lines, at: _Lines
) -> Tensor:
    """dx from dout through the gates, and from the pooled lines' gradients."""
    dx = torch.empty_like(like)
    vec = _packs(dx) if dout is None else _packs(dx, dout)
    _, c, h, w = like.shape
    lines = (mean[0], most[0], at[0], mean[1], most[1], at[1])
    name, count = f"coordinate_bwd<{type_name('coordinate', like)}, {vec}, {THREADS}>", dx.numel() // vec
    launch.strided(name, dx, count, THREADS, 0 if dout is None else dout, *gates, *lines, dx, count, h, w, c)
    return dx


def _column(y: Tensor) -> Tensor:
    """(P, C) as an image of P by 1 pixels, for the functions that take images."""
    return y[:, :, None, None]


def coordinate_attention_train(launch: Launch, a: CoordinateTrain) -> CoordinateTrained:
    """Output and what backward needs."""
    block, kind, x = a.block, a.block.kind, nhwc(a.block.x)
    n, c, h, w = x.shape
    pooled = torch.empty((n * (h + w), c), dtype=compute_dtype(x), device=x.device)
    at = torch.empty_like(pooled) if kind != _CA else pooled.new_empty(0)
    most = torch.empty_like(pooled) if kind == _CPSCA else pooled
    nothing: _Lines = (0, 0)
    _pool(
        launch,
        x,
        _split(pooled, x) if kind != _MAXCA else nothing,
        _split(most, x) if kind != _CA else nothing,
        _split(at, x) if kind != _CA else nothing,
        kind == _CPSCA,
    )
    biases = block.bias * 2 if kind == _CPSCA else block.bias
    y, stats = product_norm(launch, _column(pooled), PLAIN, block.weight, biases, block.norm, a.batch_stats)
    gates = torch.empty_like(pooled)
    before, sigmoid = Operand(block.norm, stats, block.act), Operand(act=_SIGMOID)
    layers = ((block.h_weight, block.h_bias), (block.w_weight, block.w_bias))
    for lines, target, layer in zip(_split(y, x), _split(gates, x), layers, strict=True):
        product(launch, lines, before, *layer, sigmoid, into=target)
    out = torch.empty_like(x)
    vec = _packs(x, out)
    name, count = f"coordinate_gate<{type_name('coordinate', x)}, {vec}, {THREADS}>", x.numel() // vec
    launch.strided(name, x, count, THREADS, x, *_split(gates, x), out, count, h, w, c)
    return CoordinateTrained(out, pooled, at, y[:, :, 0, 0], gates, stats)


def coordinate_attention(launch: Launch, a: Coordinate) -> Tensor:
    """Output with running statistics."""
    return coordinate_attention_train(launch, CoordinateTrain(a, False)).out


def coordinate_attention_backward(launch: Launch, a: CoordinateBackward) -> CoordinateGradients:
    """Gradients of x; weight, bias, the norm's two, h_weight, h_bias, w_weight, w_bias."""
    need_dx, need_params = a.needs
    dout, x, kind, gates, stats = nhwc(a.d_out), nhwc(a.x), a.kind, a.gates, a.stats
    d_logits = torch.empty_like(gates)
    name, sizes = f"coordinate_dlogits<{type_name('coordinate', x)}>", (x.shape[2], x.shape[3], x.shape[1])
    launch(name, x, _blocks(x), THREADS, dout, x, *_split(gates, x), *_split(d_logits, x), *sizes)
    before = Operand(a.norm, stats, a.act)
    wanted = ConvNeeds(True, need_params, need_params)
    dz = torch.empty_like(a.y)
    sides = zip(_split(d_logits, x), _split(a.y, x), (a.h_weight, a.w_weight), _split(dz, x), strict=True)
    (_, *d_h), (_, *d_w) = (
        product_backward(launch, grads, lines, before, layer, wanted, into=target)
        for grads, lines, layer, target in sides
    )
    dz = _column(dz)
    dy, d_n_weight, d_n_bias = norm.norm_act_backward(launch, dz, _column(a.y), a.norm, stats, a.act, a.batch_stats)
    d_pooled, d_weight, d_bias = product_backward(
        launch, dy[:, :, 0, 0], a.pooled, PLAIN, a.weight, ConvNeeds(need_dx, need_params, need_params)
    )
    dx = x.new_empty(0)
    if need_dx:
        nothing: _Lines = (0, 0)
        lines = _split(d_pooled, x)
        places = _split(a.at, x) if kind != _CA else nothing
        mean, most = (lines if kind != _MAXCA else nothing), (lines if kind != _CA else nothing)
        dx = _backward(launch, x, dout, _split(gates, x), mean, most, places)
    if not need_params:
        return CoordinateGradients(dx, *(x.new_empty(0) for _ in range(8)))
    d_bias = d_bias * 2 if kind == _CPSCA else d_bias
    return CoordinateGradients(dx, d_weight, d_bias, d_n_weight, d_n_bias, *d_h, *d_w)
