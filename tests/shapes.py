# SPDX-License-Identifier: Apache-2.0
"""Sizes that break kernels, and layers of the real networks."""

from __future__ import annotations

from typing import NamedTuple

LANES = (2, 4, 8, 16)
"""Elements of a vector: float64 on SSE2 and NEON ... float32 on AVX-512."""


def around_vectors(most: int = 70) -> list[int]:
    """1, and each multiple by one, two and four of a vector's elements with its neighbours, up to ``most``."""
    sizes = {1} | {lanes * times + step for lanes in LANES for times in (1, 2, 4) for step in (-1, 0, 1)}
    return sorted(size for size in sizes if size <= most)


class Layer(NamedTuple):
    """A separable layer: x (n, c, h, w), depthwise ``kernel`` with ``stride`` and padding, c -> o."""

    n: int
    c: int
    h: int
    w: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, left, bottom, right
    o: int = 8


LAYERS = (
    Layer(2, 17, 9, 7, o=5),
    Layer(1, 3, 8, 11, stride=(2, 2), padding=(0, 1, 2, 0), o=33),
    Layer(2, 33, 6, 19, (5, 5), padding=(2, 2, 2, 2), o=16),
    Layer(1, 16, 13, 9, (5, 5), (2, 2), (3, 1, 0, 2), o=17),
    Layer(3, 5, 8, 12, (4, 4), (4, 4), o=9),
    Layer(1, 31, 4, 6, (2, 2), (2, 2), (0, 0, 0, 0), o=12),
    Layer(1, 7, 9, 8, (7, 7), padding=(3, 3, 3, 3), o=7),
    Layer(2, 1, 5, 6, (3, 5), (2, 1), (1, 4, 0, 2), o=1),
    Layer(2, 6, 7, 5, (6, 6), (1, 2), (2, 3, 3, 2), o=3),
    Layer(1, 8, 1, 1, (1, 1), padding=(0, 0, 0, 0), o=15),
    Layer(4, 9, 2, 2, padding=(5, 4, 6, 3), o=31),
)
"""Every kernel size from 1 to 7, strides 1, 2, 4 and unequal ones, four unequal pads, channels around vectors."""

EMPTY = (Layer(0, 4, 5, 5), Layer(0, 17, 8, 6, (5, 5), (2, 2), (2, 2, 2, 2)), Layer(0, 4, 0, 0, padding=(2, 2, 2, 2)))

REAL = (
    Layer(2, 16, 24, 24, o=32),  # a block of FGW-FER on 48×48 faces
    Layer(1, 64, 14, 14, stride=(2, 2), o=128),
    Layer(1, 240, 14, 14, (5, 5), padding=(2, 2, 2, 2), o=40),
    Layer(1, 256, 14, 14, (4, 4), (4, 4), o=96),  # the patch extraction of a mobile backbone's head
)
