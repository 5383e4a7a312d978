# SPDX-License-Identifier: Apache-2.0
"""Kernels of CBAM and its two gates, over chunks of images; an absent gate's arrays are empty."""

from __future__ import annotations

import numpy as np

from fastfer.backends.numba._gates import (
    channel_dots,
    channel_maxima,
    gate_sums,
    mlp_backward,
    mlp_gate,
    mlp_hidden,
    pixel_grads,
    scale_pixels,
)
from fastfer.backends.numba._numba import Pointer, arguments, kernel
from fastfer.backends.numba._planes import (
    border_size,
    correlate,
    enclose,
    plane_gate,
    plane_gate_grad,
    plane_moments,
    weight_grad,
)
from fastfer.backends.numba._pool import pool_image
from fastfer.backends.numba._simd import div, fill, fma, lanes, load, splat, store
from fastfer.backends.numba._span import absent, area, get, keep, put, room


@kernel
def forward(pointer: Pointer, chunk: int) -> None:
    """Gates of the images; ``out`` too, unless the statistics of the batch (``moments``) come first."""
    (
        out, avg, most, positions, gate, most_plane, mean_plane, y, channel, moments, x, w1, b1, w2, b2, weight, line,
        images, count, height, width, channels, size,
    ) = arguments(pointer, "FFFIFFFFIDFFFFFFFiiiiii")  # fmt: skip
    pixels = height * width
    memory = np.empty(room(x, channels), np.uint8)
    room_of_border = room(x, border_size(x, height, width, size)) if weight.size else 64
    borders = np.zeros(room_of_border, np.uint8), np.zeros(room_of_border, np.uint8)
    memory_hidden, memory_plane = np.empty(room(x, 2 * b1.size), np.uint8), np.empty(room(x, pixels), np.uint8)
    hidden = area(x, memory_hidden)
    local = area(x, memory) if w1.size else absent(x)
    plane = area(x, memory_plane) if weight.size else absent(x)
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        at, po = i * pixels * channels, i * pixels
        if w1.size:
            pool_image(avg, i * channels, most, positions, x, at, pixels, channels)
            mlp_hidden(hidden, avg, most, i * channels, w1, b1, channels)
            mlp_gate(gate, i * channels, hidden, w2, b2)
            for c in range(channels):
                put(local, c, get(gate, i * channels + c))
        if weight.size:
            channel_maxima(most_plane, po, mean_plane, po, channel, po, x, at, local, pixels, channels)
            padded_most, padded_mean = area(x, borders[0]), area(x, borders[1])
            enclose(padded_most, most_plane, po, height, width, size)
            enclose(padded_mean, mean_plane, po, height, width, size)
            correlate(y, po, padded_most, weight, 0, 1, 0, height, width, size)
            correlate(y, po, padded_mean, weight, size * size, 1, 1, height, width, size)
            if moments.size:
                plane_moments(moments, i, y, po, pixels)
            else:
                plane_gate(plane, 0, y, po, line, pixels)
        if not moments.size:
            scale_pixels(out, x, at, local, plane, pixels, channels)
    keep(memory)
    keep(borders[0])
    keep(borders[1])
    keep(memory_hidden)
    keep(memory_plane)


@kernel
def scale(pointer: Pointer, chunk: int) -> None:
    """``out`` from the gate and the convolution of each image."""
    out, gate, y, x, line, images, count, pixels, channels = arguments(pointer, "FFFFFiiii")
    memory, memory_plane = np.empty(room(x, channels), np.uint8), np.empty(room(x, pixels), np.uint8)
    local, plane = area(x, memory) if gate.size else absent(x), area(x, memory_plane)
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        if gate.size:
            for c in range(channels):
                put(local, c, get(gate, i * channels + c))
        plane_gate(plane, 0, y, i * pixels, line, pixels)
        scale_pixels(out, x, i * pixels * channels, local, plane, pixels, channels)
    keep(memory)
    keep(memory_plane)


