# SPDX-License-Identifier: Apache-2.0
"""The parallel passes over memory that the ops of ``separable_conv`` are made of.

Activations are flat NHWC arrays, ``size`` is (C, H, W, OH, OW, KW, SH, SW); ``norm`` and ``coef`` as in ``_norm``, an
absent array has no elements. Chunks write their own part of ``stats``, ``sums`` and ``parts``; the caller merges those.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from fastfer.fallback._depthwise import row, weight_row
from fastfer.fallback._gemm import accumulate, multiply, pack, panel
from fastfer.fallback._norm import add_chunks, backward, forward, gradient_sums, moments
from fastfer.fallback._numba import Array, kernel, parallel
from fastfer.fallback._simd import compact

BLOCK = 96
"""Pixels between fused steps: 16 tiles of rows; with 512 channels 192 KiB, within L2."""

Size = tuple[int, int, int, int, int, int, int, int]


@kernel
def _depthwise_chunk(
    y: Array, x: Array, w: Array, b: Array, size: Size, vertical: Array, horizontal: Array, stats: Array, part: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    compact()
    channels, height, width, out_height, out_width, kw, _, stride = size
    scratch = np.empty(3 * channels, np.float64)
    for r in range(start, stop):
        image, i = divmod(r, out_height)
        yo = r * out_width * channels
        row(
            y, yo, channels, x, image * height * width * channels, stride * channels, width, w, kw, 1, 1,
            b, channels, vertical, i, horizontal,
        )  # fmt: skip
        if stats.size:
            moments(stats, 3 * channels * part, (r - start) * out_width, scratch, y, yo, out_width, channels)


@parallel
def depthwise(
    y: Array, x: Array, w: Array, b: Array, size: Size, vertical: Array, horizontal: Array, stats: Array, starts: Array
) -> None:
    """Depthwise convolution of rows ``starts[i] .. starts[i + 1]`` of all images' rows, with moments if ``stats``."""
    for index in prange(starts.size - 1):
        i = np.int64(index)
        _depthwise_chunk(y, x, w, b, size, vertical, horizontal, stats, i, starts[i], starts[i + 1])


