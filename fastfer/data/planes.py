# SPDX-License-Identifier: Apache-2.0
"""The steps of `fastfer.data.pixels` for one picture, in numpy: the same bytes, without torch.

A picture is uint8 (H, W) or (H, W, 3), as decoders give it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastfer._resample import resized

Pixels = NDArray[np.uint8]
RESIZE = "bilinear-antialiased"
"""Name of the one resampling, for files: triangle filter, widened when shrinking; along one axis Pillow's BILINEAR."""


def grey(picture: Pixels) -> Pixels:
    """Luma of RGB, ITU-R 601 as in Pillow's "L": (H, W, 3) -> (H, W)."""
    return resized(picture, (picture.shape[0], picture.shape[1]), grey=True)


def equalise(picture: Pixels) -> Pixels:
    """Histogram equalisation of a grey picture, as OpenCV's equalizeHist: (H, W) -> (H, W)."""
    counts = np.bincount(picture.reshape(-1), minlength=256)
    darkest = counts[np.argmax(counts > 0)]
    rest = picture.size - darkest
    if rest <= 0:
        return picture
    scale = np.float32(255) / np.float32(rest)
    below = np.maximum(np.cumsum(counts) - darkest, 0).astype(np.float32)
    table = np.minimum(np.rint(below * scale), 255).astype(np.uint8)
    levels: Pixels = table[picture]
    return levels


def resize(picture: Pixels, size: tuple[int, int], grey: bool = False) -> Pixels:
    """(H, W) or (H, W, 3) -> (*size) or (*size, 3), ``grey`` first where asked; see `fastfer._resample.resized`."""
    return resized(picture, size, grey)
