# SPDX-License-Identifier: Apache-2.0
"""YuNet (Wu et al. 2023) around its network: pixels to input, outputs to faces.

The network gives twelve maps: for each stride 8, 16 and 32 class and object scores, boxes and points, one row a cell of
the grid. What they say of faces stands in ``csrc/pictures/faces.h``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fastfer._resample import to_planes
from fastfer.faces.face import Face, Picture
from fastfer.runtime import native

STRIDES = (8, 16, 32)
KINDS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
OUTPUTS = tuple(f"{kind}_{stride}" for kind in KINDS for stride in STRIDES)
"""Names of the outputs, in the file's order."""

_Array = NDArray[np.float32]
Maps = Mapping[str, _Array]


def input_size(height: int, width: int) -> tuple[int, int]:
    """(H, W) of the network's input: the picture's, up to multiples of 32."""
    return height + -height % 32, width + -width % 32


def to_input(picture: Picture, out: NDArray[np.uint8], size: tuple[int, int] | None = None) -> None:
    """The picture (H, W, 3) or (H, W) as planes blue, green, red into ``out`` (3, H', W'), black beyond it.

    ``size`` (H, W) that it is shrunk to, by default its own.
    """
    to_planes(picture, size or (picture.shape[0], picture.shape[1]), out)


def faces(maps: Maps, size: tuple[int, int], score: float, overlap: float, most: int = 5000) -> list[Face]:
    """Faces of one picture, best first, in pixels of the input (H, W) = ``size``.

    ``maps``: by the names OUTPUTS, each (cells, n). ``score``: least one; ``overlap``: intersection over union above
    which the weaker of two boxes is left out; ``most`` candidates are looked at.
    """
    cells = {stride: (size[0] // stride) * (size[1] // stride) for stride in STRIDES}
    arrays = [
        _whole(f"{kind}_{stride}", maps, cells[stride] * width) for kind, width in KINDS.items() for stride in STRIDES
    ]
    found = native().find_faces([array.ctypes.data for array in arrays], *size, score, overlap, most)
    return [_face(row) for row in np.frombuffer(found, np.float32).reshape(-1, 15)]


def _whole(name: str, maps: Maps, count: int) -> _Array:
    """The map in memory of its own, with as many numbers as its grid asks for."""
    found = np.ascontiguousarray(maps[name], np.float32)
    if found.size != count:
        raise ValueError(f"{name}: expected {count} numbers, got shape {found.shape}")
    return found


def _face(row: _Array) -> Face:
    left, top, width, height, *places, score = map(float, row)
    points = tuple(zip(places[::2], places[1::2], strict=True))
    return Face((left, top, width, height), min(score, 1.0), points)