@kernel
def _depthwise_backward_chunk(
    dx: Array, parts: Array, sums: Array, dy: Array, x: Array, w: Array, size: Size, vertical: Array, horizontal: Array,
    vertical_back: Array, horizontal_back: Array, need_dx: bool, need_dw: bool, part: int, rows: int, count: int,
) -> None:  # fmt: skip
    compact()
    channels, height, width, out_height, out_width, kw, stride_y, stride = size
    taps = w.size
    empty = w[:0]
    if need_dw:
        for r in range(rows * out_height * part // count, rows * out_height * (part + 1) // count):
            image, i = divmod(r, out_height)
            do = r * out_width * channels
            weight_row(
                parts, taps * part, dy, do, x, image * height * width * channels, stride * channels, width, kw, channels,
                vertical, i, horizontal,
            )  # fmt: skip
            gradient_sums(sums, channels * part, dy, do, channels, dy, 0, out_width, channels, empty, 0, False)
    if need_dx:
        for r in range(rows * height * part // count, rows * height * (part + 1) // count):
            image, i = divmod(r, height)
            row(
                dx, r * width * channels, stride * channels, dy, image * out_height * out_width * channels, channels,
                out_width, w, kw, -stride_y, -stride, empty, channels, vertical_back, i, horizontal_back,
            )  # fmt: skip


@parallel
def depthwise_backward(
    dx: Array, parts: Array, sums: Array, dy: Array, x: Array, w: Array, size: Size, vertical: Array, horizontal: Array,
    vertical_back: Array, horizontal_back: Array, need_dx: bool, need_dw: bool, images: int, count: int,
) -> None:  # fmt: skip
    """Input gradient, and per chunk the weight gradient ``parts`` (chunks, KH, KW, C) and ``sums`` (chunks, C) of dy."""
    for index in prange(count):
        i = np.int64(index)
        _depthwise_backward_chunk(
            dx, parts, sums, dy, x, w, size, vertical, horizontal, vertical_back, horizontal_back, need_dx, need_dw,
            i, images, count,
        )  # fmt: skip


@parallel
def pack_panels(panels: Array, w: Array, depth: int, columns: int, k_step: int, j_step: int, count: int) -> None:
    """``_gemm.pack`` of all ``count`` panels."""
    for index in prange(count):
        i = np.int64(index)
        pack(panels, w, i, depth, columns, k_step, j_step)


@kernel
def _pointwise_chunk(
    y: Array, x: Array, panels: Array, b: Array, depth: int, columns: int, norm: Array, act: int, stats: Array, part: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    compact()
    fused = norm.size > 0 or act > 0
    block = np.empty(BLOCK * depth if fused else 0, x.dtype)
    scratch = np.empty(3 * columns, np.float64)
    for r in range(start, stop, BLOCK):
        rows = min(BLOCK, stop - r)
        if fused:
            forward(block, 0, depth, x, r * depth, rows, depth, norm, act)
            multiply(y, r * columns, block, 0, panels, b, rows, depth, columns)
        else:
            multiply(y, r * columns, x, r * depth, panels, b, rows, depth, columns)
        if stats.size:
            moments(stats, 3 * columns * part, r - start, scratch, y, r * columns, rows, columns)


@parallel
def pointwise(
    y: Array, x: Array, panels: Array, b: Array, depth: int, columns: int, norm: Array, act: int, stats: Array, starts: Array
) -> None:
    """y = act(norm(x)) · w + b on pixels ``starts[i] .. starts[i + 1]``, with moments of y if ``stats``."""
    for index in prange(starts.size - 1):
        i = np.int64(index)
        _pointwise_chunk(y, x, panels, b, depth, columns, norm, act, stats, i, starts[i], starts[i + 1])


@kernel
def _pointwise_backward_chunk(
    da: Array, parts: Array, sums2: Array, sums1: Array, dout: Array, y2: Array, y1: Array, panels: Array,
    depth: int, columns: int, norm2: Array, coef2: Array, act2: int, norm1: Array, act1: int,
    need_da: bool, need_dw: bool, part: int, start: int, stop: int,
) -> None:  # fmt: skip
    compact()
    padded = (depth + panel(da) - 1) // panel(da) * panel(da)
    dy = np.empty(BLOCK * columns, dout.dtype)
    a = np.zeros(BLOCK * padded if need_dw else 0, dout.dtype)
    empty = panels[:0]
    for r in range(start, stop, BLOCK):
        rows = min(BLOCK, stop - r)
        backward(dy, 0, columns, dout, y2, r * columns, rows, columns, norm2, coef2, act2)
        if need_dw:
            forward(a, 0, padded, y1, r * depth, rows, depth, norm1, act1)
            accumulate(parts, columns * padded * part, dy, columns, a, padded, rows, columns)
            gradient_sums(sums2, columns * part, dy, 0, columns, dy, 0, rows, columns, empty, 0, False)
        if need_da:
            at = r * depth
            multiply(da, at, dy, 0, panels, empty, rows, columns, depth)
            if norm1.size or act1:
                gradient_sums(sums1, 2 * depth * part, da, at, depth, y1, at, rows, depth, norm1, act1, True)


@parallel
def pointwise_backward(
    da: Array, parts: Array, sums2: Array, sums1: Array, dout: Array, y2: Array, y1: Array, panels: Array,
    depth: int, columns: int, norm2: Array, coef2: Array, act2: int, norm1: Array, act1: int,
    need_da: bool, need_dw: bool, starts: Array,
) -> None:  # fmt: skip
    """Backward of act2(norm2(w · act1(norm1(y1)))) down to the gradient before act1, ``da``.

    Per chunk: weight gradient ``parts`` (chunks, O, C padded to panels), ``sums2`` (chunks, O) of the gradient of y2,
    ``sums1`` (chunks, 2, C) as ``_norm.gradient_sums``.
    """
    for index in prange(starts.size - 1):
        i = np.int64(index)
        _pointwise_backward_chunk(
            da, parts, sums2, sums1, dout, y2, y1, panels, depth, columns, norm2, coef2, act2, norm1, act1,
            need_da, need_dw, i, starts[i], starts[i + 1],
        )  # fmt: skip


@parallel
def norm_act(z: Array, y: Array, channels: int, norm: Array, act: int, starts: Array) -> None:
    """z = act(norm(y)) by pixels."""
    for index in prange(starts.size - 1):
        i = np.int64(index)
        at = starts[i] * channels
        forward(z, at, channels, y, at, starts[i + 1] - starts[i], channels, norm, act)


@parallel
def norm_backward(dy: Array, dz: Array, y: Array, channels: int, norm: Array, coef: Array, starts: Array) -> None:
    """Gradient of y from that of z = norm(y), by pixels; ``dy`` may be ``dz``."""
    for index in prange(starts.size - 1):
        i = np.int64(index)
        at = starts[i] * channels
        backward(dy, at, channels, dz, y, at, starts[i + 1] - starts[i], channels, norm, coef, 0)


@kernel
def _sums_chunk(sums: Array, dy: Array, y: Array, channels: int, norm: Array, act: int, part: int, start: int, stop: int) -> None:
    compact()
    for r in range(start, stop, BLOCK):
        at, rows = r * channels, min(BLOCK, stop - r)
        gradient_sums(sums, 2 * channels * part, dy, at, channels, y, at, rows, channels, norm, act, False)


@parallel
def norm_sums(sums: Array, dy: Array, y: Array, channels: int, norm: Array, act: int, starts: Array) -> None:
    """``sums`` (chunks, 2, C) as ``_norm.gradient_sums``, by pixels."""
    for index in prange(starts.size - 1):
        i = np.int64(index)
        _sums_chunk(sums, dy, y, channels, norm, act, i, starts[i], starts[i + 1])


@parallel
def merge_parts(out: Array, parts: Array, count: int) -> None:
    """out = sum of ``parts`` (chunks, out.size) over chunks."""
    for index in prange(count):
        i = np.int64(index)
        add_chunks(out, parts, out.size * i // count, out.size * (i + 1) // count)


@kernel
def _separable_chunk(
    out: Array, x: Array, w: Array, b: Array, size: Size, vertical: Array, horizontal: Array, norm1: Array, act1: int,
    panels: Array, pb: Array, columns: int, norm2: Array, act2: int, start: int, stop: int,
) -> None:  # fmt: skip
    compact()
    channels, height, width, out_height, out_width, kw, _, stride = size
    lines = max(1, BLOCK // out_width)
    block = np.empty(lines * out_width * channels, x.dtype)
    for first in range(start, stop, lines):
        pixels = min(lines, stop - first) * out_width
        for r in range(first, min(stop, first + lines)):
            image, i = divmod(r, out_height)
            row(
                block, (r - first) * out_width * channels, channels, x, image * height * width * channels,
                stride * channels, width, w, kw, 1, 1, b, channels, vertical, i, horizontal,
            )  # fmt: skip
        if norm1.size or act1:
            forward(block, 0, channels, block, 0, pixels, channels, norm1, act1)
        at = first * out_width * columns
        multiply(out, at, block, 0, panels, pb, pixels, channels, columns)
        if norm2.size or act2:
            forward(out, at, columns, out, at, pixels, columns, norm2, act2)


@parallel
def separable(
    out: Array, x: Array, w: Array, b: Array, size: Size, vertical: Array, horizontal: Array, norm1: Array, act1: int,
    panels: Array, pb: Array, columns: int, norm2: Array, act2: int, starts: Array,
) -> None:  # fmt: skip
    """The whole block on rows ``starts[i] .. starts[i + 1]`` of all images' output rows, through a buffer in cache."""
    for index in prange(starts.size - 1):
        i = np.int64(index)
        _separable_chunk(
            out, x, w, b, size, vertical, horizontal, norm1, act1, panels, pb, columns, norm2, act2, starts[i], starts[i + 1]
        )
