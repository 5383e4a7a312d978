# SPDX-License-Identifier: Apache-2.0
"""What the tests of `fastfer.predict` share: pictures with drawn faces, and a detector that finds their frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastfer.data import drawn
from fastfer.faces.face import Face

Picture = NDArray[np.uint8]
FRAME = (255, 0, 255)
"""Colour around each face; no grey face has it."""


def drawn_faces(count: int) -> Picture:
    """(N, 48, 48) uint8, one of each class after the other."""
    return drawn.draw_faces(np.arange(count, dtype=np.int64) % 7, 11)


def scene(faces: Picture, places: list[tuple[int, int]], size: tuple[int, int] = (240, 320)) -> Picture:
    """An RGB picture (H, W, 3) with the faces (N, 48, 48) at the places (left, top), in frames of one pixel."""
    picture = np.full((*size, 3), 90, np.uint8)
    for face, (left, top) in zip(faces, places, strict=True):
        picture[top - 1 : top + 49, left - 1 : left + 49] = FRAME
        picture[top : top + 48, left : left + 48] = face[..., None]
    return picture


def framed(picture: Picture) -> list[Face]:
    """The faces of a scene, by the left upper corners of their frames."""
    frame = (picture == np.array(FRAME, np.uint8)).all(2)
    corner = frame[:-1, :-1] & frame[1:, :-1] & frame[:-1, 1:] & ~frame[1:, 1:]
    rows, columns = np.nonzero(corner)
    return [
        Face((float(x) + 1, float(y) + 1, 48.0, 48.0), 0.9, _points(float(x) + 1, float(y) + 1))
        for y, x in zip(rows, columns, strict=True)
    ]


def _points(left: float, top: float) -> tuple[tuple[float, float], ...]:
    return tuple((left + x, top + y) for x, y in ((16, 20), (32, 20), (24, 28), (18, 36), (30, 36)))


def engine_file(weights: Path, out: Path) -> Path:
    """The engine file of a weight file."""
    import fastfer
    from fastfer.engine.trained import trained

    model, known = trained(weights)
    fastfer.compile(model, threads=1, **known).save(out)
    return out
