# SPDX-License-Identifier: Apache-2.0
"""YuNet (Wu et al. 2023) around its network: pixels to input, outputs to faces, in numpy.

The network gives twelve maps: for each stride 8, 16 and 32 class and object scores, boxes and points, one row a cell of
the grid. A cell (row, column) says of a face, in units of its stride: centre minus the cell, logarithms of width and
height; points minus the cell. The score is the root of class times object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastfer.faces.face import Face, Picture

STRIDES = (8, 16, 32)
KINDS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
OUTPUTS = tuple(f"{kind}_{stride}" for kind in KINDS for stride in STRIDES)
"""Names of the outputs, in the file's order."""

_Array = NDArray[np.float32]
Maps = Mapping[str, _Array]


def input_size(height: int, width: int) -> tuple[int, int]:
    """(H, W) of the network's input: the picture's, up to multiples of 32."""
    return height + -height % 32, width + -width % 32


def size_of(picture: Picture | Image.Image) -> tuple[int, int]:
    """Width and height."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def to_input(picture: Picture | Image.Image, out: NDArray[np.uint8]) -> None:
    """The picture (H, W, 3) or (H, W) as planes blue, green, red into ``out`` (3, H', W'), black beyond it.

    ``picture`` may be a Pillow image of mode RGB or L, of which Pillow takes the planes: twice as fast as numpy.
    """
    width, height = size_of(picture)
    if not isinstance(picture, Image.Image):
        out[:, :height, :width] = picture[..., ::-1].transpose(2, 0, 1) if picture.ndim == 3 else picture
    elif picture.mode == "L":
        out[:, :height, :width] = np.asarray(picture)
    else:
        for plane, name in zip(out, "BGR", strict=True):
            plane[:height, :width] = np.frombuffer(picture.tobytes("raw", name), np.uint8).reshape(height, width)
    out[:, height:], out[:, :height, width:] = 0, 0


def faces(maps: Maps, size: tuple[int, int], score: float, overlap: float, most: int = 5000) -> list[Face]:
    """Faces of one picture, best first, in pixels of the input (H, W) = ``size``.

    ``maps``: by the names OUTPUTS, each (cells, n). ``score``: least one; ``overlap``: intersection over union above
    which the weaker of two boxes is left out; ``most`` candidates are looked at.
    """
    found = [rows for stride in STRIDES if len(rows := _candidates(maps, size[1] // stride, stride, score))]
    if not found:
        return []
    rows = np.concatenate(found)
    rows = rows[np.argsort(-rows[:, 14], kind="stable")[:most]]
    return [_face(row) for row in rows[suppressed(rows[:, :4], overlap)]]


def _candidates(maps: Maps, columns: int, stride: int, score: float) -> _Array:
    """(candidates, 15): box, points and score of the cells that reach ``score``."""
    classes, objects = maps[f"cls_{stride}"].reshape(-1), maps[f"obj_{stride}"].reshape(-1)
    # Both have to reach the product, as neither counts for more than 1: few of thousands of cells are left.
    at = np.flatnonzero(np.minimum(classes, objects) >= score * score)
    both = np.clip(classes[at], 0, 1) * np.clip(objects[at], 0, 1)
    at, both = at[(kept := both >= score * score)], both[kept]
    found = np.empty((len(at), 15), np.float32)
    if not len(at):
        return found
    cell = np.stack([at % columns, at // columns], 1).astype(np.float32)
    boxes, points = maps[f"bbox_{stride}"].reshape(-1, 4)[at], maps[f"kps_{stride}"].reshape(-1, 10)[at]
    found[:, 2:4] = np.exp(boxes[:, 2:]) * stride
    found[:, :2] = (cell + boxes[:, :2]) * stride - found[:, 2:4] / 2
    found[:, 4:14] = (points + np.tile(cell, 5)) * stride
    found[:, 14] = np.sqrt(both)
    return found


def suppressed(boxes: NDArray[Any], overlap: float) -> list[int]:
    """Which of the boxes (N, 4), best first, stay: those that no better one that stays covers by more than that."""
    left, top = boxes[:, 0], boxes[:, 1]
    right, bottom = left + boxes[:, 2], top + boxes[:, 3]
    areas = boxes[:, 2] * boxes[:, 3]
    rest, kept = np.arange(len(boxes)), []
    while len(rest):
        first, rest = int(rest[0]), rest[1:]
        kept.append(first)
        width = np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest])
        height = np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        rest = rest[common <= overlap * (areas[first] + areas[rest] - common)]
    return kept


def _face(row: _Array) -> Face:
    left, top, width, height, *places, score = map(float, row)
    points = tuple(zip(places[::2], places[1::2], strict=True))
    return Face((left, top, width, height), min(score, 1.0), points)
