# SPDX-License-Identifier: Apache-2.0
"""Contact sheets of faces with heat maps over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastfer.evaluate.fonts import shown
from fastfer.explain.choose import Example, Row

Pixels = NDArray[np.uint8]

_SIDE = 96
_GAP = 6
_CAPTION = 16
_LABEL = 104
_HEADER = 64
_OPACITY = (0.12, 0.62)
"""Of the coldest and of the hottest place."""
_COLOURS, _HOTTEST = "turbo", 0.93  # its dark end hides the face


def combined(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """One map (N, H, W) in 0..1 of several: each stretched to 0..1 by image and resized to ``size``, then the mean."""
    return stretched(torch.stack([resized(stretched(each), size) for each in maps]).mean(0))


def stretched(maps: Tensor) -> Tensor:
    """(N, h, w) with the least value of each image at 0 and the largest at 1; 0 where all are equal."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, (N, h, w) -> (N, *size)."""
    return F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def overlay(face: Pixels, heat: NDArray[np.float32]) -> Image.Image:
    """The face, (H, W) or (3, H, W), under a map (h, w) in 0..1: the hotter, the more of the map's colour."""
    picture = np.asarray(_face(face), np.float32)
    scaled = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
    scaled = np.clip(scaled, 0, 1)
    colour = np.asarray(colormaps[_COLOURS](scaled * _HOTTEST)[..., :3], np.float32) * 255
    cold, hot = _OPACITY
    alpha = (cold + (hot - cold) * scaled)[..., None]
    return Image.fromarray((picture * (1 - alpha) + colour * alpha).round().astype(np.uint8))


def _face(face: Pixels) -> Image.Image:
    planes = face if face.ndim == 2 else (face[0] if len(face) == 1 else face.transpose(1, 2, 0))
    return Image.fromarray(np.ascontiguousarray(planes)).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


class _Canvas:
    """Cells of face over map over caption, in rows with a label each."""

    def __init__(
        self, columns: int, rows: int, stacked: int, breaks: Sequence[int] = (), font: str | None = None
    ) -> None:
        self._breaks = tuple(breaks)
        self._cell = (_SIDE + _GAP, stacked * _SIDE + _CAPTION + 2 * _GAP)
        width = self.left(columns) + _GAP
        self.image = Image.new("RGB", (width, _HEADER + rows * self._cell[1]), "white")
        self.pen = ImageDraw.Draw(self.image)
        self.font, self.small = (
            ImageFont.load_default(size=size) if font is None else ImageFont.truetype(font, size) for size in (15, 12)
        )

    def left(self, column: int) -> int:
        """Where a column starts; there is more room before each break."""
        return _LABEL + column * self._cell[0] + sum(3 * _GAP for b in self._breaks if column >= b)

    def top(self, row: int) -> int:
        return _HEADER + row * self._cell[1]

    def title(self, text: str) -> None:
        self.pen.text((8, 5), text, fill="black", font=self.font)

    def header(self, column: int, text: str, line: int) -> None:
        """Over a column, in line 0 or 1."""
        self.pen.text((self.left(column), 28 + 16 * line), text, fill="black", font=self.small)

    def label(self, row: int, lines: Sequence[str]) -> None:
        for at, line in enumerate(lines):
            place = (8, self.top(row) + self._cell[1] // 2 - _CAPTION + (18 * at - 9 * len(lines)))
            self.pen.text(place, line, fill="black", font=self.font if at == 0 else self.small)

    def cell(self, row: int, column: int, pictures: Sequence[Image.Image], caption: str, colour: str = "black") -> None:
        x, y = self.left(column), self.top(row)
        for at, picture in enumerate(pictures):
            self.image.paste(picture, (x, y + at * _SIDE))
        self.pen.text(
            (x + _SIDE // 2, y + len(pictures) * _SIDE + 2), caption, fill=colour, font=self.small, anchor="ma"
        )


def example_sheet(
    title: str,
    rows: Sequence[Row],
    names: Sequence[str],
    faces: Pixels,
    heat: Mapping[int, NDArray[np.float32]],
) -> Image.Image:
    """A row per class: recognised images on the left, on the right the surest mistake for each class that it has.

    faces (N, H, W) or (N, C, H, W); ``heat`` has the map (h, w), in 0..1, of each image shown, by index.
    """
    labels = shown(names)
    names, title = labels.names, f"{title}; {labels.note}" if labels.note else title
    hits = max(1, *(len(row.right) for row in rows))
    taken_for = [i for i in range(len(names)) if any(row.wrong[i] is not None for row in rows)]
    canvas = _Canvas(hits + len(taken_for), len(rows), 2, breaks=(hits,), font=labels.path)
    canvas.title(title)
    canvas.header(0, "right, drawn by lot", 0)
    if taken_for:
        canvas.header(hits, "mistakes, the surest of each kind", 0)
    for place, other in enumerate(taken_for, start=hits):
        canvas.header(place, f"as {names[other]}", 1)
    for at, (row, name) in enumerate(zip(rows, names, strict=True)):
        canvas.label(at, [name] if row.right else [name, "none recognised"])
        blanks = [None] * (hits - len(row.right))
        for place, example in enumerate((*row.right, *blanks, *(row.wrong[other] for other in taken_for))):
            if example is not None:
                _draw(canvas, at, place, example, faces, heat[example.index])
    return canvas.image


def _caption(example: Example, heat: NDArray[np.float32]) -> str:
    """A map without a positive part is no picture of anything."""
    return f"{example.confidence:.0%}" + ("" if heat.any() else ", no map")


def _draw(canvas: _Canvas, row: int, place: int, example: Example, faces: Pixels, heat: NDArray[np.float32]) -> None:
    face = faces[example.index]
    colour = "darkgreen" if example.right else "firebrick"
    canvas.cell(row, place, [_face(face), overlay(face, heat)], _caption(example, heat), colour)


def layer_sheet(
    title: str,
    rows: Sequence[Row],
    names: Sequence[str],
    faces: Pixels,
    layers: Mapping[str, Mapping[int, NDArray[np.float32]]],
) -> Image.Image:
    """A row per class, its surest recognised image shown: the face, then the map of each layer by itself."""
    labels = shown(names)
    names, title = labels.names, f"{title}; {labels.note}" if labels.note else title
    canvas = _Canvas(1 + len(layers), len(rows), 1, breaks=(1,), font=labels.path)
    canvas.title(title)
    for at, name in enumerate(layers, start=1):
        canvas.header(at, name, 1)
    for at, (row, name) in enumerate(zip(rows, names, strict=True)):
        canvas.label(at, [name] if row.right else [name, "none recognised"])
        if row.right:
            example = row.right[0]
            canvas.cell(at, 0, [_face(faces[example.index])], f"{example.confidence:.0%}", "darkgreen")
            for place, heat in enumerate(layers.values(), start=1):
                canvas.cell(at, place, [overlay(faces[example.index], heat[example.index])], "")
    return canvas.image
