# SPDX-License-Identifier: Apache-2.0
"""Losses by rows, their gradients by blocks of columns, where samples add to the same row in order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastfer.backends.numba._gemm import ZERO
from fastfer.backends.numba._numba import Pointer, arguments, inline, kernel, piece
from fastfer.backends.numba._rows import square_distance
from fastfer.backends.numba._simd import compact, fill, fma, lanes, load, mul, store, sub
from fastfer.backends.numba._span import Span, area, get, keep, put, room


@kernel
def center_forward(pointer: Pointer, chunk: int) -> None:
    """``parts[chunk]``: sum of |x - c_y|² of the rows ``starts[chunk] ..``."""
    parts, features, centers, labels, starts, dim = arguments(pointer, "DFFLLi")
    memory = np.empty(room(features, lanes(features)), np.uint8)
    s, total = area(features, memory), 0.0
    for n in range(get(starts, chunk), get(starts, chunk + 1)):
        total += square_distance(s, ZERO, features, n * dim, centers, get(labels, n) * dim, dim)
    put(parts, chunk, total)
    keep(memory)


@kernel
def center_backward(pointer: Pointer, chunk: int) -> None:
    """Gradients by the columns ``starts[chunk] ..``; d_centers starts at 0; those not wanted have no elements."""
    d_features, d_centers, features, centers, dloss, labels, starts, dim = arguments(pointer, "FFFFFLLi")
    rate = fill(features, get(dloss, 0))
    for n in range(labels.size):
        for c in range(get(starts, chunk), get(starts, chunk + 1), lanes(features)):
            count = min(get(starts, chunk + 1) - c, lanes(features))
            row, center = n * dim + c, get(labels, n) * dim + c
            grad = mul(sub(load(features, row, count), load(centers, center, count)), rate)
            if d_features.size:
                store(d_features, row, grad, count)
            if d_centers.size:
                store(d_centers, center, sub(load(d_centers, center, count), grad), count)


@piece
def _four_distances(s: Span, a: Span, anchor: int, first: int, last: int, dim: int) -> Any:
    """Squared distances of row ``anchor`` to rows first .. first + 3; those past ``last`` repeat it."""
    compact()
    w = lanes(a)
    o0, o1 = first * dim, min(first + 1, last) * dim
    o2, o3 = min(first + 2, last) * dim, min(first + 3, last) * dim
    t0, t1, t2, t3 = fill(a, 0.0), fill(a, 0.0), fill(a, 0.0), fill(a, 0.0)
    for c in range(0, dim, w):
        n = min(dim - c, w)
        x = load(a, anchor * dim + c, n)
        d0, d1 = sub(load(a, o0 + c, n), x), sub(load(a, o1 + c, n), x)
        d2, d3 = sub(load(a, o2 + c, n), x), sub(load(a, o3 + c, n), x)
        t0, t1, t2, t3 = fma(d0, d0, t0), fma(d1, d1, t1), fma(d2, d2, t2), fma(d3, d3, t3)
    store(s, 0, t0, w)
    store(s, w, t1, w)
    store(s, 2 * w, t2, w)
    store(s, 3 * w, t3, w)
    s0, s1, s2, s3 = get(s, 0), get(s, w), get(s, 2 * w), get(s, 3 * w)
    for i in range(1, w):
        s0, s1 = s0 + get(s, i), s1 + get(s, w + i)
        s2, s3 = s2 + get(s, 2 * w + i), s3 + get(s, 3 * w + i)
    return s0, s1, s2, s3


@kernel
def mine(pointer: Pointer, chunk: int) -> None:
    """Hardest positive and negative of the anchors ``starts[chunk] ..``: squares (N, 2) and indices (N, 2) or -1.

    A NaN distance is the hardest, and stays.
    """
    squares, pairs, features, labels, starts, dim = arguments(pointer, "DLFLLi")
    memory = np.empty(room(features, 4 * lanes(features)), np.uint8)
    s = area(features, memory)
    for a in range(get(starts, chunk), get(starts, chunk + 1)):
        far, near, positive, negative = 0.0, 0.0, -1, -1
        four = _four_distances(s, features, a, ZERO, labels.size - 1, dim)
        for j in range(labels.size):
            if j % 4 == 0 and j:
                four = _four_distances(s, features, a, j, labels.size - 1, dim)
            if j == a:
                continue
            square = np.float64(four[j % 4])
            nan = square != square
            if get(labels, j) == get(labels, a):
                if positive < 0 or square > far or nan:
                    far, positive = square, j
            elif negative < 0 or square < near or nan:
                near, negative = square, j
        put(squares, 2 * a, far)
        put(squares, 2 * a + 1, near)
        put(pairs, 2 * a, positive)
        put(pairs, 2 * a + 1, negative)
    keep(memory)


@kernel
def triplet_backward(pointer: Pointer, chunk: int) -> None:
    """Adds to the gradient by the columns ``starts[chunk] ..``; slopes (N, 2) are signed."""
    grads, features, slopes, pairs, starts, dim = arguments(pointer, "FFFLLi")
    for n in range(pairs.size):
        if get(slopes, n) == 0 or get(pairs, n) < 0:
            continue
        slope, back = fill(features, get(slopes, n)), fill(features, -get(slopes, n))
        for c in range(get(starts, chunk), get(starts, chunk + 1), lanes(features)):
            count = min(get(starts, chunk + 1) - c, lanes(features))
            anchor, other = n // 2 * dim + c, get(pairs, n) * dim + c
            diff = sub(load(features, anchor, count), load(features, other, count))
            store(grads, anchor, fma(slope, diff, load(grads, anchor, count)), count)
            store(grads, other, fma(back, diff, load(grads, other, count)), count)


@inline
def _factor(targets: Span, at: int, weight: Span, k: int, label: int, smoothing: float, classes: int) -> Any:
    """What the log-probability of class k is multiplied by; ``label`` -1 where there are soft targets."""
    target = np.float64(get(targets, at)) if label < 0 else (1.0 if k == label else 0.0)
    weighted = target * (1 - smoothing) + smoothing / classes
    return weighted * np.float64(get(weight, k)) if weight.size else weighted


@kernel
def entropy(pointer: Pointer, chunk: int) -> None:
    """``parts[chunk]``: loss of the rows ``starts[chunk] ..`` times the total; and their gradient, or none.

    ``weight`` (K,) or none; ``settings``: smoothing and the total; targets (N, K) where there are no labels.
    """
    parts, grads, logits, targets, weight, settings, labels, starts, classes = arguments(pointer, "DFFFFDLLi")
    smoothing, total, loss = get(settings, 0), get(settings, 1), 0.0
    hard = labels.size > 0 and smoothing == 0
    for n in range(get(starts, chunk), get(starts, chunk + 1)):
        row, label = n * classes, get(labels, n) if labels.size else -1
        largest, scale, factors = np.float64(get(logits, row)), 0.0, 0.0
        for k in range(1, classes):
            largest = get(logits, row + k) if get(logits, row + k) > largest else largest
        for k in range(classes):
            scale += math.exp(get(logits, row + k) - largest)
        log_sum = largest + math.log(scale)
        for k in range(classes):
            factor = _factor(targets, row + k, weight, k, label, smoothing, classes)
            if not hard or k == label:  # 0 · inf: classes without a factor do not take part
                loss -= factor * (get(logits, row + k) - log_sum)
            factors += factor
        if grads.size:
            for k in range(classes):
                factor = _factor(targets, row + k, weight, k, label, smoothing, classes)
                share = math.exp(get(logits, row + k) - largest) / scale
                put(grads, row + k, (share * factors - factor) / total)
    put(parts, chunk, loss)
