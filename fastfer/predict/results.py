# SPDX-License-Identifier: Apache-2.0
"""What a recognizer gives: faces of a picture, and pictures of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class RecognizedFace:
    """One face with its expression; places are pixels of the picture that was given, upright.

    box        left, top, width, height; of a whole picture the picture
    points     right eye, left eye, nose, right and left corner of the mouth (the person's right); None where unknown
    detection  the detector's score, 0 to 1; None where no detector ran
    label      the likeliest class
    score      its probability
    classes    names of all classes, in the order of ``values``
    values     probabilities, float32 (K,)
    track      number of the person in a stream, from 1 on; None without tracking
    """

    box: Box
    points: Points | None
    detection: float | None
    label: str
    score: float
    classes: tuple[str, ...]
    values: NDArray[np.float32] = field(repr=False, compare=False)
    track: int | None = None

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability of each class by its name."""
        return {name: float(value) for name, value in zip(self.classes, self.values, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "box": [round(value, 2) for value in self.box],
            "points": None if self.points is None else [[round(x, 2), round(y, 2)] for x, y in self.points],
            "detection": None if self.detection is None else round(self.detection, 4),
            "label": self.label,
            "score": round(self.score, 6),
            "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
            "track": self.track,
        }


@dataclass(frozen=True)
class Result:
    """The faces of one picture, best detection first.

    size    width and height of the picture, upright; None where it could not be read
    source  the file that it came from; None for pixels
    error   what was wrong with the picture; None where nothing was
    """

    faces: tuple[RecognizedFace, ...]
    size: tuple[int, int] | None
    source: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "source": self.source,
            "size": None if self.size is None else list(self.size),
            "faces": [face.to_dict() for face in self.faces],
            "error": self.error,
        }


@dataclass(frozen=True)
class FrameResult(Result):
    """The faces of one frame of a stream.

    index    number of the frame in its source, from 0 on
    time     seconds since the start
    dropped  frames of a live source that were left out before this one, because they came faster than they were done
    picture  the frame, uint8 RGB (H, W, 3) or grey (H, W)
    """

    index: int = 0
    time: float = 0.0
    dropped: int = 0
    picture: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the picture."""
        return {
            "source": self.source,
            "frame": self.index,
            "time": round(self.time, 4),
            "dropped": self.dropped,
            "size": None if self.size is None else list(self.size),
            "faces": [face.to_dict() for face in self.faces],
            "error": self.error,
        }
