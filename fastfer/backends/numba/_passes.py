# SPDX-License-Identifier: Apache-2.0
"""The passes over memory that the ops of several families are made of, one kernel each.

Activations are flat NHWC arrays; ``norm`` and ``coef`` are as in ``_norm``; an absent array has no elements. Chunk
``i`` takes the pixels or rows ``starts[i] .. starts[i + 1]`` and writes its own part of ``stats``, ``sums`` and
``parts``, which the caller merges.
"""

from __future__ import annotations

import numpy as np

from fastfer.backends.numba._depthwise import row, weight_row
from fastfer.backends.numba._gemm import ONE, ZERO, accumulate, multiply, pack, panel
from fastfer.backends.numba._norm import add_chunks, backward, forward, gradient_sums, merge, moments
from fastfer.backends.numba._numba import Pointer, arguments, kernel
from fastfer.backends.numba._span import absent, area, get, keep, room

BLOCK = 96
"""Pixels between fused steps: 16 tiles of rows; with 512 channels 192 KiB, within L2."""


@kernel
def depthwise(pointer: Pointer, chunk: int) -> None:
    """y = depthwise(x) + b by rows of all images, with moments where ``stats`` (chunks, 3, C) is there."""
    (
        y, x, w, b, vertical, horizontal, stats, starts,
        channels, height, width, out_height, out_width, kw, _, stride,
    ) = arguments(pointer, "FFFFLLDLiiiiiiii")  # fmt: skip
    start = get(starts, chunk)
    memory = np.empty(room(stats, 3 * channels if stats.size else 0), np.uint8)
    scratch = area(stats, memory)
    for r in range(start, get(starts, chunk + 1)):
        image, i = r // out_height, r % out_height
        yo = r * out_width * channels
        row(
            y, yo, channels, x, image * height * width * channels, stride * channels, width, w, kw, ONE, ONE,
            b, channels, vertical, i, horizontal,
        )  # fmt: skip
        if stats.size:
            moments(stats, 3 * channels * chunk, (r - start) * out_width, scratch, y, yo, out_width, channels)
    keep(memory)


