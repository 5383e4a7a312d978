# SPDX-License-Identifier: Apache-2.0
"""Whatever a picture comes as, to a `Photo`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from fastfer.data.files import printable
from fastfer.data.images import upright_image
from fastfer.data.manifest import Sample
from fastfer.data.split import DataError
from fastfer.faces.face import Picture
from fastfer.predict.photo import Photo

if TYPE_CHECKING:
    from concurrent.futures import Future

EXPECTED = "a path, encoded bytes, a Pillow image, or a numpy array uint8 (H, W, 3) or (H, W)"


def is_batch(images: Any) -> bool:
    """Whether these are several pictures: a list, a tuple, or an array (N, H, W, 3)."""
    if isinstance(images, np.ndarray):
        return images.ndim == 4
    return isinstance(images, Sequence) and not isinstance(images, str | bytes)


def read(image: Any, bgr: bool = False, longest: int | None = None) -> tuple[Photo, str | None]:
    """The picture, and the file that it came from.

    Files and Pillow images are turned upright as their Exif tag says; of an animation the first picture is taken.
    ``bgr``: colours of arrays stand as OpenCV has them. ``longest``: pixels that are wanted of a JPEG's longer side, by
    default all. Raises DataError for what is damaged, TypeError or ValueError for what is no picture.
    """
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        return _whole(Photo(Sample(Path(name), None, name), longest), name), name
    if isinstance(image, bytes | bytearray | memoryview):
        return _whole(Photo(Sample(bytes(image), None, "image"), longest), "image"), None
    if isinstance(image, Image.Image):
        try:
            return _whole(Photo(upright_image(image)), "image"), None
        except DataError:
            raise
        except Exception as error:  # Pillow's readers raise nearly anything for damaged files
            raise DataError(f"image: not a readable image ({printable(str(error))[:80]})") from error
    return _whole(Photo(_array(image, bgr)), "image"), None


class Read(NamedTuple):
    """A picture that was read, or why not."""

    image: Any
    photo: Photo | None
    name: str | None
    error: Exception | None


def attempt(image: Any, bgr: bool = False, longest: int | None = None) -> Read:
    """What `read` makes of it, or raises."""
    try:
        return Read(image, *read(image, bgr, longest), None)
    except (DataError, OSError, TypeError, ValueError) as error:
        return Read(image, None, None, error)


def read_ahead(images: Iterable[Any], bgr: bool, workers: int, longest: int | None) -> Iterator[Read]:
    """What `read` makes of each, in their order; with ``workers`` threads that read up to two each in advance."""
    if workers < 0:
        raise ValueError(f"workers: expected 0 or more, got {workers}")

    one = partial(attempt, bgr=bgr, longest=longest)
    return _ahead(one, images, workers) if workers else map(one, images)


def _ahead(one: Callable[[Any], Read], images: Iterable[Any], workers: int) -> Iterator[Read]:
    from concurrent.futures import ThreadPoolExecutor

    running: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="fastfer-decode") as pool:
        try:
            for image in images:
                running.append(pool.submit(one, image))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for left in running:
                left.cancel()


def _array(image: Any, bgr: bool) -> Picture:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image: expected {EXPECTED}, got {type(image).__name__}")
    if image.dtype != np.uint8:
        raise TypeError(f"image: expected dtype uint8, got {image.dtype}")
    x = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] != 3):
        raise ValueError(f"image: expected an array (H, W, 3) or (H, W), got shape {image.shape}")
    return x[..., ::-1] if bgr and x.ndim == 3 else x


def _whole(photo: Photo, name: str) -> Photo:
    if not min(photo.size):
        raise DataError(f"{printable(name)}: expected pixels, got a width and height of {photo.size}")
    return photo