@kernel
def slope(pointer: Pointer, chunk: int) -> None:
    """The spatial gate ``s``, the gradient ``t`` before its sigmoid, and the sums of t (images, 2)."""
    s, t, sums, dout, x, gate, y, line, mean, images, count, pixels, channels = arguments(pointer, "FFDFFFFFFiiii")
    memory = np.empty(room(x, channels), np.uint8)
    local = area(x, memory) if gate.size else absent(x)
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        if gate.size:
            for c in range(channels):
                put(local, c, get(gate, i * channels + c))
        po = i * pixels
        plane_gate(s, po, y, po, line, pixels)
        channel_dots(t, po, dout, x, po * channels, local, pixels, channels)
        plane_gate_grad(t, s, po, y, po, mean, pixels, sums, i)
    keep(memory)


@kernel
def backward(pointer: Pointer, chunk: int) -> None:
    """dx, and per chunk the sums of the gradients of the MLP's tensors and of the convolution's weight."""
    (
        dx, mlp_grads, weight_grads, dout, x, avg, most, gate, positions, most_plane, mean_plane, y, channel, s, t,
        curve, w1, b1, w2, weight, images, count, height, width, channels, size,
    ) = arguments(pointer, "FDDFFFFFIFFFIFFFFFFFiiiiii")  # fmt: skip
    pixels, units = height * width, b1.size
    vectors = np.empty(room(x, 2 * units), np.uint8)
    border = np.zeros(room(x, border_size(x, height, width, size)) if weight.size else 64, np.uint8)
    plane0, plane1 = np.empty(room(x, pixels), np.uint8), np.empty(room(x, pixels), np.uint8)
    memory = (
        np.empty(room(x, channels), np.uint8),
        np.empty(room(x, channels), np.uint8),
        np.empty(room(x, channels), np.uint8),
        np.empty(room(x, channels), np.uint8),
    )
    local = area(x, memory[0]) if w1.size else absent(x)
    dz, davg, dmost = area(x, memory[1]), area(x, memory[2]), area(x, memory[3])
    hidden, padded, dmean, dlargest = area(x, vectors), area(x, border), area(x, plane0), area(x, plane1)
    for i in range(images * chunk // count, images * (chunk + 1) // count):
        at, po, vo = i * pixels * channels, i * pixels, i * channels
        if weight.size:
            for p in range(0, pixels, lanes(x)):
                n = min(lanes(x), pixels - p)
                bent = fma(load(y, po + p, n), splat(curve, 1), splat(curve, 2))
                store(dmean, p, fma(load(t, po + p, n), splat(curve, 0), bent), n)
            enclose(padded, dmean, 0, height, width, size)
            correlate(dlargest, 0, padded, weight, size * size - 1, -1, 0, height, width, size)
            correlate(dmean, 0, padded, weight, 2 * size * size - 1, -1, 0, height, width, size)
            for p in range(0, pixels, lanes(x)):
                n = min(lanes(x), pixels - p)
                store(dmean, p, div(load(dmean, p, n), fill(x, channels)), n)
            if weight_grads.size:
                to = 2 * size * size * chunk
                weight_grad(weight_grads, to, most_plane, po, padded, height, width, size)
                weight_grad(weight_grads, to + size * size, mean_plane, po, padded, height, width, size)
        if w1.size:
            gate_sums(dz, dout, x, at, s, po, dmean, dlargest, channel, po, pixels, channels)
            mlp_hidden(hidden, avg, most, vo, w1, b1, channels)
            go = (2 * units * channels + units + channels) * chunk
            mlp_backward(davg, dmost, dz, mlp_grads, go, hidden, gate, avg, most, vo, w1, w2, units, channels)
            for c in range(channels):
                put(local, c, get(gate, vo + c))
                put(davg, c, get(davg, c) / pixels)
        if dx.size:
            pixel_grads(dx, dout, at, local, davg, s, po, dmean, dlargest, channel, po, pixels, channels)
            if w1.size:
                for c in range(channels):
                    to = at + get(positions, vo + c) * channels + c
                    put(dx, to, get(dx, to) + get(dmost, c))
    keep(vectors)
    keep(border)
    keep(plane0)
    keep(plane1)
    keep(memory[0])
    keep(memory[1])
    keep(memory[2])
    keep(memory[3])