@kernel
def depthwise_backward(pointer: Pointer, chunk: int) -> None:
    """Input gradient; per chunk the weight gradient ``parts`` (chunks, KH, KW, C) and ``sums`` (chunks, C) of dy."""
    (
        dx, parts, sums, dy, x, w, vertical, horizontal, vertical_back, horizontal_back, images, count,
        channels, height, width, out_height, out_width, kw, stride_y, stride,
    ) = arguments(pointer, "FFDFFFLLLLiiiiiiiiii")  # fmt: skip
    empty = absent(w)
    if parts.size:
        for r in range(images * out_height * chunk // count, images * out_height * (chunk + 1) // count):
            image, i = r // out_height, r % out_height
            do = r * out_width * channels
            weight_row(
                parts, w.size * chunk, dy, do, x, image * height * width * channels, stride * channels, width, kw,
                channels, vertical, i, horizontal,
            )  # fmt: skip
            gradient_sums(sums, channels * chunk, dy, do, channels, dy, do, out_width, channels, empty, ZERO, ZERO)
    if dx.size:
        for r in range(images * height * chunk // count, images * height * (chunk + 1) // count):
            image, i = r // height, r % height
            row(
                dx, r * width * channels, stride * channels, dy, image * out_height * out_width * channels, channels,
                out_width, w, kw, -stride_y, -stride, empty, channels, vertical_back, i, horizontal_back,
            )  # fmt: skip


@kernel
def pack_panel(pointer: Pointer, chunk: int) -> None:
    """``_gemm.pack`` of panel number ``chunk``."""
    panels, w, width, depth, columns, k_step, j_step = arguments(pointer, "FFiiiii")
    pack(panels, w, chunk, width, depth, columns, k_step, j_step)


@kernel
def pointwise(pointer: Pointer, chunk: int) -> None:
    """y = act(norm(x)) · w + b by pixels, with moments of y where ``stats`` (chunks, 3, O) is there."""
    y, x, panels, b, norm, stats, starts, depth, columns, act = arguments(pointer, "FFFFFDLiii")
    fused = norm.size > 0 or act > 0
    memory = np.empty(room(x, BLOCK * depth if fused else 0), np.uint8)
    memory_stats = np.empty(room(stats, 3 * columns if stats.size else 0), np.uint8)
    block, scratch = area(x, memory), area(stats, memory_stats)
    start, stop = get(starts, chunk), get(starts, chunk + 1)
    for r in range(start, stop, BLOCK):
        rows = min(BLOCK, stop - r)
        if fused:
            forward(block, ZERO, depth, x, r * depth, rows, depth, norm, act)
            multiply(y, r * columns, block, ZERO, panels, b, rows, depth, columns)
        else:
            multiply(y, r * columns, x, r * depth, panels, b, rows, depth, columns)
        if stats.size:
            moments(stats, 3 * columns * chunk, r - start, scratch, y, r * columns, rows, columns)
    keep(memory)
    keep(memory_stats)


@kernel
def pointwise_backward(pointer: Pointer, chunk: int) -> None:
    """Backward of act2(norm2(w · act1(norm1(y1)))) down to the gradient before act1, ``da``.

    Per chunk: weight gradient ``parts`` (chunks, O, C padded to panels), ``sums2`` (chunks, O) of the gradient of y2,
    ``sums1`` (chunks, 2, C) as ``_norm.gradient_sums``.
    """
    (
        da, parts, sums2, sums1, dout, y2, y1, panels, norm2, coef2, norm1, starts, depth, columns, act2, act1,
    ) = arguments(pointer, "FFDDFFFFFFFLiiii")  # fmt: skip
    padded = (depth + panel(da) - 1) // panel(da) * panel(da)
    memory = np.empty(room(dout, BLOCK * columns), np.uint8)
    memory_a = np.zeros(room(dout, BLOCK * padded if parts.size else 0), np.uint8)
    dy, a = area(dout, memory), area(dout, memory_a)
    empty = absent(panels)
    for r in range(get(starts, chunk), get(starts, chunk + 1), BLOCK):
        rows, at = min(BLOCK, get(starts, chunk + 1) - r), r * depth
        backward(dy, ZERO, columns, dout, y2, r * columns, rows, columns, norm2, coef2, act2)
        if parts.size:
            forward(a, ZERO, padded, y1, at, rows, depth, norm1, act1)
            accumulate(parts, columns * padded * chunk, dy, columns, a, padded, rows, columns)
            gradient_sums(sums2, columns * chunk, dy, ZERO, columns, dy, ZERO, rows, columns, empty, ZERO, ZERO)
        if da.size:
            multiply(da, at, dy, ZERO, panels, empty, rows, columns, depth)
            if norm1.size or act1:
                gradient_sums(sums1, 2 * depth * chunk, da, at, depth, y1, at, rows, depth, norm1, act1, ONE)
    keep(memory)
    keep(memory_a)


@kernel
def norm_act(pointer: Pointer, chunk: int) -> None:
    """z = act(norm(y)) by pixels."""
    z, y, norm, starts, channels, act = arguments(pointer, "FFFLii")
    at = get(starts, chunk) * channels
    forward(z, at, channels, y, at, get(starts, chunk + 1) - get(starts, chunk), channels, norm, act)


@kernel
def norm_backward(pointer: Pointer, chunk: int) -> None:
    """Gradient of y from that of z = act(norm(y)), by pixels; ``dy`` may be ``dz``."""
    dy, dz, y, norm, coef, starts, channels, act = arguments(pointer, "FFFFFLii")
    at = get(starts, chunk) * channels
    backward(dy, at, channels, dz, y, at, get(starts, chunk + 1) - get(starts, chunk), channels, norm, coef, act)


@kernel
def norm_moments(pointer: Pointer, chunk: int) -> None:
    """``stats`` (chunks, 3, C) as ``_norm.moments``, by pixels."""
    stats, y, starts, channels = arguments(pointer, "DFLi")
    memory = np.empty(room(stats, 3 * channels), np.uint8)
    scratch = area(stats, memory)
    start, stop = get(starts, chunk), get(starts, chunk + 1)
    for r in range(start, stop, BLOCK):
        rows = min(BLOCK, stop - r)
        moments(stats, 3 * channels * chunk, r - start, scratch, y, r * channels, rows, channels)
    keep(memory)


@kernel
def norm_sums(pointer: Pointer, chunk: int) -> None:
    """``sums`` (chunks, 2, C) as ``_norm.gradient_sums``, by pixels."""
    sums, dy, y, norm, starts, channels, act = arguments(pointer, "DFFFLii")
    for r in range(get(starts, chunk), get(starts, chunk + 1), BLOCK):
        at, rows = r * channels, min(BLOCK, get(starts, chunk + 1) - r)
        gradient_sums(sums, 2 * channels * chunk, dy, at, channels, y, at, rows, channels, norm, act, ZERO)


@kernel
def merge_parts(pointer: Pointer, chunk: int) -> None:
    """out = sum of ``parts`` (n, out.size) over n, for one of ``count`` ranges of out."""
    out, parts, count = arguments(pointer, "FFi")
    add_chunks(out, parts, out.size * chunk // count, out.size * (chunk + 1) // count)


@kernel
def merge_moments(pointer: Pointer, chunk: int) -> None:
    """The chunks of ``stats`` (chunks, 3, C), of ``counts`` rows each, into the first; a single chunk does it all."""
    stats, counts, channels = arguments(pointer, "DLi")
    merge(stats, counts, channels)


@kernel
def separable(pointer: Pointer, chunk: int) -> None:
    """The whole block by rows of all images' outputs, through a buffer in cache."""
    (
        out, x, w, b, norm1, panels, pb, norm2, vertical, horizontal, starts, columns, act1, act2,
        channels, height, width, out_height, out_width, kw, _, stride,
    ) = arguments(pointer, "FFFFFFFFLLLiiiiiiiiiii")  # fmt: skip
    lines = max(1, BLOCK // out_width)
    memory = np.empty(room(x, lines * out_width * channels), np.uint8)
    block = area(x, memory)
    stop = get(starts, chunk + 1)
    for first in range(get(starts, chunk), stop, lines):
        pixels = min(lines, stop - first) * out_width
        for r in range(first, min(stop, first + lines)):
            image, i = r // out_height, r % out_height
            row(
                block, (r - first) * out_width * channels, channels, x, image * height * width * channels,
                stride * channels, width, w, kw, ONE, ONE, b, channels, vertical, i, horizontal,
            )  # fmt: skip
        if norm1.size or act1:
            forward(block, ZERO, channels, block, ZERO, pixels, channels, norm1, act1)
        at = first * out_width * columns
        multiply(out, at, block, ZERO, panels, pb, pixels, channels, columns)
        if norm2.size or act2:
            forward(out, at, columns, out, at, pixels, columns, norm2, act2)
    keep(memory)
