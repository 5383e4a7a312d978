# SPDX-License-Identifier: Apache-2.0
"""``fastfer.Recognizer``: from pictures to faces with their expressions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastfer._memory import keep_pages
from fastfer.data.split import DataError
from fastfer.faces.detector import Detector, YuNet, as_detector
from fastfer.faces.face import Face, FaceCrop, Picture
from fastfer.predict import pictures
from fastfer.predict.photo import Photo, reduction
from fastfer.predict.pictures import Read, read_ahead
from fastfer.predict.prepare import Prepare
from fastfer.predict.resolve import Weights, resolved
from fastfer.predict.results import FrameResult, RecognizedFace, Result

if TYPE_CHECKING:
    from fastfer.predict.source import Source
    from fastfer.runtime import Engine

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]
_AT_A_TIME = 64
"""Faces in one call of the engine: its activations take memory for each."""
_Crops = list[NDArray[np.uint8]]
_Waiting = tuple[Photo, str | None, list[Face], _Crops]
_BYTES = 1 << 25
"""Bytes of pictures that wait for a full batch: a photograph of 12 million pixels has 36 million."""


class Recognizer:
    """Faces and their expressions, by a network and a detector; calls from several threads run side by side.

    ``recognizer(image)`` gives a `Result`, of several images a list of them; ``recognizer.stream(source)`` the frames
    of a video or a camera. The network sees faces as in its training: crop, colours, size are those of its file.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        detector: Detector | str | Path | None = None,
        faces: Literal["detect", "whole"] = "detect",
        threads: int | None = None,
        precision: str | None = None,
        margin: float | None = None,
        min_score: float = 0.7,
        min_size: float = 10.0,
        longest: int = 640,
        decode: Literal["needed", "all"] = "needed",
    ) -> None:
        """Load the network and the detector.

        Args:
            weights: file of an engine (.ffe: torch is not needed) or of weights (.safetensors), name of shipped ones,
                or an Engine
            detector: the file of YuNet (.onnx or .ffe), or a callable that gives the faces of an RGB picture as `Face`
                or as rows of box, points, score; by default YuNet, where `fastfer.predict.find_detector` finds it
            faces: "detect" looks for faces, "whole" takes each picture as one face
            threads: of engine and detector; by default as `fastfer.runtime.default_threads`
            precision: float32, bfloat16, or as the engine file was compiled; of YuNet, too, which computes in float32
                where it is neither
            margin: around a face's box as a fraction of its longer side; by default that of the training
            min_score: of a detection
            min_size: of the shorter side of a face's box, in pixels
            longest: side that larger pictures are shrunk to for YuNet; 320 takes a quarter of the time, and misses
                faces below some 3 hundredths of the picture's side
            decode: of JPEG files that YuNet looks at no more pixels than detector and network need ("needed"), or
                "all"; results of large photographs differ a little, see the guide

        Raises FileNotFoundError, ImportError, TypeError or ValueError, naming what was expected.
        """
        if faces not in ("detect", "whole"):
            raise ValueError(f"faces: expected 'detect' or 'whole', got {faces!r}")
        if faces == "whole" and detector is not None:
            raise ValueError("detector: expected none with faces='whole'")
        if not 0 < min_score <= 1 or not min_size >= 0:
            raise ValueError(f"min_score, min_size: expected above 0 to 1, 0 or more, got {min_score}, {min_size}")
        if decode not in ("needed", "all"):
            raise ValueError(f"decode: expected 'needed' or 'all', got {decode!r}")
        self.engine: Engine
        self.engine, self.spec = resolved(weights, threads, precision)
        crop = None if margin is None else replace(self.spec.preprocess.crop or FaceCrop(), margin=margin)
        self._prepare = Prepare(self.spec, self.engine.input_shape, crop)
        self._as_bytes = self.spec.normalisation() is not None and self.engine.metadata.get("mean") is not None
        count = self.engine.output_shapes[0][0]
        self.temperature = _temperature(self.engine.metadata)
        self.classes = self.engine.class_names or tuple(str(index) for index in range(count))
        self._detector: Detector | None = None
        if faces == "detect":
            dtype = "bfloat16" if precision == "bfloat16" else None
            self._detector = as_detector(detector, score=min_score, threads=threads, longest=longest, dtype=dtype)
            keep_pages()
        # Another detector sees all pixels, and so does a network that is shown whole pictures, as in an evaluation.
        self.longest = self._detector.longest if decode == "needed" and isinstance(self._detector, YuNet) else None
        self.faces, self.min_score, self.min_size = faces, min_score, min_size

    @overload
    def __call__(self, image: ImageLike, *, bgr: bool = ..., errors: Literal["raise", "keep"] = ...) -> Result: ...
    @overload
    def __call__(
        self, image: list[Any] | tuple[ImageLike, ...], *, bgr: bool = ..., errors: Literal["raise", "keep"] = ...
    ) -> list[Result]: ...
    def __call__(self, image: Any, *, bgr: bool = False, errors: Literal["raise", "keep"] = "raise") -> Any:
        """The faces of a picture; of several (a list, or an array (N, H, W, 3)) a list, faces batched over pictures.

        Args:
            image: path, encoded bytes, Pillow image, numpy array uint8 RGB (H, W, 3) or grey (H, W), or several
            bgr: the colours of arrays stand as OpenCV has them
            errors: "keep" gives a picture that cannot be read a result that says so, "raise" raises for it

        Raises DataError for a damaged picture, TypeError or ValueError for what is no picture.
        """
        if not pictures.is_batch(image):
            return next(self.map([image], bgr=bgr, errors=errors))
        return list(self.map(image, bgr=bgr, errors=errors))

    def map(
        self,
        images: Iterable[ImageLike],
        *,
        bgr: bool = False,
        errors: Literal["raise", "keep"] = "raise",
        workers: int = 0,
    ) -> Iterator[Result]:
        """A result for each of any number of pictures, in their order, faces batched over pictures.

        ``workers`` threads decode a few pictures ahead of the others; 0 decodes in the caller's thread. The other
        arguments and errors are those of a call.
        """
        if errors not in ("raise", "keep"):
            raise ValueError(f"errors: expected 'raise' or 'keep', got {errors!r}")
        read = read_ahead(images, bgr, workers, self.longest)
        return (result for result, _ in self.results(read, keep=errors == "keep"))

    def stream(
        self,
        source: Source,
        *,
        bgr: bool = False,
        track: bool = True,
        smooth: float = 0.0,
        every: int = 1,
        batch: int | None = None,
        live: bool | None = None,
    ) -> Iterator[FrameResult]:
        """The frames of a video, a camera or anything iterable, with their faces, one after the other.

        Args:
            source: a video's path or URL, a camera's number, or an iterable of pictures
            bgr: the colours of an iterable's arrays stand as OpenCV has them
            track: number the persons, the same number from frame to frame
            smooth: of a person's probabilities the share of the past that stays, 0 (off) to below 1; needs track
            every: look at each N-th frame alone
            batch: frames whose faces go through the network at a time; by default 8, of a live source or one of
                unknown pace 1
            live: leave out frames that come faster than they are done instead of falling behind; by default for
                cameras and network streams

        Raises SourceError where the source cannot be opened or stops, ImportError naming the extra for videos.
        """
        from fastfer.predict.stream import stream

        return stream(self, source, bgr=bgr, track=track, smooth=smooth, every=every, batch=batch, live=live)

    def detect(self, picture: Picture | Photo) -> list[Face]:
        """The faces of one picture, best first, without their expressions; the picture itself with faces="whole"."""
        photo = picture if isinstance(picture, Photo) else Photo(picture)
        if self._detector is None:
            return [Face((0.0, 0.0, float(photo.size[0]), float(photo.size[1])))]
        found = [photo.placed(face) for face in self._detector(self._shown(photo))]
        return [f for f in found if f.score >= self.min_score and min(f.box[2:]) >= max(self.min_size, 1e-3)]

    def _shown(self, photo: Photo) -> Any:
        """What the detector is given: YuNet takes any view, others all pixels in colour."""
        if isinstance(self._detector, YuNet):
            return photo.view
        pixels = photo.pixels()
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)

    def classify(
        self, images: Sequence[Picture | Photo], faces: Sequence[Sequence[Face]]
    ) -> list[tuple[RecognizedFace, ...]]:
        """The expressions of the ``faces`` of each picture, all in one batch."""
        crops = [self._crops(image, found) for image, found in zip(images, faces, strict=True)]
        return self._classified(faces, crops)

    def _classified(self, faces: Sequence[Sequence[Face]], crops: Sequence[_Crops]) -> list[tuple[RecognizedFace, ...]]:
        values = iter(self.probabilities([crop for some in crops for crop in some]))
        return [tuple(self._face(face, next(values)) for face in found) for found in faces]

    def _crops(self, picture: Picture | Photo, faces: Sequence[Face]) -> _Crops:
        """What the network is shown of the faces, of a picture decoded so far that the smallest has pixels enough."""
        photo = picture if isinstance(picture, Photo) else Photo(picture)
        prepare = self._prepare
        if self._detector is None:
            return [prepare(photo.pixels(), None) for _ in faces]
        photo.refine(min((reduction(prepare.crop.side(face), prepare.least) for face in faces), default=photo.by))
        return [prepare(*photo.around(face, prepare.crop)) for face in faces]

    def probabilities(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, K) of faces that are prepared already, each uint8 (C, H, W)."""
        parts = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(crops), _AT_A_TIME):
            x = self._prepare.batch(list(crops[start : start + _AT_A_TIME]), self._as_bytes)
            parts.append(_softmax(self.engine(x) / self.temperature))
        return np.concatenate(parts)

    def results(self, read: Iterable[Read], keep: bool) -> Iterator[tuple[Result, Photo | None]]:
        """As `map`, of pictures that were read, with what they are where they could be.

        So many pictures are held at a time as fill a batch with their faces.
        """
        waiting: list[_Waiting] = []
        for image, photo, name, error in read:
            if photo is not None:
                try:
                    faces = self.detect(photo)
                    waiting.append((photo, name, faces, self._crops(photo, faces)))
                except (DataError, OSError, TypeError, ValueError) as raised:  # of the detector, or decoding the rest
                    error = raised
            if error is not None:
                if not keep:
                    raise error
                yield from self._done(waiting)
                waiting = []
                size = None if photo is None else photo.size
                yield Result((), size, str(image) if isinstance(image, str | Path) else None, str(error)), photo
            if sum(max(1, len(faces)) for _, _, faces, _ in waiting) >= _AT_A_TIME or _bytes(waiting) > _BYTES:
                yield from self._done(waiting)
                waiting = []
        yield from self._done(waiting)

    def _done(self, waiting: Sequence[_Waiting]) -> list[tuple[Result, Photo | None]]:
        faces = self._classified([faces for _, _, faces, _ in waiting], [crops for *_, crops in waiting])
        return [
            (Result(found, photo.size, name), photo) for (photo, name, *_), found in zip(waiting, faces, strict=True)
        ]

    def _face(self, face: Face, values: NDArray[np.float32]) -> RecognizedFace:
        best = int(values.argmax())
        score = None if self._detector is None else face.score
        return RecognizedFace(
            face.box, face.points, score, self.classes[best], float(values[best]), self.classes, values
        )


def _temperature(metadata: Mapping[str, Any]) -> np.float32:
    """What divides logits before softmax, so that probabilities mean what they say; 1 where no one fitted it."""
    value = metadata.get("temperature", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError(f"temperature: expected a number above 0 in the file's metadata, got {value!r}")
    return np.float32(value)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    x = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: NDArray[np.float32] = (x / x.sum(1, keepdims=True)).astype(np.float32)
    return shares


def _bytes(waiting: Sequence[_Waiting]) -> int:
    return sum(photo.bytes for photo, *_ in waiting)
