# SPDX-License-Identifier: Apache-2.0
"""Drawn faces: schematic 48x48 grey faces of the seven basic expressions, the data set that needs no download.

A face is drawn from the strengths of its facial action units (FACS: Ekman and Friesen 1978; the sets per expression
below are the customary prototypes of EMFACS), then varied in pose, build, line, tone, light and noise.
The same seed gives the same bytes on every machine: raw PCG64 words in, exactly rounded arithmetic throughout.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastfer.data.labels import BASIC_NAMES, class_index
from fastfer.data.split import DataError, Split
from fastfer.data.strokes import Array, Canvas

SIDE = 48
TRAIN_IMAGES, VALIDATION_IMAGES = 5600, 1400
UNITS: tuple[int, ...] = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 16, 17, 20, 23, 25, 26)
EXPRESSION_UNITS: dict[str, dict[int, float]] = {
    "neutral": {},
    "happiness": {6: 0.9, 12: 1.0, 25: 0.6},
    "surprise": {1: 1.0, 2: 1.0, 5: 0.8, 25: 0.7, 26: 1.0},
    "sadness": {1: 1.0, 4: 0.6, 15: 1.0, 17: 0.5},
    "anger": {4: 1.0, 5: 0.4, 7: 0.8, 23: 1.0},
    "disgust": {4: 0.4, 7: 0.4, 9: 1.0, 10: 0.8, 15: 0.6, 16: 0.5},
    "fear": {1: 0.9, 2: 0.6, 4: 0.6, 5: 1.0, 20: 1.0, 25: 0.6, 26: 0.3},
}
"""Expression -> {facial action unit: usual strength, 0 to 1}."""

_CHUNK = 64  # faces drawn at a time: a few (64, 48, 48) float32 temporaries stay in the L2 cache
_STREAMS = {"train": 0, "validation": 1}


class _Draws:
    """Uniform numbers, one row of raw PCG64 words per face: word k of a face does not depend on the other faces."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._words = words
        self._used = 0

    def uniform(self, low: float, high: float) -> Array:
        """(N, 1, 1) float32 in [low, high)."""
        unit = (self._words[:, self._used] >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        self._used += 1
        return (np.float32(low) + np.float32(high - low) * unit)[:, None, None]


def draw_faces(labels: NDArray[np.int64], seed: int, stream: int = 0) -> NDArray[np.uint8]:
    """Faces (N, 48, 48) uint8 of the classes ``labels`` (N,), indices into BASIC_NAMES.

    (seed, stream) name the sequence; face i depends on them, on i and on its label only.
    """
    parameters, noise = (np.random.PCG64(np.random.SeedSequence([seed, stream, part])) for part in range(2))
    faces = np.empty((len(labels), SIDE, SIDE), np.uint8)
    for start in range(0, len(labels), _CHUNK):
        chunk = labels[start : start + _CHUNK]
        words = parameters.random_raw(len(chunk) * 64).reshape(len(chunk), 64)
        grain = noise.random_raw(len(chunk) * SIDE * SIDE // 2).astype("<u8").view(np.uint8)
        # The sum of four bytes is near enough to a Gaussian; its standard deviation is 147.8.
        grain = grain.reshape(len(chunk), SIDE, SIDE, 4).astype(np.float32)
        gauss = (grain[..., 0] + grain[..., 1] + grain[..., 2] + grain[..., 3] - 510) / np.float32(147.8)
        faces[start : start + _CHUNK] = _draw(chunk, _Draws(words), gauss)
    return faces


def load(train: int = TRAIN_IMAGES, validation: int = VALIDATION_IMAGES, seed: int = 0) -> dict[str, Split]:
    """{"train": Split, "validation": Split}, classes balanced, drawn from disjoint streams of ``seed``."""
    splits = {}
    for name, count in (("train", train), ("validation", validation)):
        if count < len(BASIC_NAMES):
            raise DataError(f"{name}: expected at least {len(BASIC_NAMES)} faces, one per class, got {count}")
        labels = np.arange(count, dtype=np.int64) % len(BASIC_NAMES)
        splits[name] = Split(draw_faces(labels, seed, _STREAMS[name]), labels, BASIC_NAMES)
    return splits


def _action_units(labels: NDArray[np.int64], draws: _Draws) -> dict[int, Array]:
    """Strength (N, 1, 1) of each unit: the prototype's, weakened or strengthened, plus a twitch of the others."""
    usual = np.zeros((len(BASIC_NAMES), len(UNITS)), np.float32)
    for name, strengths in EXPRESSION_UNITS.items():
        for unit, strength in strengths.items():
            usual[class_index(name), UNITS.index(unit)] = strength
    vigour = draws.uniform(0.75, 1.1)
    units = {}
    for at, unit in enumerate(UNITS):
        units[unit] = usual[labels, at][:, None, None] * vigour * draws.uniform(0.7, 1.15) + draws.uniform(0, 0.08)
    return units


def _draw(labels: NDArray[np.int64], draws: _Draws, gauss: Array) -> NDArray[np.uint8]:
    """One chunk: background, head, features, then light, contrast and noise."""
    au = _action_units(labels, draws)
    canvas = Canvas(
        SIDE,
        centre_x=draws.uniform(21.5, 26.5),
        centre_y=draws.uniform(22.5, 26.5),
        scale=draws.uniform(18.5, 22.5),
        half_tan=draws.uniform(-0.11, 0.11),  # about 12.5 degrees either way
        background=draws.uniform(0.05, 0.95),
    )
    skin, hair, ink = draws.uniform(0.5, 0.9), draws.uniform(0.05, 0.45), draws.uniform(0.0, 0.18)
    line = draws.uniform(0.024, 0.044)  # half the width of the main strokes
    yaw = draws.uniform(-0.12, 0.12)
    x = canvas.x - yaw  # features slide over the head as it turns
    side = np.abs(x)
    _draw_head(canvas, au, draws, skin, hair, ink, line)
    _draw_eyes(canvas, au, draws, side, ink, line)
    _draw_brows(canvas, au, draws, side, ink, line)
    _draw_nose(canvas, au, draws, side, ink, line)
    _draw_mouth(canvas, au, draws, x, side, ink, line)

    light_x, light_y = draws.uniform(-0.12, 0.12), draws.uniform(-0.12, 0.12)
    contrast, level = draws.uniform(0.55, 1.0), draws.uniform(-0.08, 0.08)
    image = canvas.image + light_x * canvas.x + light_y * canvas.y
    image = (image - 0.5) * contrast + 0.5 + level + draws.uniform(0.005, 0.06) * gauss
    faces: NDArray[np.uint8] = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return faces


def _draw_head(
    canvas: Canvas, au: dict[int, Array], draws: _Draws, skin: Array, hair: Array, ink: Array, line: Array
) -> None:
    width, chin = draws.uniform(0.74, 0.86), 0.98 + 0.1 * au[26]
    hairline, crown = draws.uniform(-0.78, -0.62), draws.uniform(1.02, 1.14)
    canvas.fill(canvas.ellipse(canvas.x, 0.0, -0.12, width + 0.08, crown), hair)
    face = canvas.ellipse(canvas.x, 0.0, 0.0, width, chin)
    canvas.fill(np.maximum(face, hairline + 0.3 * canvas.x * canvas.x - canvas.y), skin)
    canvas.fill(np.maximum(np.abs(face) - line / 2, hairline - canvas.y), ink, 0.6)


def _draw_eyes(canvas: Canvas, au: dict[int, Array], draws: _Draws, side: Array, ink: Array, line: Array) -> None:
    """Lids opened by AU5, narrowed by AU7, the lower one pushed up by AU6; crow's feet with AU6."""
    apart, height = draws.uniform(0.3, 0.35), draws.uniform(-0.2, -0.14)
    width = draws.uniform(0.15, 0.18)
    eye = side - apart
    top = height - 0.085 - 0.085 * au[5] + 0.035 * au[7] + 0.02 * au[9]
    bottom = height + 0.06 + 0.02 * au[5] - 0.075 * au[6] - 0.035 * au[7] - 0.03 * au[9]
    opening = canvas.lens(eye, width, height, top, bottom)
    canvas.fill(opening, 0.97)
    iris = canvas.ellipse(eye, draws.uniform(-0.02, 0.02), height - 0.01, 0.075, 0.075)
    canvas.fill(np.maximum(iris, opening), ink)
    upper = canvas.parabola(eye, -width, height, width, height, top - height)
    lower = canvas.parabola(eye, -width, height, width, height, bottom - height)
    canvas.fill(upper - line, ink)
    canvas.fill(lower - line / 2, ink, 0.7)
    for rise in (-0.05, 0.05):
        crow = canvas.parabola(eye, width + 0.05, height + rise / 2, width + 0.17, height + 2 * rise, 0.0)
        canvas.fill(crow - line / 2, ink, np.minimum(0.6 * au[6], 1))


def _draw_brows(canvas: Canvas, au: dict[int, Array], draws: _Draws, side: Array, ink: Array, line: Array) -> None:
    """Inner ends raised by AU1, outer by AU2, all lowered and drawn together by AU4; forehead lines and furrows."""
    base = draws.uniform(-0.43, -0.37)
    inner = base - 0.16 * au[1] + 0.13 * au[4] + 0.04 * au[9]
    outer = base + 0.03 - 0.15 * au[2] + 0.09 * au[1] * (1 - np.minimum(au[2], 1))
    start, arch = 0.15 - 0.06 * au[4], -0.05 - 0.03 * au[2] + 0.03 * au[4]
    brow = canvas.parabola(side, start, inner, 0.52, outer, arch)
    canvas.fill(brow - line * draws.uniform(0.9, 1.5), ink)
    furrow = canvas.parabola(side, 0.05, base + 0.02, 0.08, base + 0.16, 0.0)
    canvas.fill(furrow - line / 2, ink, np.minimum(0.7 * au[4] * (1 - 0.5 * np.minimum(au[1], 1)), 1))
    forehead = canvas.parabola(side, 0.0, base - 0.24, 0.34, base - 0.22, -0.02)
    canvas.fill(forehead - line / 2, ink, np.minimum(0.35 * au[1], 1))


def _draw_nose(canvas: Canvas, au: dict[int, Array], draws: _Draws, side: Array, ink: Array, line: Array) -> None:
    """Nostrils raised by AU9 and AU10, wrinkles across the bridge with AU9, cheek folds with AU9, AU10 and AU12."""
    tip = draws.uniform(0.16, 0.22) - 0.04 * au[9] - 0.02 * au[10]
    nostril = canvas.parabola(side, 0.0, tip + 0.02, draws.uniform(0.1, 0.14), tip - 0.04, 0.04)
    canvas.fill(nostril - line / 2, ink, 0.85)
    for height in (-0.09, 0.0):
        wrinkle = canvas.parabola(side, 0.0, height - 0.02, 0.11, height + 0.03, 0.0)
        canvas.fill(wrinkle - line / 2, ink, np.minimum(0.8 * au[9], 1))
    spread = 0.12 * au[12]
    fold = canvas.parabola(side, 0.18, tip, 0.38 + spread, tip + 0.26, -0.06)
    canvas.fill(fold - line / 2, ink, np.minimum(0.55 * (au[9] + 0.4 * au[10] + 0.7 * au[12]), 0.9))


def _draw_mouth(
    canvas: Canvas, au: dict[int, Array], draws: _Draws, x: Array, side: Array, ink: Array, line: Array
) -> None:
    """Corners up with AU12, down with AU15, out with AU20; lips parted by AU25, jaw down with AU26, tight with AU23."""
    centre = draws.uniform(0.46, 0.54)
    width = draws.uniform(0.26, 0.31) + 0.08 * au[12] + 0.11 * au[20] - 0.07 * au[23] - 0.1 * au[26] * (1 - au[20])
    corner = centre - 0.13 * au[12] + 0.15 * au[15] + 0.03 * au[20] + 0.08 * au[26]
    apart = 0.05 * au[25] + 0.02 * au[16] + 0.05 * au[10]
    top = centre - apart - 0.06 * au[26] + 0.03 * au[12] - 0.06 * au[10] - 0.05 * au[15]
    bottom = centre + apart + 0.22 * au[26] + 0.09 * au[12] * np.minimum(au[25], 1) + 0.06 * au[16] - 0.05 * au[15]
    opening = canvas.lens(x, width, corner, top, bottom)
    canvas.fill(opening, ink)
    teeth = np.maximum(opening + line, canvas.y - (top + 0.09 + 0.1 * side))
    canvas.fill(teeth, 0.95, np.minimum(au[12] + 0.8 * au[20] + 0.6 * au[10], 1))
    thick = line * (1 + 0.35 * au[23])
    for middle in (top, bottom):
        lip = canvas.parabola(x, -width, corner, width, corner, middle - corner)
        canvas.fill(lip - thick, ink)
    below = bottom + 0.13 + 0.02 * au[23]
    shade = canvas.parabola(x, -0.5 * width, below, 0.5 * width, below, 0.03 - 0.07 * au[17])
    canvas.fill(shade - line / 2, ink, np.minimum(0.35 + 0.4 * au[17], 0.8))
