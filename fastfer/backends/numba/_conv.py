# SPDX-License-Identifier: Apache-2.0
"""Kernels of the dense convolution: implicit matrix products over bands of padded input rows.

A block is a few rows of outputs. Their input rows are copied once, with the padding, into a buffer in cache (a band);
``rows`` lists where each output pixel's window begins in it and ``steps`` where each tap lies from there, in the order
KH, KW, C. Without padding the windows are read where they are. Activations are flat NHWC arrays, ``norm`` and ``coef``
as in ``_norm``.
"""

from __future__ import annotations

import numpy as np

from fastfer.backends.numba._gemm import ONE, ZERO, fitted, gather
from fastfer.backends.numba._norm import backward, forward, gradient_sums, moments
from fastfer.backends.numba._numba import Pointer, arguments, inline, kernel, piece
from fastfer.backends.numba._simd import compact, fill, lanes, load, store
from fastfer.backends.numba._span import Span, absent, area, get, keep, put, room


@inline
def _copy(to: Span, start: int, source: Span, at: int, count: int) -> None:
    for k in range(0, count, lanes(to)):
        n = min(count - k, lanes(to))
        store(to, start + k, load(source, at + k, n), n)


@inline
def _clear(to: Span, start: int, count: int) -> None:
    for k in range(0, count, lanes(to)):
        store(to, start + k, fill(to, 0.0), min(count - k, lanes(to)))


@piece
def band(
    buffer: Span,
    rows: Span,
    x: Span,
    first: int,
    lines: int,
    channels: int,
    height: int,
    width: int,
    out_height: int,
    out_width: int,
    kh: int,
    stride_y: int,
    stride_x: int,
    top: int,
    left: int,
    padded: int,
) -> None:
    """Input rows of output rows first .. first + lines, ``padded`` pixels each, and the windows' ``rows``.

    Rows that windows of one image share are there once. ``top`` and ``left`` may be negative: that much is cut off.
    """
    compact()
    size = padded * channels
    before = min(max(left, 0), padded)
    after = max(before, min(padded, width + left))
    begin, end = 0, 0
    for r in range(first, first + lines):
        image, i = r // out_height, r % out_height
        begin = begin + stride_y if r > first and i > 0 and stride_y < kh else end
        for k in range(end - begin, kh):
            to, q = (begin + k) * size, i * stride_y - top + k
            if q < 0 or q >= height:
                _clear(buffer, to, size)
            else:
                at = ((image * height + q) * width + before - left) * channels
                _clear(buffer, to, before * channels)
                _copy(buffer, to + before * channels, x, at, (after - before) * channels)
                _clear(buffer, to + after * channels, (padded - after) * channels)
        end = begin + kh
        for j in range(out_width):
            put(rows, (r - first) * out_width + j, begin * size + j * stride_x * channels)


@piece
def windows(
    rows: Span,
    first: int,
    lines: int,
    channels: int,
    height: int,
    width: int,
    out_height: int,
    out_width: int,
    stride_y: int,
    stride_x: int,
) -> None:
    """``rows`` for windows that lie wholly in x."""
    compact()
    for r in range(first, first + lines):
        image, i = r // out_height, r % out_height
        at = (image * height + i * stride_y) * width * channels
        for j in range(out_width):
            put(rows, (r - first) * out_width + j, at + j * stride_x * channels)


@kernel
def convolution(pointer: Pointer, chunk: int) -> None:
    """act(norm(convolution(x) + b)) by rows of all images; moments where ``stats`` (chunks, 3, times · O) is there.

    ``times`` pixels count as one of norm and moments; it divides the outputs' width.
    """
    (
        y, x, panels, b, norm, steps, stats, starts, columns, act, times, lines,
        channels, height, width, out_height, out_width, kh, stride_y, stride_x, top, left, padded,
    ) = arguments(pointer, "FFFFFLDLiiiiiiiiiiiiiii")  # fmt: skip
    depth, step, wide = steps.size, fitted(y, columns), times * columns
    band_rows = lines * max(kh, stride_y)
    memory = np.empty(room(x, band_rows * padded * channels), np.uint8)
    memory_rows = np.empty(room(steps, lines * out_width), np.uint8)
    memory_stats = np.empty(room(stats, 3 * wide if stats.size else 0), np.uint8)
    buffer, rows, scratch = area(x, memory), area(steps, memory_rows), area(stats, memory_stats)
    start, stop = get(starts, chunk), get(starts, chunk + 1)
    for first in range(start, stop, lines):
        count = min(lines, stop - first)
        pixels, at, source = count * out_width, first * out_width * columns, x
        if padded:
            source = buffer
            band(
                buffer, rows, x, first, count, channels, height, width, out_height, out_width,
                kh, stride_y, stride_x, top, left, padded,
            )  # fmt: skip
        else:
            windows(rows, first, count, channels, height, width, out_height, out_width, stride_y, stride_x)
        gather(y, at, columns, source, rows, steps, pixels, depth, panels, depth * step, step, b, columns, ZERO)
        if stats.size:
            done = (first - start) * out_width // times
            moments(stats, 3 * wide * chunk, done, scratch, y, at, pixels // times, wide)
        if norm.size or act:
            forward(y, at, wide, y, at, pixels // times, wide, norm, act)
    keep(memory)
    keep(memory_rows)
    keep(memory_stats)


@kernel
def convolution_weights(pointer: Pointer, chunk: int) -> None:
    """Weight gradient of act(norm(y)), y = convolution(x): per chunk ``parts`` (chunks, KH · KW · C, O padded to
    panels) and ``sums`` (chunks, O) of the gradient of y, which goes to ``dy`` where that is there.
    """
    (
        parts, sums, dy, dout, y, x, norm, coef, steps, starts, columns, act, lines,
        channels, height, width, out_height, out_width, kh, stride_y, stride_x, top, left, padded,
    ) = arguments(pointer, "FDFFFFFFLLiiiiiiiiiiiiii")  # fmt: skip
    panel = fitted(x, columns)
    step = (columns + panel - 1) // panel * panel
    memory = np.empty(room(x, lines * max(kh, stride_y) * padded * channels), np.uint8)
    memory_rows = np.empty(room(steps, lines * out_width), np.uint8)
    memory_dy = np.zeros(room(x, lines * out_width * step), np.uint8)
    buffer, rows, block = area(x, memory), area(steps, memory_rows), area(x, memory_dy)
    empty, to = absent(x), steps.size * step * chunk
    start, stop = get(starts, chunk), get(starts, chunk + 1)
    for first in range(start, stop, lines):
        count = min(lines, stop - first)
        pixels, at, source = count * out_width, first * out_width * columns, x
        if padded:
            source = buffer
            band(
                buffer, rows, x, first, count, channels, height, width, out_height, out_width,
                kh, stride_y, stride_x, top, left, padded,
            )  # fmt: skip
        else:
            windows(rows, first, count, channels, height, width, out_height, out_width, stride_y, stride_x)
        backward(block, ZERO, step, dout, y, at, pixels, columns, norm, coef, act)
        if dy.size:
            backward(dy, at, columns, dout, y, at, pixels, columns, norm, coef, act)
        gather(parts, to, step, source, steps, rows, steps.size, pixels, block, panel, step, empty, columns, ONE)
        gradient_sums(sums, columns * chunk, block, ZERO, step, block, ZERO, pixels, columns, empty, ZERO, ZERO)
    keep(memory)
    keep(memory_rows)
    keep(memory_dy)
