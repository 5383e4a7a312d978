# SPDX-License-Identifier: Apache-2.0
"""A picture that is decoded no further than it is needed.

JPEG gives a half, a quarter or an eighth of its sides for a fraction of the time, each pixel the mean of those that it
stands for. Detectors shrink pictures anyhow, and of a photograph of 12 million pixels a face has ten times the pixels
that a network takes. All places that are asked for and given are in pixels of the whole picture.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fastfer._resample import seen
from fastfer.data.images import opened, orientation, upright_image
from fastfer.data.manifest import Sample
from fastfer.data.split import DataError
from fastfer.faces.face import Face, FaceCrop, Picture

_REDUCTIONS = (8, 4, 2)
_SCALED = frozenset({"JPEG", "MPO"})
_MIRRORED_X, _MIRRORED_Y = frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
"""Exif orientations after which a picture's left, or its upper border is what was its last column or row."""


def reduction(side: float, least: float) -> int:
    """The largest number that a side can be divided by, of those that JPEG knows, with ``least`` pixels left; or 1."""
    return next((by for by in _REDUCTIONS if side >= by * least), 1)


class Photo:
    """A picture, as far as it is decoded.

    size   width and height of the whole picture, upright
    by     what its sides are divided by as it is decoded now
    view   it as decoded now: uint8 RGB (H, W, 3) or grey (H, W), maybe a view of pixels of four bytes
    """

    def __init__(
        self, picture: Picture | Image.Image | Sample, longest: int | None = None, most: int | None = None
    ) -> None:
        """Decode a file or encoded bytes (a Sample), a JPEG so far that its longer side keeps ``longest`` pixels.

        Raises DataError for a damaged picture, or one of more than ``most`` pixels.
        """
        self.size: tuple[int, int]
        self.view: Picture
        self.by, self._corner = 1, (0, 0)
        self._sample: Sample | None = None
        if isinstance(picture, Sample):
            self._sample = picture
            opened(picture, lambda image: self._read(image, longest, most))
        else:
            self.view = seen(picture) if isinstance(picture, Image.Image) else picture
            self.size = _size(self.view)

    @property
    def bytes(self) -> int:
        """What its pixels take as decoded now."""
        height, width = self.view.shape[:2]
        return int(height * width * (self.view.strides[1] if self.view.ndim == 3 else 1))

    def pixels(self) -> Picture:
        """All of them, decoded where they are not yet: uint8 RGB (H, W, 3) or grey (H, W)."""
        self.refine(1)
        if self.view.ndim == 3 and self.view.strides[1] == 4:  # others than ours expect three bytes
            self.view = np.ascontiguousarray(self.view)
        return self.view

    def refine(self, by: int) -> None:
        """Decode it so far that its sides are divided by no more than ``by``. DataError for a damaged picture."""
        if by < self.by and self._sample is not None:
            opened(self._sample, lambda image: self._read(image, max(image.size) // by, None))

    def placed(self, face: Face) -> Face:
        """A face in pixels of the view as one in those of the whole picture."""
        return face if self.by == 1 else face.moved(self.by, *self._corner)

    def around(self, face: Face, crop: FaceCrop) -> tuple[Picture, Face]:
        """The part of the view that ``crop`` shows of a face, and the face in it: the same crop as of all the view."""
        if self.by != 1:
            face = face.moved(1 / self.by, *(-value / self.by for value in self._corner))
        width, height = _size(self.view)
        x, y = face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2
        reach = 0.75 * crop.side(face) + 4  # a turned square reaches sqrt(1/2) of its side
        left, right = _between(x - reach, x + reach, width)
        top, bottom = _between(y - reach, y + reach, height)
        return self.view[top:bottom, left:right], face.moved(1, -left, -top)

    def _read(self, image: Image.Image, longest: int | None, most: int | None) -> None:
        width, height = image.size
        if most is not None and width * height > most:
            # Known from the header: a file of some kilobytes may decode to gigabytes.
            raise DataError(f"picture: expected at most {most:,} pixels, got {width} x {height}")
        turn = orientation(image)
        by = 1 if longest is None or image.format not in _SCALED else reduction(max(width, height), longest)
        if by > 1:
            image.draft(None, (width // by, height // by))
            if image.size != (-(-width // by), -(-height // by)):
                by = 1
        self.view, self.by = seen(upright_image(image)), by
        self.size = (height, width) if turn >= 5 else (width, height)
        # The last column and row may stand for less than ``by`` pixels; mirrored they are the first ones.
        rest = [side - by * part for side, part in zip(self.size, _size(self.view), strict=True)]
        self._corner = rest[0] if turn in _MIRRORED_X else 0, rest[1] if turn in _MIRRORED_Y else 0


def _size(view: Picture) -> tuple[int, int]:
    """Width and height."""
    return view.shape[1], view.shape[0]


def _between(first: float, last: float, size: int) -> tuple[int, int]:
    """The pixels from ``first`` to ``last`` that are there; at least one, the nearest."""
    start = min(max(math.floor(first), 0), size - 1)
    return start, min(max(math.ceil(last), start + 1), size)
