# SPDX-License-Identifier: Apache-2.0
"""Where faces come from: YuNet on the engine, or any callable."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fastfer._resample import seen
from fastfer.faces import yunet
from fastfer.faces.detector_file import engine_bytes
from fastfer.faces.face import Face, Picture

if TYPE_CHECKING:
    from fastfer.runtime import Engine

Detector = Callable[[Picture], Sequence[Any]]
"""Gives the faces of an RGB picture (H, W, 3) uint8: each a `Face`, or a row of numbers, see `as_face`."""
_KEPT = 8
"""Sizes of pictures whose engines are kept: each takes memory for its activations."""


class YuNet:
    """YuNet (Wu et al. 2023) on fastfer's engine; larger pictures are shrunk to ``longest`` pixels a side.

    Calls from several threads run side by side.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        score: float = 0.7,
        overlap: float = 0.3,
        longest: int = 640,
        threads: int | None = None,
        dtype: str | None = None,
    ) -> None:
        """``path``: its ONNX file, or an engine file; None looks for it as `find_detector`.

        ``score`` is the least one of a face, ``overlap`` the intersection over union above which the weaker of two is
        left out. ``dtype``: what it computes in, float32 or bfloat16, by default as its file was compiled. Raises
        FileNotFoundError, ImportError naming what reading ONNX needs, ValueError for another file.
        """
        if not 0 < score <= 1 or not 0 <= overlap <= 1 or not 32 <= longest <= 8192:
            raise ValueError(
                f"score, overlap, longest: expected above 0 to 1, 0 to 1, 32 to 8192, got {score}, {overlap}, {longest}"
            )
        self.score, self.overlap, self.longest, self._threads = score, overlap, longest, threads
        if dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"dtype: expected float32 or bfloat16, got {dtype!r}")
        self.dtype = dtype
        self._data = engine_bytes(path)
        self._engines: OrderedDict[tuple[int, int], Engine] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, picture: Picture | Image.Image) -> list[Face]:
        """Faces of an RGB picture (H, W, 3) or a grey one (H, W), uint8, or a Pillow image of mode RGB or L.

        Best score first, in its pixels.
        """
        if isinstance(picture, Image.Image):
            if picture.mode not in ("RGB", "L"):
                raise ValueError(f"picture: expected an image of mode RGB or L, got {picture.mode}")
            picture.load()
            picture = seen(picture)
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
            raise ValueError(f"picture: expected uint8 (H, W, 3) or (H, W), got {picture.dtype} {picture.shape}")
        return self._found(picture) if picture.size else []

    def _found(self, picture: Picture) -> list[Face]:
        height, width = picture.shape[:2]
        rows, columns = _shrunk(height, width, self.longest)
        size = yunet.input_size(rows, columns)
        x = np.empty((1, 3, *size), np.uint8)
        yunet.to_input(picture, x[0], (rows, columns))
        maps = _named(self.engine(size)(x))
        found = yunet.faces({name: value[0] for name, value in maps.items()}, size, self.score, self.overlap)
        scale = width / columns, height / rows
        return found if scale == (1, 1) else [_scaled(face, *scale) for face in found]

    def computing_in(self, dtype: str | None) -> YuNet:
        """The same detector, computing in float32, bfloat16 or as its file was compiled."""
        other = copy(self)
        other.dtype = dtype
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Pickled and copied without the engines, which are made again where they are needed."""
        return {key: value for key, value in vars(self).items() if key not in ("_engines", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _engines=OrderedDict(), _lock=threading.Lock())

    def engine(self, size: tuple[int, int]) -> Engine:
        """For pictures of that size; the one used longest ago makes room."""
        from fastfer.engine.resized import resized
        from fastfer.runtime import Engine

        with self._lock:
            engine = self._engines.pop(size, None)
            if engine is None:
                engine = Engine(resized(self._data, size), threads=self._threads, dtype=self.dtype)
                while len(self._engines) >= _KEPT:
                    self._engines.popitem(last=False)
            self._engines[size] = engine
        return engine


class Adapted:
    """Any callable as a detector whose faces are `Face`."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def __call__(self, picture: Picture) -> list[Face]:
        """Faces, best first. TypeError or ValueError where the detector gives something else."""
        found = self.detector(picture)
        faces = [] if found is None else [as_face(item) for item in found]
        return sorted(faces, key=lambda face: -face.score)


def as_detector(
    detector: Detector | str | Path | None,
    *,
    score: float,
    threads: int | None,
    longest: int = 640,
    dtype: str | None = None,
) -> Detector:
    """What finds faces: YuNet from a path or from where it is found, or the callable itself."""
    if detector is None or isinstance(detector, str | Path):
        return YuNet(detector, score=score, threads=threads, longest=longest, dtype=dtype)
    if isinstance(detector, YuNet):
        return detector
    if not callable(detector):
        raise TypeError(f"detector: expected a path or a callable, got {type(detector).__name__}")
    return Adapted(detector)


def as_face(item: Any) -> Face:
    """A `Face`, or 4 numbers (left, top, width, height), 5 (and score) or 15 (box, five points, score, as OpenCV's)."""
    if isinstance(item, Face):
        return item
    numbers = np.asarray(item, np.float64)
    if numbers.shape not in ((4,), (5,), (15,)) or not np.isfinite(numbers).all():
        raise ValueError(f"detector: expected faces, or rows of 4, 5 or 15 finite numbers, got {item!r}"[:300])
    left, top, width, height, *rest = numbers.tolist()
    points = tuple(zip(rest[:10:2], rest[1:10:2], strict=True)) if len(rest) == 11 else None
    return Face((left, top, width, height), rest[-1] if rest else 1.0, points)


def _shrunk(height: int, width: int, longest: int) -> tuple[int, int]:
    """(H, W) of a picture, no side longer than ``longest``."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _scaled(face: Face, x: float, y: float) -> Face:
    left, top, width, height = face.box
    points = None if face.points is None else tuple((px * x, py * y) for px, py in face.points)
    return Face((left * x, top * y, width * x, height * y), face.score, points)


def _named(outputs: Any) -> yunet.Maps:
    """The network's outputs by their names."""
    if isinstance(outputs, tuple | list):
        outputs = dict(zip(yunet.OUTPUTS, outputs, strict=True))
    return outputs  # type: ignore[no-any-return]
