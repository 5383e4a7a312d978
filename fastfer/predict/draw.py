# SPDX-License-Identifier: Apache-2.0
"""Faces drawn into pictures: boxes, labels and bars of probabilities; videos of such frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastfer._files import reserved_name
from fastfer.faces.face import Picture
from fastfer.predict.results import RecognizedFace
from fastfer.predict.source import SourceError, opencv

COLOURS = (
    (86, 180, 233), (240, 228, 66), (230, 159, 0), (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167),
    (153, 153, 153), (120, 94, 240), (170, 220, 120),
)  # fmt: skip
"""One a class, told apart with any colour vision (Okabe and Ito); more classes begin again."""


def colour(face: RecognizedFace) -> tuple[int, int, int]:
    """That of the face's class."""
    return COLOURS[face.classes.index(face.label) % len(COLOURS)]


def annotated(picture: Picture, faces: Sequence[RecognizedFace], bars: bool = True) -> Image.Image:
    """The picture (H, W, 3) or (H, W) in colour, each face with box, label and score, and bars where they fit."""
    image = Image.fromarray(picture).convert("RGB")
    pen = ImageDraw.Draw(image)
    for face in faces:
        left, top, width, height = face.box
        line = max(1, round(max(image.size) / 400))
        right, bottom = max(left + width - 1, left), max(top + height - 1, top)
        pen.rectangle((left, top, right, bottom), outline=colour(face), width=line)
        size = int(min(max(width / 7, 10), 40))
        who = "" if face.track is None else f"{face.track} "
        _label(pen, f"{who}{face.label} {face.score:.0%}", left, top, colour(face), size)
        if bars and width >= 60:
            _bars(pen, face, left, bottom + line + 1, width, max(4, int(width / 24)))
    return image


def _label(pen: ImageDraw.ImageDraw, text: str, left: float, top: float, fill: tuple[int, int, int], size: int) -> None:
    """Above the box, or inside of it at the picture's upper border."""
    font = _font(size)
    box = font.getbbox(text)
    height = box[3] + 4
    y = top - height if top >= height else max(top, 0)
    x = max(left, 0)
    pen.rectangle((x, y, x + box[2] + 6, y + height - 1), fill=fill)
    pen.text((x + 3, y + 1), text, fill=(0, 0, 0) if sum(fill) > 330 else (255, 255, 255), font=font)


def _bars(pen: ImageDraw.ImageDraw, face: RecognizedFace, left: float, top: float, width: float, height: int) -> None:
    """One bar a class below the box, as long as it is likely."""
    for index, value in enumerate(face.values):
        y = top + index * (height + 1)
        pen.rectangle((left, y, left + width - 1, y + height - 1), fill=(40, 40, 40))
        pen.rectangle(
            (left, y, left + max(1, (width - 1) * float(value)), y + height - 1), fill=COLOURS[index % len(COLOURS)]
        )


@lru_cache(maxsize=64)
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def save(image: Image.Image, path: Path) -> None:
    """As JPEG, which appears whole or not at all; folders are made. OSError where that is not possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not forced to the disk, as `replace_atomically` does: that takes longer than all else, and they can be made again.
    temporary = reserved_name(path)
    try:
        image.save(temporary, format="JPEG", quality=92)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class VideoWriter:
    """Frames to an MP4 file, which appears under its name when it is closed; a context.

    Raises SourceError where this OpenCV writes no videos, ImportError without OpenCV.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._cv2 = opencv()
        self._path, self._fps = path, fps
        self._writer: Any = None
        self._size: tuple[int, int] | None = None
        self._temporary: Path | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def __call__(self, image: Image.Image) -> None:
        """Append a frame; frames of another size are resized to the first one's."""
        if self._writer is None:
            self._open(image.size)
        if image.size != self._size:
            image = image.resize(self._size or image.size)
        self._writer.write(np.ascontiguousarray(np.asarray(image)[..., ::-1]))

    def _open(self, size: tuple[int, int]) -> None:
        self._size = max(2, size[0] - size[0] % 2), max(2, size[1] - size[1] % 2)  # coders want even sides
        self._path.parent.mkdir(parents=True, exist_ok=True)
        reserved = reserved_name(self._path)
        reserved.unlink()
        self._temporary = reserved.with_suffix(".tmp.mp4")  # the name says the format
        fourcc = self._cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = self._cv2.VideoWriter(str(self._temporary), fourcc, self._fps, self._size)
        if not self._writer.isOpened():
            raise SourceError(f"{self._path}: this OpenCV cannot write MP4 videos")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None or self._temporary is None:
            return
        self._writer.release()
        self._temporary.replace(self._path)
