# SPDX-License-Identifier: Apache-2.0
"""Faces in whole pictures: what a detector gives, and the crop that networks are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastfer._messages import DataError

Picture = NDArray[np.uint8]
"""RGB (H, W, 3) or grey (H, W)."""


class FaceNotFoundError(DataError):
    """A picture that should show a face, and in which the detector found none."""


@dataclass(frozen=True)
class Face:
    """A detection, in pixels: box (left, top, width, height), score 0..1, and five points (x, y) where known.

    Points: right eye, left eye, nose, right and left corner of the mouth, right and left being the person's.
    """

    box: tuple[float, float, float, float]
    score: float = 1.0
    points: tuple[tuple[float, float], ...] | None = None

    def moved(self, by: float, x: float, y: float) -> Face:
        """In pixels of which there are ``by`` times as many a side, and whose picture begins at minus (x, y)."""
        left, top, width, height = self.box
        points = None if self.points is None else tuple((px * by + x, py * by + y) for px, py in self.points)
        return Face((left * by + x, top * by + y, width * by, height * by), self.score, points)


class FaceDetector(Protocol):
    """Anything that finds faces."""

    def __call__(self, picture: Picture) -> Sequence[Face]:
        """Faces of an RGB picture (H, W, 3), in any order."""
        ...


@dataclass(frozen=True)
class FaceCrop:
    """Which square around a face a network is shown. Part of the preprocessing, so weight files carry it.

    Args:
        margin: added on each side, as a fraction of the longer side of the box
        align: turn the picture so that the eyes are level
        missing: where no face is found, raise FaceNotFoundError ("error") or keep the whole picture ("whole")
    """

    margin: float = 0.1
    align: bool = False
    missing: Literal["error", "whole"] = "error"

    def __post_init__(self) -> None:
        if isinstance(self.margin, bool) or not isinstance(self.margin, int | float):
            raise TypeError(f"crop.margin: expected a number, got {type(self.margin).__name__}")
        if not -0.4 <= self.margin <= 4:
            raise ValueError(f"crop.margin: expected -0.4 to 4, got {self.margin}")
        if not isinstance(self.align, bool):
            raise TypeError(f"crop.align: expected a bool, got {type(self.align).__name__}")
        if self.missing not in ("error", "whole"):
            raise ValueError(f"crop.missing: expected error or whole, got {self.missing!r}")

    def __call__(self, picture: Picture, detector: FaceDetector) -> Picture:
        """The largest face of ``picture``; pixels outside the picture repeat its border."""
        colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
        faces = detector(colour)
        if not faces:
            if self.missing == "whole":
                return picture
            raise FaceNotFoundError(f"no face found in a picture of {picture.shape[1]}×{picture.shape[0]} pixels")
        # A view would keep the picture.
        return self.cut(picture, max(faces, key=lambda face: face.box[2] * face.box[3])).copy()

    def side(self, face: Face) -> int:
        """Of the square around ``face``, in pixels."""
        return max(1, math.floor(max(face.box[2:]) * (1 + 2 * self.margin) + 0.5))

    def cut(self, picture: Picture, face: Face) -> Picture:
        """The square around ``face`` at the picture's own scale, (S, S) or (S, S, 3); a view of it where it can be."""
        left, top, width, height = face.box
        side = self.side(face)
        x, y = left + width / 2, top + height / 2
        angle = self._tilt(face)
        if angle == 0:
            return _window(picture, math.floor(x - side / 2 + 0.5), math.floor(y - side / 2 + 0.5), side)
        # Of a larger window, whose border is already repeated, Pillow turns the middle.
        around = math.ceil(side * math.sqrt(0.5)) + 2
        corner = math.floor(x) - around, math.floor(y) - around
        larger = Image.fromarray(_window(picture, *corner, 2 * around))
        cos, sin, half = math.cos(angle), math.sin(angle), side / 2
        shift = x - corner[0] - (cos - sin) * half, y - corner[1] - (sin + cos) * half
        turned = larger.transform(
            (side, side),
            Image.Transform.AFFINE,
            (cos, -sin, shift[0], sin, cos, shift[1]),
            Image.Resampling.BILINEAR,
        )
        return np.asarray(turned)

    def _tilt(self, face: Face) -> float:
        """Angle of the line through the eyes, in radians; 0 where it is not asked for."""
        if not self.align:
            return 0.0
        if face.points is None:
            raise ValueError("crop.align: expected a detector that gives the eyes, got a face without points")
        (right_x, right_y), (left_x, left_y) = face.points[:2]
        return math.atan2(left_y - right_y, left_x - right_x)


def _window(picture: Picture, left: int, top: int, side: int) -> Picture:
    """A square of the picture, whose border is repeated beyond it."""
    if min(left, top) >= 0 and left + side <= picture.shape[1] and top + side <= picture.shape[0]:
        return picture[top : top + side, left : left + side]
    rows = np.clip(np.arange(top, top + side), 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, picture.shape[1] - 1)
    return picture[rows][:, columns]
