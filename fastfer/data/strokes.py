# SPDX-License-Identifier: Apache-2.0
"""Batched drawing of faces with signed distances, in numpy float32.

Every canvas of a batch has its own pose; shapes are given in face coordinates (x right, y down, face about 1 high from
centre to chin) and may differ per face: a parameter is a float or an array (N, 1, 1). Only + - * /, sqrt, minimum and
maximum are used, each rounded as IEEE 754 says, so the pixels are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32; numpy's stubs would make float32 times a Python float a float64
Value = Array | float


def tangent_half_angle(t: Array) -> tuple[Array, Array]:
    """(cos a, sin a) for t = tan(a/2), without libm, whose last bits differ between machines."""
    square = t * t
    return (1 - square) / (1 + square), 2 * t / (1 + square)


class Canvas:
    """N grey images of side x side, painted over with shapes. Tones run from 0 (black) to 1 (white).

    centre_x, centre_y, scale in pixels; half_tan = tan(angle / 2), clockwise; background (N, 1, 1) or (N, side, side).
    x, y (N, side, side) are the face coordinates of each pixel's centre.
    """

    def __init__(
        self, side: int, centre_x: Array, centre_y: Array, scale: Array, half_tan: Array, background: Array
    ) -> None:
        grid = np.arange(side, dtype=np.float32) + np.float32(0.5)
        dx, dy = grid[None, None, :] - centre_x, grid[None, :, None] - centre_y
        cos, sin = tangent_half_angle(half_tan)
        self.x: Array = (dx * cos + dy * sin) / scale
        self.y: Array = (dy * cos - dx * sin) / scale
        self.scale = scale
        self.image: Array = np.broadcast_to(background, self.x.shape).astype(np.float32)

    def fill(self, distance: Array, tone: Value, opacity: Value = 1.0) -> None:
        """Paint where ``distance`` (signed, face units, negative inside) is below 0, with a one-pixel soft edge."""
        cover = np.float32(0.5) - distance * self.scale
        np.clip(cover, 0, 1, out=cover)
        cover *= opacity
        self.image += cover * (tone - self.image)

    def ellipse(self, x: Array, cx: Value, cy: Value, rx: Value, ry: Value) -> Array:
        """Distance to an ellipse, first order: exact on the outline and along the axes of a circle."""
        px, py = (x - cx) / rx, (self.y - cy) / ry
        norm = np.sqrt(px * px + py * py)
        distance: Array = (norm - 1) * np.minimum(rx, ry)
        return distance

    def parabola(self, x: Array, x0: Value, y0: Value, x1: Value, y1: Value, bulge: Value) -> Array:
        """Distance to the arc from (x0, y0) to (x1, y1), x0 < x1, that passes ``bulge`` below the chord's middle."""
        length = x1 - x0
        t = (np.clip(x, x0, x1) - x0) / length
        height = y0 + t * (y1 - y0) + 4 * bulge * t * (1 - t)
        slope = (y1 - y0 + 4 * bulge * (1 - 2 * t)) / length
        dy = self.y - height
        dx = x - (x0 + t * length)
        distance: Array = np.sqrt(dx * dx + dy * dy / (1 + slope * slope))
        return distance

    def lens(self, x: Array, half_width: Value, corner: Value, top: Value, bottom: Value) -> Array:
        """Distance to the opening between two parabolas that meet at (+-half_width, corner).

        ``top`` and ``bottom`` are their heights y at x = 0. Crossed curves (top below bottom) enclose nothing.
        """
        t = np.minimum(x * x / (half_width * half_width), 1)
        upper, lower = top + (corner - top) * t, bottom + (corner - bottom) * t
        inside = np.maximum(upper - self.y, self.y - lower)
        return np.maximum(inside, np.abs(x) - half_width)
