# SPDX-License-Identifier: Apache-2.0
"""Faces in whole pictures: a detector's interface, OpenCV's YuNet behind it, and the crop that networks are shown."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastfer.data.split import DataError

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
        return self.cut(picture, max(faces, key=lambda face: face.box[2] * face.box[3]))

    def cut(self, picture: Picture, face: Face) -> Picture:
        """The square around ``face`` at the picture's own scale, (S, S) or (S, S, 3)."""
        left, top, width, height = face.box
        side = max(1, math.floor(max(width, height) * (1 + 2 * self.margin) + 0.5))
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
    rows = np.clip(np.arange(top, top + side), 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, picture.shape[1] - 1)
    return picture[rows][:, columns]


class YuNet:
    """OpenCV's detector (Wu et al. 2023) from its ONNX file; larger pictures are shrunk to ``longest`` pixels a side.

    OpenCV 5 needs the file of 2026may, whose input size is free; those of 2023mar are for OpenCV 4. An instance keeps
    its last input size, so each thread needs its own. Raises FileNotFoundError, ImportError naming the extra to
    install, or ValueError for a file that OpenCV cannot use.
    """

    def __init__(self, path: str | Path, score: float = 0.7, longest: int = 640) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no face detection model at {path}")
        if not 0 <= score <= 1 or longest < 32:
            raise ValueError(f"score and longest: expected 0 to 1 and 32 or more, got {score} and {longest}")
        self._cv2 = _opencv()
        self._path, self._longest = path, longest
        try:
            self._detector = self._cv2.FaceDetectorYN.create(str(path), "", (longest, longest), score)
        except self._cv2.error as error:
            raise self._unusable(error) from None

    def __call__(self, picture: Picture) -> list[Face]:
        """Faces of an RGB picture (H, W, 3) uint8, best score first."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"picture: expected uint8 of shape (H, W, 3), got {picture.dtype} {picture.shape}")
        cv2, (height, width) = self._cv2, picture.shape[:2]
        shrink = min(1.0, self._longest / max(height, width))
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        bgr = np.ascontiguousarray(picture[..., ::-1])
        if shrink < 1:
            bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
        self._detector.setInputSize(size)
        try:
            rows = self._detector.detect(bgr)[1]
        except cv2.error as error:
            raise self._unusable(error) from None
        scales = np.tile([width / size[0], height / size[1]], 7)
        found = [] if rows is None else [(row[:14] * scales, float(row[14])) for row in np.asarray(rows, np.float64)]
        found.sort(key=lambda item: -item[1])
        return [
            Face(tuple(place[:4].tolist()), score, tuple(map(tuple, place[4:].reshape(5, 2).tolist())))
            for place, score in found
        ]

    def _unusable(self, error: Exception) -> ValueError:
        return ValueError(
            f"{self._path}: OpenCV {self._cv2.__version__} cannot use it as a YuNet model ({str(error).strip()}); "
            "OpenCV 5 needs face_detection_yunet_2026may.onnx, OpenCV 4 takes that of 2023mar as well"
        )


def _opencv() -> Any:
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise ImportError(f"YuNet needs OpenCV: pip install 'fastfer[video]' ({error})") from error
    if not hasattr(cv2, "FaceDetectorYN"):
        raise ImportError(f"YuNet needs OpenCV 4.5.4 or later, got {cv2.__version__}: pip install 'fastfer[video]'")
    return cv2
